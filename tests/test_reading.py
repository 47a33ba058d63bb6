"""Somebody else's records, which may only be read: looked at, reported on, trained from, as root too."""

import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from entries import context_modes
from made_up import BASE, modes, run
from mlflow.tracking import MlflowClient
from permissions import everything, only_readable, run_obeying, start_obeying
from studies import SMALL, mlflow_runs, start

from search.audit.mending import mend_leaderboard, mend_mlflow
from search.audit.mlflow_checks import Runs
from search.audit.trial_checks import Trials
from search.ledger.results import load_results
from trainables.records import Records
from trainables.tracking.places import in_use
from trainables.tracking.study_runs import ROLE_TAG

ROOT = Path(__file__).parents[1]
STUDY = "made-up"
STRANGE = "a%20b?c#d::[e]{f} g'h\"i ü日本" + "x" * 150  # bytes: 200


@pytest.fixture(scope="module")
def theirs(earlier_records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A records folder that was moved after its study had ended, in a place of a strange name."""
    records = Records.at(Path(shutil.copytree(earlier_records, tmp_path_factory.mktemp("theirs") / "before")))
    run(context_modes(BASE, (16,)), records, modes)
    results = load_results(STUDY, records.optuna_database)
    mend_mlflow(results, [], Runs([], set(), set()), Trials([], {}, frozenset()), records, pytest.fail)
    mend_leaderboard(results, records)
    records.use_write_ahead_logs()
    return Path(shutil.move(records.root, records.root.with_name("a%20b?c#d [e] ü")))


def script(name: str, root: Path, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / name), "--mlruns", str(root), *options]


def test_a_report_is_written_elsewhere(theirs: Path, tmp_path: Path) -> None:
    out = tmp_path / "new %20 [x]" / "report"
    with only_readable(theirs):
        refused = run_obeying(script("search/report.py", theirs, STUDY))
        done = run_obeying(script("search/report.py", theirs, STUDY, "--out", str(out)))
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert refused.stderr.startswith(f"error: give --out FOLDER: {Records.at(theirs).study(STUDY)} is not a folder")
    assert (done.returncode, done.stderr) == (0, "")
    assert {file.name for file in out.iterdir()} == {"leaderboard.csv", "best.json", "report.html", "report.md"}
    assert (out / "best.json").read_text() == (Records.at(theirs).study(STUDY) / "best.json").read_text()
    assert str(out / "report.md") in done.stdout


def test_the_doctor_finds_nothing_wrong_and_writes_nothing(theirs: Path) -> None:
    with only_readable(theirs):
        done = run_obeying(script("search/doctor.py", theirs, "--json"))
        refused = run_obeying(script("search/doctor.py", theirs, "--repair"))
    assert (done.returncode, done.stderr, json.loads(done.stdout)["findings"]) == (0, "", [])
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answer(port: int, path: str, process: subprocess.Popen[str]) -> Any:
    """What the UI's server says, once it is up."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
                return json.load(response)
        except OSError:
            assert process.poll() is None
            time.sleep(0.2)
    raise AssertionError("the UI never answered")


API = "/api/2.0/mlflow"


@pytest.mark.slow
def test_the_ui_shows_runs_and_files_of_a_moved_folder(theirs: Path, tmp_path: Path) -> None:
    said = look(script("search/ui.py", Path(shutil.copytree(theirs, tmp_path / "mine"))), tmp_path / "mine")
    assert "copy" not in said


@pytest.mark.slow
@pytest.mark.parametrize("why", ["it may only be read", "a study runs on it by another path"])
def test_the_ui_shows_a_copy_of_what_is_not_to_be_written_to(theirs: Path, tmp_path: Path, why: str) -> None:
    (tmp_path / "scratch").mkdir()
    command = ["env", f"TMPDIR={tmp_path / 'scratch'}", *script("search/ui.py", theirs)]
    if why == "it may only be read":
        with only_readable(theirs):
            said = look(command, theirs)
        assert f"{theirs}/: may only be read. MLflow shows a copy" in said
    else:
        mine = Path(shutil.copytree(theirs, tmp_path / "mine"))
        with in_use(Records.at(mine)):
            seen = Path(shutil.move(mine, tmp_path / "mounted"))
            before = places(Records.at(seen))
            said = look([*command[:-1], str(seen)], seen)
        assert f"by another path ({mine}): use that one, or wait until it has ended. MLflow shows a copy" in said
        assert places(Records.at(seen)) == before
        assert not mine.exists()
    assert not list((tmp_path / "scratch").rglob("*.db"))


def places(records: Records) -> list[tuple[str]]:
    with closing(sqlite3.connect(records.mlflow_database)) as connection:
        return connection.execute("SELECT artifact_uri FROM runs").fetchall()


def look(command: list[str], root: Path) -> str:
    """Start the UI on a port of its own and look at a run's files; what it printed."""
    port = free_port()
    process = start_obeying([*command, "--port", str(port)], stdout=subprocess.PIPE)
    try:
        found = answer(port, f"{API}/experiments/get-by-name?experiment_name={STUDY}", process)
        assert found["experiment"]["artifact_location"].startswith(f"{root.as_uri()}/artifacts/")
        run_id = sorted(root.rglob("artifacts/*/*/artifacts/*.json"))[0].parents[1].name
        assert len(answer(port, f"{API}/artifacts/list?run_id={run_id}", process)["files"]) == 1
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    return said


TRIALS = ["--epochs", "1", "--max-concurrent", "1", "--trials"]
NAME = SMALL[SMALL.index("--name") + 1]


@pytest.fixture(scope="module")
def ended(earlier_records: Path, chat_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A records folder after a study of four trials, and the data beside it."""
    folder = tmp_path_factory.mktemp("ended")
    shutil.copytree(earlier_records, folder / "mlruns")
    shutil.copy(chat_file, folder / "data.jsonl")
    done = start("search/asym_layers.py", folder / "data.jsonl", folder / "mlruns", *TRIALS, "4")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_model_is_trained_from_their_study(ended: Path, tmp_path: Path) -> None:
    theirs, out = Path(shutil.copytree(ended / "mlruns", tmp_path / "theirs")), tmp_path / STRANGE / "trained %20 [x]"
    command = script("trainables/train.py", theirs, "--from-study", NAME, "--data", str(ended / "data.jsonl"))
    with only_readable(theirs):
        refused = run_obeying(command)
        done = run_obeying([*command, "--out", str(out), "--register", "theirs"])
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert refused.stderr.endswith("with --out FOLDER it need not be\n")
    assert done.returncode == 0, done.stderr
    own = Records.at(out.parent / "mlruns")
    assert f"{theirs}/ may only be read: records and cache of this go to {own.root}/" in done.stdout
    assert "is the trial's, to the last digit" in done.stdout
    assert MlflowClient(own.tracking_uri).get_model_version_by_alias("theirs", "champion").version == 1


@pytest.mark.slow
def test_their_configuration_is_compared_with_a_baseline(ended: Path, tmp_path: Path) -> None:
    theirs, mine = Path(shutil.copytree(ended / "mlruns", tmp_path / "theirs/mlruns")), tmp_path / "mine"
    mine.mkdir()
    command = script("trainables/train.py", theirs, "--from-study", NAME, "--data", str(ended / "data.jsonl"))
    command += ["--baseline", "gru"]
    with only_readable(theirs.parent):
        refused = run_obeying(command, cwd=theirs.parent)
        done = run_obeying(command, cwd=mine)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert refused.stderr.endswith("; start it in a folder of your own\n")
    assert done.returncode == 0, done.stderr
    own = Records.at(mine / "mlruns")
    assert f"{theirs}/ may only be read: records and cache of this go to {own.root}/" in done.stdout
    client = MlflowClient(own.tracking_uri)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert sorted(run.data.tags[ROLE_TAG] for run in runs) == ["compared: gru", "compared: two-phase"]


@pytest.mark.slow
def test_a_moved_study_goes_on_with_its_moved_data(ended: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(ended, tmp_path / "before"))
    line = [sys.executable, str(ROOT / "search/asym_layers.py"), "--resume", NAME, "--trials", "5", "--mlruns"]
    renamed = run_obeying([*line, str(mine / "mlruns")])  # of the original's data, whose place is on record
    assert renamed.returncode == 0, renamed.stderr
    (mine / "data.jsonl").rename(mine / "moved %20 a::b [x]?#.jsonl")
    moved = Path(shutil.move(mine, tmp_path / STRANGE))
    options = ["--trials", "6", "--data", str(moved / "moved %20 a::b [x]?#.jsonl")]
    before = everything(ended)
    done = run_obeying([*line, str(moved / "mlruns"), *options])
    assert done.returncode == 0, done.stdout + done.stderr
    assert not mine.exists()
    assert everything(ended) == before
    parent, children, client = mlflow_runs(moved / "mlruns")
    assert len(children) == 6
    for child in (parent, *children):
        assert client.list_artifacts(child.info.run_id)
    assert run_obeying(script("search/doctor.py", moved / "mlruns")).returncode == 0


def test_a_study_and_a_training_do_not_begin_under_one_that_runs_by_another_path(
    theirs: Path, chat_file: Path, tmp_path: Path
) -> None:
    mine = Records.at(Path(shutil.copytree(theirs, tmp_path / "mine")))
    with in_use(mine):
        seen = Path(shutil.move(mine.root, tmp_path / "mounted"))
        study = start("search/asym_layers.py", chat_file, seen, "--trials", "4")
        best = str(Records.at(seen).study(STUDY) / "best.json")
        train = script("trainables/train.py", seen, "--config", best, "--data", str(chat_file))
        training, comparison = run_obeying(train), run_obeying([*train, "--baseline", "gru"])
    for done in (study, training, comparison):
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(
            f"error: a study or a training is writing to {seen}/ by another path ({mine.root})"
        )
    assert not mine.root.exists()
