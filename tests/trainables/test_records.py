"""Files that are never seen half written, and a model's folder that has its record last."""

import json
import os
from pathlib import Path

import pytest

from model.config import RUN
from trainables.records import write_whole
from trainables.training.model_folder import BEGUN, CODE, WORK, ModelFolder


def test_a_reader_of_the_old_file_still_sees_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    write_whole(path, "old, and longer than the new one")
    os.link(path, tmp_path / "old")
    with path.open() as reader:
        write_whole(path, "new")
        assert reader.read() == (tmp_path / "old").read_text() == "old, and longer than the new one"
    assert path.read_text() == "new"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["best.json", "old"]


def test_a_path_that_is_no_text_is_written_by_numbers(tmp_path: Path) -> None:
    write_whole(tmp_path / "report.md", "data \udce9.jsonl")
    assert (tmp_path / "report.md").read_text() == r"data \udce9.jsonl"


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    """A folder with an older model's record."""
    found = ModelFolder(tmp_path / "model", {"hash": "a"})
    found.path.mkdir()
    (found.path / RUN).write_text(json.dumps({"identity": found.identity, "of": "the older model"}))
    return found


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A new model's files."""
    files = tmp_path / "made"
    files.mkdir()
    for name in ("model.safetensors", "config.json"):
        (files / name).write_text("new")
    return files


def test_a_finished_model_has_its_files_and_its_record(folder: ModelFolder, made: Path) -> None:
    record = {"identity": folder.identity, "of": "the new model"}
    folder.finish(made, record)
    assert folder.finished() == record
    assert (folder.path / "model.safetensors").read_text() == (folder.path / "config.json").read_text() == "new"


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_model_whose_files_did_not_all_arrive_has_no_record(folder: ModelFolder, made: Path, file: str) -> None:
    """Neither its own nor the older model's: the weights may be of either."""
    (folder.path / file).mkdir()  # in the way of the new one
    with pytest.raises(OSError, match=file):
        folder.finish(made, {"identity": folder.identity, "of": "the new model"})
    assert folder.finished() is None


def test_a_model_of_other_code_is_told_and_one_of_before_code_was_kept_is_this_runs(tmp_path: Path) -> None:
    def at(code: str) -> ModelFolder:
        return ModelFolder(tmp_path / "model", {"hash": "a", CODE: code})

    for left in (RUN, f"{WORK}/{BEGUN}"):
        file = tmp_path / "model" / left
        for recorded in ({"hash": "a"}, {"hash": "a", CODE: "x"}):
            write_whole(file, json.dumps({"identity": recorded}))
            at("x").check(overwrite=False)
        with pytest.raises(ValueError, match="trained by other code: --overwrite"):
            at("y").check(overwrite=False)
        at("y").check(overwrite=True)
        write_whole(file, json.dumps({"identity": {"hash": "b", CODE: "x"}}))
        with pytest.raises(ValueError, match="the model of another run"):
            at("x").check(overwrite=False)
        file.unlink()
