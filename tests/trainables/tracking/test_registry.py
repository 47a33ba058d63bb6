"""Registered models, in a real MLflow store."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from permissions import only_readable, run_obeying
from scipy import stats
from small import model_config

from model import load
from model.config import RUN
from model.language_model import LanguageModel
from model.text.checkpoint import WEIGHTS, save_model
from search.audit.store_checks import check_registry
from trainables.inputs.corpus import _train_bpe
from trainables.records import Records
from trainables.tracking import registry
from trainables.tracking.registry import CHAMPION, TRAINING_TAG, Registration, check_comparable, register_model
from trainables.tracking.run_record import read_record, seal
from trainables.tracking.store import StoreView

ROOT = Path(__file__).parents[3]
TEXT = "the cat sleeps under the tree; the dog runs over the river"
BASE = np.random.default_rng(0).uniform(80, 120, 60)  # nats of 60 documents
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store that the first registration makes."""
    return Records.at(tmp_path_factory.mktemp("mlruns")).tracking_uri


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a model folder with validation losses as far from `BASE` as asked for."""
    tokenizer = _train_bpe([TEXT], 270)
    sizes = vars(model_config()) | {"vocab_size": tokenizer.get_vocab_size()}
    table = torch.randn(sizes["vocab_size"], sizes["embedding_dim"], generator=torch.Generator().manual_seed(6))

    def write(
        by: float = 0.0, noise: float = 0.5, digest: str = "pydoc", seed: int = 1, num: int = 60, units: bool = True
    ) -> Path:
        nats = BASE[:num] + by + np.random.default_rng(seed).normal(0, noise, num)
        run: dict[str, Any] = {"validation": {"digest": digest, "nats": nats.tolist(), "targets": [30] * num}}
        run["validation"] |= {"units": list(range(num))} if units else {}
        model = LanguageModel(type(model_config())(**sizes), table, seed)
        save_model(model, tmp_path / "trained", tokenizer.to_str())
        (tmp_path / "trained" / RUN).write_text(json.dumps(seal(run, tmp_path / "trained")))
        (tmp_path / "trained" / ".resume").mkdir()  # as an interrupted training leaves it
        return tmp_path / "trained"

    return write


def champion(uri: str, name: str) -> int:
    return int(MlflowClient(uri).get_model_version_by_alias(name, CHAMPION).version)


def test_the_champion_is_always_the_better_one(uri: str, make: Make) -> None:
    assert register_model(make(), "ladder", uri) == Registration(1, True, "no champion before it")
    same = register_model(make(seed=9, noise=0), "ladder", uri)
    assert (same.version, same.champion) == (2, False)
    unsure = register_model(make(by=-0.6, noise=4, seed=2), "ladder", uri)  # better on average, by luck
    assert unsure.reason.startswith("not better: PPL -")
    assert not unsure.champion
    assert champion(uri, "ladder") == 1
    better = register_model(make(by=-0.5, seed=3), "ladder", uri)
    assert (better.version, better.champion) == (4, True)
    assert better.reason.startswith("better: PPL -")
    assert "; 98%] against ladder version 1, 60 documents, so few" in better.reason
    worse = register_model(make(by=0.5, seed=4), "ladder", uri)
    assert not worse.champion
    assert champion(uri, "ladder") == 4
    forced = register_model(make(by=0.5, seed=5), "ladder", uri, force=True)
    assert forced.champion
    assert forced.reason.startswith("forced: PPL +")
    assert champion(uri, "ladder") == forced.version == 6
    assert MlflowClient(uri).get_model_version("ladder", "6").tags["reason"] == forced.reason


def test_a_model_judged_on_other_data_is_refused(uri: str, make: Make) -> None:
    register_model(make(), "data", uri)
    for other in ({"digest": "chat"}, {"num": 59}):
        with pytest.raises(ValueError, match="data version 1, the champion, was scored on other validation data"):
            register_model(make(by=-9, seed=2, **other), "data", uri)
    assert len(MlflowClient(uri).search_model_versions("name='data'")) == 1
    forced = register_model(make(digest="chat", seed=2), "data", uri, force=True)
    assert (forced.version, forced.champion) == (2, True)
    check_comparable("data", uri, "chat")
    check_comparable("nothing of that name", uri, "pydoc")
    with pytest.raises(ValueError, match="scored on other validation data"):
        check_comparable("data", uri, "pydoc")
    assert champion(uri, "data") == 2


def validations(
    differences: np.ndarray, units: np.ndarray | None = None
) -> tuple[registry._Validation, registry._Validation]:
    """The champion's validation, and one whose loss on each document of 30 targets differs by so many nats a target."""
    number = len(differences)
    same: dict[str, Any] = {"digest": "d", "targets": np.full(number, 30.0)}
    same["units"] = np.arange(number) if units is None else units
    nats = np.linspace(80, 120, number)
    return registry._Validation(nats=nats, **same), registry._Validation(nats=nats + 30 * differences, **same)


