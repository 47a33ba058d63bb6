"""The command line: what every mistake is answered with, in this process and by the entries themselves."""

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from permissions import obey_permissions
from safetensors.numpy import save_file
from servers import another_http2_service, answering

from search.options import DEFAULT_SAMPLER, StudySettings, build_parser, check
from search.preflight import ANSWERS_WITHIN
from search.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
SAMPLED, GRID, UI = "asym_layers.py", "context_modes.py", "ui.py"
HEAVY = {"torch", "ray", "mlflow", "optuna", "datasets", "transformers", "pandas"}
LIMIT = 5.0  # seconds until a mistake is answered
TOO_LONG = "a" * 300  # for a file name


@dataclass
class Answer:
    """What an entry did with a command line."""

    code: int
    out: str
    message: str  # stderr without argparse's usage
    imported: set[str]  # top-level modules
    seconds: float


def ask(entry: str, *arguments: str, cwd: Path, mlruns: bool = True) -> Answer:
    """Run an entry as a user does, without hub and GPU, and watch what it imports."""
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd.parent / "hub"), "COLUMNS": "200"}
    records = ("--mlruns", str(cwd / "records")) if mlruns else ()
    command = [sys.executable, "-X", "importtime", str(ROOT / "search" / entry), *records, *arguments]
    began = time.monotonic()
    ran = subprocess.run(
        command, cwd=cwd, env=os.environ | hidden, capture_output=True, text=True, timeout=20, check=False,
        preexec_fn=obey_permissions,
    )  # fmt: skip
    seconds = time.monotonic() - began
    lines = ran.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")}
    rest = [line for line in lines if not line.startswith(("import time:", "usage:", " "))]
    return Answer(ran.returncode, ran.stdout, "\n".join(rest).strip(), imported, seconds)


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """An empty working folder."""
    (tmp_path / "cwd").mkdir()
    return tmp_path / "cwd"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and embeddings, most of them bad."""
    folder = tmp_path_factory.mktemp("files")
    good = [json.dumps({"text": f"document number {i}"}) for i in range(60)]
    texts = {
        "good.jsonl": good,
        "good.txt": good,
        "empty.jsonl": [],
        "one.jsonl": good[:1],
        "malformed.jsonl": [*good[:2], '{"text": "cut o', *good[3:]],
        "no_text.jsonl": [*good[:4], '{"title": "x"}', *good[5:]],
    }
    for name, lines in texts.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress("\n".join(good).encode())[:-20])
    (folder / "folder.jsonl").mkdir()
    (folder / "gpt2-like").mkdir()
    (folder / "gpt2-like" / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "gpt2-like" / "tokenizer.json").write_text("{}")
    save_file({"wte.weight": np.ones((4, 2), np.float32)}, folder / "gpt2-like" / "model.safetensors")
    (folder / "no-weights").mkdir()
    (folder / "no-weights" / "config.json").write_text("{}")
    return folder


# arguments ({files}: the folder above), and what the answer must say
BAD_OF_ALL = {
    "missing file": ("--data nowhere.jsonl", "'nowhere.jsonl' does not exist"),
    "empty file": ("--data {files}/empty.jsonl", "is empty"),
    "one document": ("--data {files}/one.jsonl", "too few documents"),
    "malformed line": ("--data {files}/malformed.jsonl", "line 3"),
    "line without text": ("--data {files}/no_text.jsonl", "line 5"),
    "truncated gzip": ("--data {files}/cut.jsonl.gz", "cannot be read to its end"),
    "wrong extension": ("--data {files}/good.txt", "good.txt"),
    "folder as data": ("--data {files}/folder.jsonl", "is a folder"),
    "no such user's file": ("--data ~nosuchuser/chat.jsonl", "~nosuchuser/chat.jsonl"),
    "file name too long": (f"--data {TOO_LONG}.jsonl", "aaa"),
    # with a second mistake, so that no study starts where the first one is overlooked
    "no data": ("--data= --trials 3", "data ''"),
    "no embedding": ("--embedding= --trials 3", "embedding ''"),
    "unknown embedding folder": ("--embedding ./models/none", "'./models/none' does not exist"),
    "embedding without weights": ("--embedding {files}/no-weights", "has no"),
    "model without a hub": ("--embedding gpt2", "'gpt2' is not in the local cache and the Hugging Face hub cannot"),
    "data without a hub": ("--data ultrachat", "ultrachat_200k' is not in the local cache and the Hugging Face hub"),
    "no samples": ("--samples 0", "--samples: must be a whole number of at least 1, not '0'"),
    "negative samples": ("--samples -1", "not '-1'"),
    "samples in words": ("--samples x", "not 'x'"),
    "too few samples": ("--samples 1 --data {files}/good.jsonl", "too few documents"),
    "no epochs": ("--epochs 0", "--epochs: must be a whole number of at least 1, not '0'"),
    "a dim of nothing": ("--context-dims 0", "not '0'"),
    "dims in letters": ("--context-dims a,b", "not 'a'"),
    "no dims": ("--context-dims=", "--context-dims: must be a whole number of at least 1, not ''"),
    "a dim missing": ("--context-dims 8,,16", "not ''"),
    "small vocabulary": ("--vocab-size 10", "vocab_size must be at least 257 (the bytes and one merge), not 10"),
    "vocabulary of a model": ("--vocab-size 300 --embedding {files}/gpt2-like", "belong to --embedding bigram"),
    "absent GPU": ("--gpus-per-trial 1", "--gpus-per-trial 1: this machine has no usable GPUs"),
    "a GPU and a half": ("--gpus-per-trial 1.5", "a fraction up to 1 or a whole number, not '1.5'"),
    "negative GPUs": ("--gpus-per-trial -1", "not '-1'"),
    "nan GPUs": ("--gpus-per-trial nan", "not 'nan'"),
    "no CPUs": ("--cpus-per-trial 0", "--cpus-per-trial: must be more than 0"),
    "absent CPUs": ("--cpus-per-trial 9999", "--cpus-per-trial 9999: this "),
    "no cluster there": ("--address 127.0.0.1:1", "no Ray cluster listens at 127.0.0.1:1"),
    "a cluster's client": ("--address ray://127.0.0.1:1", "run the same command on any of the cluster's hosts"),
    "no address": ("--address nonsense", "--address must be auto or HOST:PORT, not 'nonsense'"),
    "name of a path": ("--name a/b", "not 'a/b'"),
    "no name": ("--name=", "--name: must be letters"),
    "long name": (f"--name {TOO_LONG}", "at most 100"),
    "plain folder as tracking": ("--tracking-uri file:/x", "not 'file:/x'"),
    "port in letters": ("--tracking-uri http://u:hidden@127.0.0.1:abc", "not 'http://u:***@127.0.0.1:abc'"),
    "negative seed": ("--seed -1", "--seed: must be a whole number from 0 to 2^63-1, not '-1'"),
    "large seed": (f"--seed {1 << 63}", "--seed: must be a whole number from 0 to 2^63-1"),
    "unknown preset": ("--preset paper", "invalid choice: 'paper'"),
    "unknown option": ("--learning-rate 3", "unrecognized arguments: --learning-rate 3"),
    "stray word": ("pydoc", "unrecognized arguments: pydoc"),
}
BAD_OF_SAMPLED = {
    "fewer trials than cells": ("--trials 3", "--trials must be at least 4, the cells that come first, not 3"),
    "no trials": ("--trials 0", "not '0'"),
    "abbreviation": ("--trial 5", "unrecognized arguments: --trial 5"),
    "unknown sampler": ("--sampler grid", "invalid choice: 'grid'"),
}
BAD_OF_GRID = {
    "trials do not apply": ("--trials 5", "unrecognized arguments: --trials 5"),
    "sampler does not apply": ("--sampler gp", "unrecognized arguments: --sampler gp"),
    "abbreviation": ("--context-dim 8", "unrecognized arguments: --context-dim 8"),
}
BAD_OF_UI = {
    "no store": ("--port 5001", "error: no MLflow store in"),
    "port in letters": ("--port x", "--port: invalid int value: 'x'"),
    "no such port": ("--port 99999", "99999"),
    "abbreviation": ("--por 5001", "unrecognized arguments: --por 5001"),
}
BY_SUBPROCESS = [
    *((SAMPLED, case, *BAD_OF_ALL[case]) for case in BAD_OF_ALL),
    *((SAMPLED, case, *BAD_OF_SAMPLED[case]) for case in BAD_OF_SAMPLED),
    *((GRID, case, *BAD_OF_ALL[case]) for case in ("malformed line", "model without a hub")),
    *((GRID, case, *BAD_OF_GRID[case]) for case in BAD_OF_GRID),
    *((UI, case, *BAD_OF_UI[case]) for case in BAD_OF_UI),
]


@pytest.mark.parametrize(
    ("entry", "arguments", "said"),
    [pytest.param(entry, *rest, id=f"{entry[:-3]}-{case}") for entry, case, *rest in BY_SUBPROCESS],
)
def test_an_entry_answers_a_mistake_in_one_sentence_before_anything_starts(
    entry: str, arguments: str, said: str, cwd: Path, files: Path
) -> None:
    answer = ask(entry, *arguments.format(files=files).split(), cwd=cwd)
    assert answer.code == 2
    assert said in answer.message
    assert len(answer.message.splitlines()) == 1
    assert re.match(rf"({re.escape(entry)}: )?error: ", answer.message)
    assert answer.out == ""
    assert list(cwd.iterdir()) == []
    assert answer.imported & HEAVY == set()
    assert "argparse" in answer.imported  # what was imported was indeed seen
    assert answer.seconds < LIMIT


@pytest.mark.parametrize("entry", [SAMPLED, GRID])
def test_a_server_that_is_not_there_is_one_sentence_before_anything_starts(entry: str, cwd: Path) -> None:
    """MLflow's client is imported to ask, nothing else."""
    answer = ask(entry, "--tracking-uri", "http://127.0.0.1:9", cwd=cwd)
    assert (answer.code, answer.out) == (2, "")
    assert "error: no MLflow server answers at http://127.0.0.1:9" in answer.message
    assert len(answer.message.splitlines()) == 1
    assert list(cwd.iterdir()) == []
    assert answer.imported & HEAVY <= {"mlflow", "pandas"}
    assert answer.seconds < 2 * LIMIT


