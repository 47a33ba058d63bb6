"""What breaks from outside: MLflow away, workers that hang or die, one bug in every trial."""

import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import forked
import pytest
from entries import distinct
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from optuna.trial import TrialState
from studies import ROOT, SMALL, mlflow_runs, optuna_trials, start

import trainables.tracking.writer as writer_module
from search.audit.lost_studies import study_ids
from search.ledger.results import load_results
from trainables.errors import unwritable
from trainables.metrics import EPOCH_VAL_PPL, VAL_PPL
from trainables.records import Records
from trainables.reports import Point
from trainables.tracking.operations import (
    EndStudy,
    FailRun,
    FinishRun,
    LogFile,
    LogPoints,
    Operation,
    StartRun,
    StartStudy,
    encode,
    read_journal,
)
from trainables.tracking.study_runs import StudyRuns
from trainables.tracking.tags import REASON_TAG, TRIAL_TAG, trial_tags
from trainables.tracking.writer import BackgroundWriter


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """One store for all tests of this file, since making one takes seconds."""
    return Records.at(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def runs(store: Records, request: pytest.FixtureRequest) -> StudyRuns:
    """A study of this test's own."""
    return StudyRuns(store, request.node.name.replace("[", "-").rstrip("]"), "id")


def one_trial(folder: Path) -> list[Operation]:
    """One trial that finishes and one that fails, and the study's end."""
    (folder / "abc.json").write_text("{}")
    return [
        StartStudy(params={"command": "x.py"}),
        StartRun("abc", name="n", params={"a": 1}, tags=trial_tags(0, None)),
        LogPoints("abc", points=[Point("epoch/val_ppl", 1, 9.0), Point("epoch/val_ppl", 2, 8.0)]),
        LogFile("abc", file=str(folder / "abc.json")),
        FinishRun("abc", figures={"phase2/val_ppl": 8.0}, place={"compute": "fp32"}),
        StartRun("abd", name="m", params={"a": 2}, tags=trial_tags(1, None)),
        FailRun("abd", reason="why", details="the story"),
        EndStudy(status="FINISHED", figures={"phase2/val_ppl": 8.0}, files=[str(folder / "abc.json")]),
    ]


def put_all(writer: BackgroundWriter, operations: list[Operation]) -> None:
    for operation in operations:
        writer.put(operation)
    assert writer.close() == 0


def leave(operations: list[Operation], journal: Path) -> None:
    """As a driver that was killed before MLflow had any."""
    journal.write_text("".join(map(encode, operations)))


def check_whole(study_runs: StudyRuns) -> None:
    client = study_runs.client
    runs = {r.data.tags.get(TRIAL_TAG): r for r in client.search_runs([study_runs.experiment_id])}
    assert len(client.search_runs([study_runs.experiment_id])) == 3
    assert {number: r.info.status for number, r in runs.items()} == {None: "FINISHED", "0": "FINISHED", "1": "FAILED"}
    assert [runs[number].data.params for number in (None, "0", "1")] == [{"command": "x.py"}, {"a": "1"}, {"a": "2"}]
    curves = {("0", "epoch/val_ppl"): [(1, 9.0), (2, 8.0)]}
    figures = {(number, "phase2/val_ppl"): [(0, 8.0)] for number in (None, "0")}
    for (number, name), points in (curves | figures).items():
        history = client.get_metric_history(runs[number].info.run_id, name)
        assert [(m.step, m.value) for m in history] == points
    assert runs["1"].data.tags[REASON_TAG] == "why"
    files = [[a.path for a in client.list_artifacts(runs[number].info.run_id)] for number in (None, "0", "1")]
    assert files == [["abc.json"], ["abc.json"], ["error.txt"]]


# All that a study's runs call after they were opened.
CALLS = (
    "create_run", "update_run", "set_terminated", "search_runs", "get_run", "get_metric_history", "log_batch",
    "set_tag", "delete_tag", "log_artifact", "log_artifacts", "log_text",
)  # fmt: skip


@pytest.mark.parametrize("lost", ["request", "answer"])
@pytest.mark.parametrize("calls", range(18))
def test_an_outage_at_any_call_loses_and_doubles_nothing(
    runs: StudyRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, lost: str
) -> None:
    """MLflow is away from a call on, for three calls; of the first one it may have been the answer that got lost."""
    monkeypatch.setattr(writer_module, "RETRY_SECONDS", 0.0)
    said: list[str] = []
    made = 0

    def through(call: Callable[..., object]) -> Callable[..., object]:
        def called(*args: object, **kwargs: object) -> object:
            nonlocal made
            made += 1
            if calls < made <= calls + 3:
                if made == calls + 1 and lost == "answer":
                    call(*args, **kwargs)
                raise ConnectionError("refused")
            return call(*args, **kwargs)

        return called

    writer = BackgroundWriter(runs, tmp_path / "journal", said.append)
    for name in CALLS:
        monkeypatch.setattr(runs.client, name, through(getattr(runs.client, name)))
    put_all(writer, one_trial(tmp_path))
    monkeypatch.undo()
    assert made > 18, "an outage at each call"
    check_whole(runs)
    assert read_journal(tmp_path / "journal") == []
    assert [text.split(":")[0] for text in said] == ["MLflow is away", "MLflow is back"]
    assert not writer.refused


def test_a_file_that_is_gone_holds_nothing_up(store: Records, runs: StudyRuns, tmp_path: Path) -> None:
    leave(one_trial(tmp_path), tmp_path / "journal")
    (tmp_path / "abc.json").unlink()
    said: list[str] = []
    again = BackgroundWriter(StudyRuns(store, runs.study, "id"), tmp_path / "journal", said.append)
    assert [text.split(",")[0].split(" of ")[0] for text in said] == [
        "MLflow refused log_file",
        "MLflow refused end_study",
    ]
    assert again.refused
    assert again.runs.find("abc").info.status == "FINISHED"


def test_a_folder_of_artifacts_that_may_not_be_written_is_no_outage(
    runs: StudyRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run ends all the same, and what is lacking is said."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", "artifacts")

    for name in ("log_artifact", "log_artifacts", "log_text"):
        monkeypatch.setattr(runs.client, name, refuse)
    said: list[str] = []
    writer = BackgroundWriter(runs, tmp_path / "journal", said.append)
    put_all(writer, one_trial(tmp_path))
    assert writer.refused
    assert [text.split(" of ")[0] for text in said] == [
        f"MLflow refused {verb}" for verb in ("log_file", "fail_trial", "end_study")
    ]
    assert all(text.endswith("[Errno 13] Permission denied: 'artifacts'") for text in said)
    ended = {r.data.tags.get(TRIAL_TAG): r.info.status for r in runs.client.search_runs([runs.experiment_id])}
    assert ended == {None: "FINISHED", "0": "FINISHED", "1": "FAILED"}


def test_a_full_disk_leaves_the_journal_whole(runs: StudyRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, over = tmp_path / "journal", Event()
    monkeypatch.setattr(runs, "apply", lambda operation: over.wait())  # MLflow has not answered yet
    writer = BackgroundWriter(runs, journal, print)
    writer.put(StartStudy(params={}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 20, resource.RLIM_INFINITY))
    try:
        with pytest.raises(OSError, match="No space left on device") as error:
            writer.put(StartStudy(params={"command": "x.py"}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert unwritable(error.value)
    writer.put(StartStudy(params={"seed": 1}))
    assert read_journal(journal) == [StartStudy(params={}), StartStudy(params={"seed": 1})]
    over.set()
    assert writer.close() == 0
    assert read_journal(journal) == []


def test_what_mlflow_was_not_told_is_told_at_the_next_start(store: Records, runs: StudyRuns, tmp_path: Path) -> None:
    leave(one_trial(tmp_path), tmp_path / "journal")
    with (tmp_path / "journal").open("a") as file:
        file.write('["log_series", "abc", {"poin')
    again = StudyRuns(store, runs.study, "id")
    BackgroundWriter(again, tmp_path / "journal", print)
    assert read_journal(tmp_path / "journal") == []
    again.apply(EndStudy(status="FINISHED", figures={}, files=[]))
    check_whole(again)


@pytest.mark.parametrize(("text", "shown"), [("no such thing\nmore", "no such thing"), ("", "MlflowException")])
def test_a_refusal_is_said_and_holds_nothing_up(
    runs: StudyRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, shown: str
) -> None:
    said: list[str] = []
    writer = BackgroundWriter(runs, tmp_path / "journal", said.append)
    log_batch = runs.client.log_batch

    def refuse(run_id: str, metrics: Sequence[object] = (), **rest: Any) -> None:
        if metrics:
            raise MlflowException(text, INVALID_PARAMETER_VALUE)
        log_batch(run_id, **rest)

    monkeypatch.setattr(runs.client, "log_batch", refuse)
    start, points = StartRun("abc", name="n", params={}, tags={}), [Point("epoch/val_ppl", 1, 9.0)]
    put_all(writer, [start, LogPoints("abc", points=points), FailRun("abc", reason="why")])
    assert said[0].endswith(f"goes on without it: {shown}")
    assert writer.refused
    assert REASON_TAG in runs.find("abc").data.tags


def test_a_bug_in_the_writer_is_raised_in_the_study(
    runs: StudyRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(operation: Operation) -> None:
        raise KeyError(operation.key)

    monkeypatch.setattr(runs, "apply", broken)
    writer = BackgroundWriter(runs, tmp_path / "journal", print)
    writer.put(FinishRun("abc", figures={}))
    with pytest.raises(KeyError, match="abc"):
        writer.close()


FAULTY = """
import os, signal, sys, time
import ray, search.execution.recorder, search.execution.searcher, search.execution.tuner
import trainables.two_phase
from search.driver import main
from trainables.tracking.writer import BackgroundWriter
import search.context_modes as entry

def broken(config, *, cache, **rest):
    raise RuntimeError(f"bug at {time.time()}")

def stuck(config, *, cache, **rest):
    os.kill(os.getpid(), signal.SIGSTOP)

def full(config, *, cache, **rest):
    raise OSError(28, os.strerror(28), cache)

def tight(config, **rest):
    import torch, trainables.pipeline, trainables.two_phase
    fit = trainables.pipeline.fit_phase2
    def fit_phase2(model, *rest):
        if model.config.context_mode != "previous_only":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return fit(model, *rest)
    trainables.pipeline.fit_phase2 = fit_phase2
    try:
        trainables.two_phase.two_phase(config, **rest)
    finally:
        trainables.pipeline.fit_phase2 = fit

def unwritten(config, **rest):
    trainables.two_phase.two_phase(config, **rest)

untold = pressure = unwritten

def break_records(fault):
    # in the driver: the second trial's record cannot be written, or what the fourth one came to is not handed on
    owner, name, call, at = {
        "unwritten": (search.execution.recorder, "write_trial_record", search.execution.recorder.write_trial_record, 2),
        "untold": (BackgroundWriter, "put", BackgroundWriter.put, 4),
    }[fault]
    calls = 0

    def counting(*arguments, **rest):
        nonlocal calls
        calls += fault == "unwritten" or arguments[1].verb == "finish_trial"
        if calls == at:
            calls += 1
            raise KeyError("no place for it")
        return call(*arguments, **rest)

    setattr(owner, name, counting)

def break_ray():
    # as where Ray's watch over the host's memory ends a worker: Tune ends with an error that this one is behind
    suggest, calls = search.execution.searcher.LedgerSearcher.suggest, 0

    def failing(self, trial_id):
        nonlocal calls
        calls += 1
        if calls in (3, 5):
            raise RuntimeError("unexpected") from ray.exceptions.OutOfMemoryError("the node is low on memory. More.")
        return suggest(self, trial_id)

    search.execution.searcher.LedgerSearcher.suggest = failing

def study(settings):
    return entry.study(settings)

if __name__ == "__main__":
    fault = sys.argv.pop(1)
    search.execution.tuner.run_trials.__defaults__ = (globals()[fault],)
    if fault in ("unwritten", "untold"):
        break_records(fault)
    if fault == "pressure":
        break_ray()
    sys.exit(main("Trials with a fault.", study, sampled=False))
"""


def start_faulty(fault: str, data: Path, folder: Path, root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The study of modes at one D, one trial at a time, each with this fault."""
    entry = folder / "faulty.py"
    entry.write_text(FAULTY)
    line = [sys.executable, str(entry), fault, "--data", str(data), "--mlruns", str(root), *SMALL, "--epochs", "1"]
    line += ["--context-dims", "8", "--max-concurrent", "1", *options]
    return forked.run(line)


@pytest.mark.slow
def test_one_error_after_the_other_stops_the_study_and_is_run_again_once_mended(
    chat_file: Path, tmp_path: Path, root: Path
) -> None:
    done = start_faulty("broken", chat_file, tmp_path, root)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "stopped: one trial after the other failed with RuntimeError: bug at" in " ".join(done.stdout.split())
    assert [t.state for t in optuna_trials(root)] == [TrialState.FAIL] * 3
    mended = start(ROOT / "search/context_modes.py", chat_file, root, "--epochs", "1", "--context-dims", "8")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert f"{distinct()} trials finished, 0 failed" in mended.stdout
    assert [r.info.status for r in mlflow_runs(root)[1]] == ["FINISHED"] * distinct()


@pytest.mark.slow
def test_an_error_of_the_record_keeping_ends_the_study_and_the_next_run_is_right(
    chat_file: Path, tmp_path: Path, root: Path
) -> None:
    for fault, states in (
        ("unwritten", ["COMPLETE", "FAIL"]),
        ("untold", ["COMPLETE", "FAIL"] + ["COMPLETE"] * (distinct() - 1)),
    ):
        done = start_faulty(fault, chat_file, tmp_path, root)
        assert done.returncode == 1, done.stdout + done.stderr
        assert done.stderr.strip().splitlines()[-1] == "KeyError: 'no place for it'"
        assert "TuneError" not in done.stderr
        trials = optuna_trials(root)
        assert [t.state.name for t in trials] == states
        assert trials[1].user_attrs["reason"] == "interrupted"
        assert [r.info.status for r in mlflow_runs(root)[1]].count("KILLED") == 1
    again = start(ROOT / "search/context_modes.py", chat_file, root, "--epochs", "1", "--context-dims", "8")
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{distinct()} trials finished, 0 failed in all; 0 ran now" in again.stdout
    _, children, client = mlflow_runs(root)
    assert [r.info.status for r in children] == ["FINISHED"] * distinct()
    for run in children:
        for name in (EPOCH_VAL_PPL, VAL_PPL):
            assert len(client.get_metric_history(run.info.run_id, name)) == 1


@pytest.mark.slow
def test_a_study_goes_on_where_ray_breaks_off(chat_file: Path, tmp_path: Path, root: Path) -> None:
    done = start_faulty("pressure", chat_file, tmp_path, root, "--max-concurrent", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Ray: the node is low on memory: the trials that ran are run again") == 2
    assert f"{distinct()} trials finished, 0 failed in all; {distinct()} ran now" in done.stdout
    assert {t.user_attrs.get("reason") for t in optuna_trials(root)} <= {None, "interrupted"}
    assert [r.info.status for r in mlflow_runs(root)[1]] == ["FINISHED"] * distinct()


@pytest.mark.slow
def test_a_workers_full_disk_stops_the_study_at_once_and_costs_no_trial(
    chat_file: Path, tmp_path: Path, root: Path
) -> None:
    done = start_faulty("full", chat_file, tmp_path, root)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "mend it, and the same command runs these trials again and continues" in " ".join(done.stdout.split())
    (trial,) = optuna_trials(root)
    assert "No space left on device" in trial.user_attrs["reason"]
    assert load_results("small", root / "optuna.db").failed() == []


def test_records_that_cannot_be_written_are_one_sentence(chat_file: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # too little for a database

    line = [sys.executable, str(ROOT / "search/context_modes.py"), "--data", str(chat_file), *SMALL]
    line += ["--mlruns", str(tmp_path / "r")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False, preexec_fn=limit)
    assert done.returncode == 1, done.stdout + done.stderr
    (said,) = done.stderr.splitlines()
    assert said.startswith("error: the study stops (")
    assert said.endswith("); once that is mended, the same command continues it")
    assert not list((tmp_path / "r").glob("*.db"))


@pytest.mark.slow
def test_a_trial_whose_worker_is_stuck_is_ended_with_a_reason(chat_file: Path, tmp_path: Path, root: Path) -> None:
    done = start_faulty("stuck", chat_file, tmp_path, root, "--trial-timeout", "0.05")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed: no progress for 0.05 min" in done.stdout
    _, children, _ = mlflow_runs(root)
    assert [r.info.status for r in children] == ["FAILED"] * 3
    assert {r.data.tags[REASON_TAG] for r in children} == {"no progress for 0.05 min"}


@pytest.mark.slow
def test_trials_that_do_not_fit_the_memory_are_outcomes_and_the_study_goes_on(
    chat_file: Path, tmp_path: Path, root: Path
) -> None:
    done = start_faulty("tight", chat_file, tmp_path, root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 trials finished, 4 failed" in done.stdout
    reason = "infeasible: does not fit the GPU's memory, nor with half the chunks: CUDA out of memory."
    trials = optuna_trials(root)
    assert sorted(t.state.name for t in trials) == ["COMPLETE"] + 4 * ["FAIL"]
    assert {t.user_attrs["reason"] for t in trials if t.state == TrialState.FAIL} == {reason}
    _, children, _ = mlflow_runs(root)
    assert sorted(r.info.status for r in children) == 4 * ["FAILED"] + ["FINISHED"]
    assert {r.data.tags[REASON_TAG] for r in children if r.info.status == "FAILED"} == {reason}
    (name,) = study_ids(root / "optuna.db")
    assert len(load_results(name, root / "optuna.db").failed()) == 4  # none will be tried again
    (html,) = root.glob("studies/*/report.html")
    assert html.read_text().count("nor with half the chunks") == 4