def by_standard_errors(t: float, number: int = 60) -> np.ndarray:
    """Differences whose mean is so many standard errors from zero."""
    noise = np.random.default_rng(4).normal(0, 1, number)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    return 0.01 * (noise + t / number**0.5)


@pytest.mark.parametrize(("t", "better"), [(-2.2, False), (-2.6, True)])
def test_a_model_between_the_limits_of_95_and_98_per_cent_is_no_champion(t: float, better: bool) -> None:
    assert stats.t.isf(0.025, 59) < 2.2 < stats.t.isf(0.01, 59) < 2.6
    assert registry._compare("a version", *validations(by_standard_errors(t)), force=False)[0] == better


def test_twenty_copies_of_the_documents_decide_no_more_than_one() -> None:
    once = by_standard_errors(-2.2)
    units = np.tile(np.arange(60), 20)
    assert not registry._compare("a version", *validations(np.tile(once, 20), units), force=False)[0]
    assert registry._compare("a version", *validations(np.tile(once, 20)), force=False)[
        0
    ]  # as copies that are not known


def test_a_record_that_does_not_name_equal_documents_is_said(uri: str, make: Make) -> None:
    register_model(make(units=False), "older", uri)
    said = register_model(make(units=False, by=-5, seed=2), "older", uri).reason
    assert "60 documents (equal documents not known), so few" in said


def test_one_document_decides_nothing(uri: str, make: Make) -> None:
    register_model(make(num=1), "one", uri)
    assert not register_model(make(num=1, by=-9, seed=2), "one", uri).champion


def test_a_model_that_is_a_version_already_stays_that_one(uri: str, make: Make) -> None:
    assert register_model(make(), "again", uri).version == 1
    assert register_model(make(), "again", uri) == Registration(1, True, "already version 1")
    better = register_model(make(by=-5, seed=2), "again", uri)
    assert (better.version, better.champion) == (2, True)
    beaten = register_model(make(), "again", uri)
    assert (beaten.version, beaten.champion) == (1, False)
    assert beaten.reason.startswith("already version 1; not better: PPL +")
    assert champion(uri, "again") == 2
    forced = register_model(make(), "again", uri, force=True)
    assert (forced.version, forced.champion, champion(uri, "again")) == (1, True, 1)
    assert MlflowClient(uri).get_model_version("again", "1").tags["reason"] == forced.reason
    assert len(MlflowClient(uri).search_model_versions("name='again'")) == 2
    assert register_model(make(), "other name", uri).version == 1


def test_a_version_and_its_run_name_the_training(uri: str, make: Make) -> None:
    folder, client = make(), MlflowClient(uri)
    register_model(folder, "unlinked", uri)
    assert TRAINING_TAG not in client.get_model_version("unlinked", "1").tags
    (folder / RUN).write_text(json.dumps(seal(read_record(folder) | {"mlflow_run": "abc"}, folder)))
    register_model(folder, "linked", uri)
    made = client.get_model_version("linked", "1")
    assert made.tags[TRAINING_TAG] == client.get_run(made.run_id).data.tags[TRAINING_TAG] == "abc"