def test_a_cluster_that_says_nothing_is_given_up(cwd: Path) -> None:
    with answering(None) as server:
        answer = ask(SAMPLED, "--address", server.removeprefix("http://"), cwd=cwd)
    assert answer.code == 2
    assert f"no Ray cluster answers at {server.removeprefix('http://')} within" in answer.message
    assert len(answer.message.splitlines()) == 1
    assert list(cwd.iterdir()) == []
    assert answer.seconds < ANSWERS_WITHIN + LIMIT


def test_what_is_no_cluster_is_refused_in_time(cwd: Path) -> None:
    with another_http2_service() as address:
        answer = ask(SAMPLED, "--address", address, cwd=cwd)
    assert (answer.code, answer.out) == (2, "")
    assert f"no Ray cluster answers at {address} (" in answer.message
    assert len(answer.message.splitlines()) == 1
    assert list(cwd.iterdir()) == []
    assert answer.seconds < ANSWERS_WITHIN + LIMIT


@pytest.mark.parametrize("entry", [SAMPLED, GRID, UI])
def test_records_in_a_file_are_refused(entry: str, cwd: Path) -> None:
    (cwd / "file").write_text("mine")
    for given in ("file", "file/below"):
        answer = ask(entry, "--mlruns", given, cwd=cwd, mlruns=False)
        assert (answer.code, len(answer.message.splitlines())) == (2, 1)
        assert given in answer.message
    assert (cwd / "file").read_text() == "mine"
    assert list(cwd.iterdir()) == [cwd / "file"]