PREDICT = """
import json, sys
import mlflow
loaded = mlflow.pyfunc.load_model("models:/served@champion")
rows = loaded.predict(["the cat", "t"], params={"k": 3})
import model
print(json.dumps([model.__file__, len(loaded.predict(["the dog"])[0]["next_tokens"]), rows]))
"""


def test_mlflow_alone_loads_the_champion_and_predicts(uri: str, make: Make, tmp_path: Path) -> None:
    folder = make()
    register_model(folder, "served", uri)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", PREDICT]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment | {"MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(Path(uri.removeprefix("sqlite:///")).parent.rglob(".resume"))
    code, default_k, rows = json.loads(done.stdout)
    assert Path(code).is_relative_to(Path(uri.removeprefix("sqlite:///")).parent)  # not this project's
    assert default_k == 5
    lm = load(folder, "cpu")
    for row, text in zip(rows, ["the cat", "t"], strict=True):
        expected = lm.next_tokens(text, 3)
        assert row["next_tokens"] == [token.text for token in expected]
        assert row["next_logprobs"] == pytest.approx([token.logprob for token in expected], abs=1e-4)
        assert row["logprobs"] == pytest.approx(lm.logprobs(text).tolist(), abs=1e-4)


def files_of(uri: str, name: str, version: str) -> Path:
    folder = next(f for n, v, _, f in StoreView(uri).version_folders() if (n, v) == (name, version))
    assert folder is not None
    return folder / "data" / "model"


def test_a_version_with_the_files_of_another_is_refused_and_named(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records.at(tmp_path / "mlruns")
    for seed in (1, 2):
        register_model(make(seed=seed), "exchanged", records.tracking_uri)
    assert check_registry(StoreView(records.tracking_uri)) == []
    one, two = (files_of(records.tracking_uri, "exchanged", version) for version in "12")
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", records.tracking_uri)
    for where in ("models:/exchanged/1", "models:/exchanged/2", "models:/exchanged@champion"):
        with pytest.raises(ValueError, match="other files than those that were registered"):
            load(where, "cpu")
    with pytest.raises(ValueError, match="its files are those of another model"):
        check_comparable("exchanged", records.tracking_uri, "pydoc")
    found = check_registry(StoreView(records.tracking_uri))
    said = [finding.what for finding in sorted(found, key=lambda finding: finding.where)]
    assert [what.partition("registered, ")[2] for what in said] == [
        "those of exchanged version 2: they were exchanged",
        "those of exchanged version 1: they were exchanged",
    ]


def test_a_version_whose_weights_were_changed_is_named(make: Make, tmp_path: Path) -> None:
    records = Records.at(tmp_path / "mlruns")
    register_model(make(), "damaged", records.tracking_uri)
    weights = files_of(records.tracking_uri, "damaged", "1") / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (finding,) = check_registry(StoreView(records.tracking_uri))
    assert "is damaged: its files are not those that were saved together" in finding.what


def test_a_registered_model_is_loaded_by_its_uri(uri: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make()
    register_model(folder, "loaded", uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for where in ("models:/loaded@champion", "models:/loaded/1"):
        assert load(where, "cpu").score(TEXT) == load(folder, "cpu").score(TEXT)
    for where in ("models:/loaded@best", "models:/nothing/1", "models:/loaded/7"):
        with pytest.raises(ValueError, match="cannot be had") as caught:
            load(where, "cpu")
        assert "\n" not in str(caught.value)


def test_what_cannot_be_registered_is_refused(uri: str, make: Make) -> None:
    folder = make()
    for name in ("a/b", ""):
        with pytest.raises(ValueError, match="MLflow refuses"):
            register_model(folder, name, uri)
    record = read_record(folder)
    wrong = {"digest": "a", "nats": [1], "targets": [1, 2]}
    for sealed in ({"metrics": {}}, {"validation": wrong}):
        (folder / RUN).write_text(json.dumps(seal(sealed, folder)))
        with pytest.raises(ValueError, match="does not say how the model did"):
            register_model(folder, "wrong", uri)
    better = record["validation"] | {"nats": [nats / 3 for nats in record["validation"]["nats"]]}
    for damaged in ("{", "[]", json.dumps(record), json.dumps(seal(record, folder) | {"validation": better})):
        (folder / RUN).write_text(damaged)
        with pytest.raises(ValueError, match=r"is no record of a training|is not as the training wrote it"):
            register_model(folder, "wrong", uri)
    (folder / RUN).write_text(json.dumps(seal(record, folder)))
    own = shutil.copytree(folder, folder.with_name("own"))
    shutil.copyfile(own / RUN, make(seed=2) / RUN)
    with pytest.raises(ValueError, match="the record of another model"):
        register_model(folder, "wrong", uri)
    (folder / RUN).unlink()
    with pytest.raises(ValueError, match="does not say how the model did"):
        register_model(folder, "wrong", uri)
    os.truncate(folder / WEIGHTS, 100)
    with pytest.raises(ValueError, match="no usable model folder"):
        register_model(folder, "wrong", uri)
    assert not MlflowClient(uri).search_registered_models("name='wrong'")


def test_mlflow_is_left_as_it_was(uri: str, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:1")
    mlflow.set_tracking_uri("http://elsewhere:1")
    register_model(make(), "quiet", uri)
    assert mlflow.get_tracking_uri() == "http://elsewhere:1"
    assert mlflow.active_run() is None
    mlflow.set_tracking_uri(None)
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


def moved_store(make: Make, tmp_path: Path, name: str) -> tuple[Path, Path]:
    """A store that was moved after a registration, as its owner may read it only; and the model's own folder."""
    folder, before = make(), tmp_path / "before"
    records = Records.at(before)
    register_model(folder, "moved", records.tracking_uri)
    records.use_write_ahead_logs()
    before.rename(tmp_path / name)
    return tmp_path / name, folder


@pytest.mark.parametrize("name", ["after", "a%20b?c#d::[e] ü"])
def test_a_model_is_loaded_straight_after_its_store_was_moved(
    make: Make, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, folder = moved_store(make, tmp_path, name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", Records.at(root).tracking_uri)
    assert load("models:/moved@champion", "cpu").score(TEXT) == load(folder, "cpu").score(TEXT)
    assert not (tmp_path / "before").exists()
    check_comparable("moved", Records.at(root).tracking_uri, "pydoc")  # it fetches the champion's record
    again = register_model(folder, "moved", Records.at(root).tracking_uri)
    assert (again.version, again.reason) == (1, "already version 1")
    assert {path.name for path in tmp_path.iterdir()} == {name, "trained"}  # neither the old place nor another


def test_text_is_generated_by_a_model_of_a_store_that_may_only_be_read(make: Make, tmp_path: Path) -> None:
    root, _ = moved_store(make, tmp_path, "theirs")
    command = [sys.executable, str(ROOT / "model/generate.py"), "models:/moved@champion", "the", "--max-tokens", "3"]
    with only_readable(root):
        done = run_obeying(command, env=os.environ | {"MLFLOW_TRACKING_URI": Records.at(root).tracking_uri})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the")


def test_another_model_does_not_stand_in_for_one_whose_files_are_gone(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = moved_store(make, tmp_path, "after")
    register_model(make(by=1.0), "other", Records.at(root).tracking_uri)
    client = MlflowClient(Records.at(root).tracking_uri)
    source = client.get_model_version("moved", "1").source  # models:/ID
    (gone,) = root.glob(f"artifacts/*/{source.replace(':', '')}")
    shutil.rmtree(gone)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", Records.at(root).tracking_uri)
    for uri in (source, "models:/moved@champion"):
        with pytest.raises(ValueError, match=f"{uri} is no model of this project: it has 0 files|{uri} cannot be had"):
            load(uri, "cpu")