@pytest.mark.parametrize("name", ["optuna.db", "mlflow.db"])
def test_a_database_that_is_none_is_refused(cwd: Path, name: str) -> None:
    folder = cwd / "mine"
    folder.mkdir()
    (folder / name).write_text("mine")
    answer = ask(GRID, "--mlruns", "mine", cwd=cwd, mlruns=False)
    assert (answer.code, answer.imported & HEAVY) == (2, set())
    said = f"error: --mlruns mine: {folder / name} is no SQLite database (file is not a database)"
    assert answer.message == said


@pytest.mark.parametrize("inside", ["", "artifacts", "cache", "studies"])
def test_a_records_folder_that_may_not_be_written_is_refused(cwd: Path, inside: str) -> None:
    folder = cwd / "mine" / inside
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    answer = ask(GRID, "--mlruns", "mine", cwd=cwd, mlruns=False)
    folder.chmod(0o755)
    assert (answer.code, answer.imported & HEAVY) == (2, set())
    assert answer.message == f"error: --mlruns mine: {folder} is not a folder that can be written to"


@pytest.mark.parametrize("entry", [SAMPLED, GRID, UI])
def test_help_is_quick_and_writes_nothing(entry: str, cwd: Path) -> None:
    answer = ask(entry, "--help", cwd=cwd)
    assert (answer.code, answer.message) == (0, "")
    assert answer.seconds < LIMIT
    assert answer.imported & HEAVY == set()
    assert list(cwd.iterdir()) == []


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {a.option_strings[-1]: a for a in parser._actions if a.dest != "help"}


@pytest.mark.parametrize("sampled", [True, False])
def test_help_names_every_option_with_its_default(sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    parser = build_parser("x", sampled)
    text = parser.format_help()
    for name in options_of(parser):
        said = re.search(rf"^  {name} .*?(?=^  --|^\w|\Z)", text, re.MULTILINE | re.DOTALL)
        assert said is not None, name
        # where nothing is the default, what happens then is said
        assert "default: " in said[0] or "instead of" in said[0], name


def test_defaults_in_the_help_are_those_of_the_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    text = build_parser("x", sampled=True).format_help()
    for name, make in PRESETS.items():
        assert f"{name} {make().phase2.epochs}" in text
        assert f"{name} {','.join(map(str, make().context_dims))}" in text


def test_a_grid_offers_all_options_but_those_of_a_sampler() -> None:
    sampled, grid = (options_of(build_parser("x", kind)).keys() for kind in (True, False))
    assert sampled - grid == {"--trials", "--sampler", "--scheduler", "--plateau"}
    assert grid - sampled == set()


def settings(cwd: Path, *arguments: str, sampled: bool = True) -> StudySettings:
    parsed = build_parser("x", sampled).parse_args(["--mlruns", str(cwd / "records"), *arguments])
    return check(parsed, sampled)


def test_the_default_is_the_demo(cwd: Path) -> None:
    demo = PRESETS["demo"]()
    default = settings(cwd)
    assert (default.data.kind, default.embedding.kind) == ("pydoc", "bigram")
    assert (default.base.bigram, default.base.phase2) == (demo.bigram, demo.phase2)
    assert (default.context_dims, default.base.context_dim) == (demo.context_dims, demo.context_dim)
    assert (default.trials, default.sampler, default.base.seed) == (12, DEFAULT_SAMPLER, 0)


def test_checking_writes_nothing(cwd: Path) -> None:
    settings(cwd)
    assert list(cwd.iterdir()) == []


def test_a_grid_takes_the_dim_of_the_cells(cwd: Path) -> None:
    assert settings(cwd, sampled=False).context_dims == (PRESETS["demo"]().context_dim,)


def test_options_override_the_preset(cwd: Path, files: Path) -> None:
    given = f"--data {files}/good.jsonl --samples 50 --epochs 3 --seed 7 --vocab-size 300 --embedding-dim 24"
    base = settings(cwd, *given.split()).base
    assert (base.data, base.samples, base.phase2.epochs, base.seed) == (f"{files}/good.jsonl", 50, 3, 7)
    assert base.bigram is not None
    assert (base.bigram.vocab_size, base.bigram.embedding_dim) == (300, 24)


def test_an_option_leaves_the_rest_of_the_preset(cwd: Path) -> None:
    demo = PRESETS["demo"]()
    assert settings(cwd, "--epochs", "3").base.phase2.batch_size == demo.phase2.batch_size
    changed = settings(cwd, "--embedding-dim", "24").base.bigram
    assert changed is not None
    assert changed.vocab_size == demo.bigram.vocab_size


def test_data_is_named_by_its_content(cwd: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    one, other = settings(cwd, "--data", "good.jsonl"), settings(cwd, "--data", f"{files}/../{files.name}/good.jsonl")
    assert one.base.config_hash() == other.base.config_hash()


@pytest.mark.parametrize("dims", ["32,8,16", "8, 16, 32", "8,8,16,32"])
def test_dims_are_sorted_and_counted_once(cwd: Path, dims: str) -> None:
    assert settings(cwd, "--context-dims", dims).context_dims == (8, 16, 32)


@pytest.mark.parametrize(("dims", "cell"), [("32,48,64", 48), ("8,16", 16), ("96", 96)])
def test_the_cells_take_the_presets_dim_if_listed_else_the_largest(cwd: Path, dims: str, cell: int) -> None:
    assert settings(cwd, "--context-dims", dims).base.context_dim == cell


def test_samples_of_the_preset_are_for_its_own_data_only(cwd: Path) -> None:
    assert settings(cwd, "--preset", "reports", "--data", "pydoc", "--embedding", "bigram").base.samples is None


@pytest.mark.parametrize("given", ["0", "0.0"])
def test_no_gpu_can_be_asked_for_anywhere(cwd: Path, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert settings(cwd, "--gpus-per-trial", given).gpus_per_trial == 0


def test_a_cluster_may_have_what_this_machine_lacks(cwd: Path) -> None:
    assert settings(cwd, "--address", "auto", "--cpus-per-trial", "9999").cpus_per_trial == 9999


def test_records_are_found_from_any_working_folder(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cwd)
    checked = check(build_parser("x", True).parse_args(["--mlruns", "here"]), True)
    assert checked.records.root == cwd / "here"
    assert str(checked.shown_root) == "here"


@pytest.mark.parametrize("uri", ["sqlite:////tmp/a.db", "postgresql://u@h/d"])
def test_databases_are_taken_as_tracking_uri(cwd: Path, uri: str) -> None:
    assert settings(cwd, "--tracking-uri", uri).tracking_uri == uri


def test_docstrings_that_were_left_out_are_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-OO", str(ROOT / "search/asym_layers.py")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: python -OO leaves out the docstrings that Ray needs: start it without -OO\n"
