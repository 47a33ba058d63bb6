"""MLflow's runs made from what trials left behind, where a store lacks them."""

import shutil
from pathlib import Path

import pytest
from costless import handed_out, layers_study, value_of
from mlflow.entities import Run

from search.execution.reconcile import complete_mlflow
from search.ledger.ledger import Ledger
from search.ledger.records import TrialRecord, write_trial_record
from trainables.metrics import EPOCH_VAL_PPL, SWEEP_LOSS, VAL_PPL
from trainables.records import Records
from trainables.reports import Point
from trainables.tracking.operations import EndStudy, LogPoints, StartRun, encode, read_journal
from trainables.tracking.study_runs import StudyRuns
from trainables.tracking.tags import (
    COMPUTE_TAG,
    DEVICE_TAG,
    HASH_TAG,
    PHASE1_TAG,
    PRUNED_TAG,
    REASON_TAG,
    REPLICATE_TAG,
    TRIAL_TAG,
)
from trainables.tracking.writer import BackgroundWriter

RUNTIME = {"threads": 1, "gpus": 0.0}
EARLIER = {"device_name": "another machine", "threads": 2, "gpus": 1.0, "compute": "fp32"}
MADE = {"code": "c", "torch": "2.11.0", "device": "cpu", "compute": "fp32"}
CURVES = {EPOCH_VAL_PPL: [(1, 30.0), (2, 25.0)], SWEEP_LOSS: [(step, -0.1 * step) for step in range(2, 30)]}
OUTCOMES = ("finished", "failed", "pruned", "finished")
STUDY = "s"


@pytest.fixture
def records(root: Path) -> Records:
    return Records.at(root)


@pytest.fixture
def ledger(records: Records) -> Ledger:
    """Four trials and a replicate of the first, each with its record; of one trial it is damaged."""
    ledger = Ledger(layers_study(trials=4), STUDY, records.optuna_database, seeds=2)
    for outcome in (*OUTCOMES, "finished"):
        assignment = handed_out(ledger)
        number, config = assignment.number, assignment.config
        left = TrialRecord(config.config_hash(), number, config.seed, series=CURVES)
        figures = {VAL_PPL: value_of(config)}
        if outcome == "finished":
            left = left.ended(outcome, result={"runtime": EARLIER, "phase1_by": "who"})
            ledger.complete(number, figures, "fp32")
        elif outcome == "failed":
            left = left.ended(outcome, "diverged")
            ledger.fail(number, "diverged", MADE)
        else:
            left = left.ended(outcome, "poor")
            ledger.epoch(number, 1, 30.0)
            ledger.prune(number, "poor", {}, MADE)
        path = records.trial_record(STUDY, config.config_hash())
        write_trial_record(path, left)
        if number == 3:
            path.write_text("damaged")
    return ledger


def told(records: Records, ledger: Ledger, uri: str | None) -> tuple[StudyRuns, dict[str, Run]]:
    """The store after it was made to agree; its runs by trial."""
    study_runs = StudyRuns(records, STUDY, "id", uri)
    writer = BackgroundWriter(study_runs, records.journal(STUDY, uri), pytest.fail)
    complete_mlflow(ledger, writer, study_runs.ended_hashes(), records, RUNTIME)
    writer.put(EndStudy(status="FINISHED", figures={}, files=[]))
    assert writer.close() == 0
    runs = study_runs.client.search_runs([study_runs.experiment_id])
    assert len(runs) == 6
    return study_runs, {run.data.tags[TRIAL_TAG]: run for run in runs if run.info.run_id != study_runs.parent}


def test_a_store_that_has_no_run_gets_them_all_once(records: Records, ledger: Ledger, tmp_path: Path) -> None:
    uri = f"sqlite:///{shutil.copy(records.mlflow_database, tmp_path / 'elsewhere.db')}"
    told(records, ledger, None)
    for _ in range(2):  # what is there already is not told again
        study_runs, runs = told(records, ledger, uri)
        assert {n for n, run in runs.items() if run.info.status == "FINISHED"} == {"0", "2", "3", "4"}
        assert runs["1"].info.status == "FAILED"
        for number in (0, 1, 2, 4):
            run = runs[str(number)]
            for name, curve in CURVES.items():
                history = study_runs.client.get_metric_history(run.info.run_id, name)
                assert [(m.step, m.value) for m in history] == curve
            files = [file.path for file in study_runs.client.list_artifacts(run.info.run_id)]
            assert files == [f"{run.data.tags[HASH_TAG]}.json"]
        for trial in (*ledger.finished(), *ledger.replicates()):
            history = study_runs.client.get_metric_history(runs[str(trial.number)].info.run_id, VAL_PPL)
            assert [m.value for m in history] == [trial.value]
        assert runs["3"].data.metrics.keys() == {VAL_PPL}
        assert [runs[n].data.tags.get(DEVICE_TAG) for n in "0123"] == ["another machine", None, None, None]
        assert [runs[n].data.params["threads"] for n in "0123"] == ["2", "1", "1", "1"]
        assert {n: run.data.tags.get(COMPUTE_TAG) for n, run in runs.items()} == {
            "0": "fp32", "1": None, "2": None, "3": "fp32", "4": "fp32"
        }  # fmt: skip
        assert {n: run.data.tags.get("code") for n, run in runs.items()} == {
            "0": None, "1": "c", "2": "c", "3": None, "4": None
        }  # fmt: skip
        assert (runs["0"].data.tags[PHASE1_TAG], runs["1"].data.tags[REASON_TAG]) == ("who", "diverged")
        assert (runs["2"].data.tags[PRUNED_TAG], runs["4"].data.tags[REPLICATE_TAG]) == ("poor", "0")


def test_what_one_store_was_not_told_is_kept_for_it(records: Records, tmp_path: Path) -> None:
    """A driver was killed, and the next one's runs go elsewhere; then back."""
    uri = f"sqlite:///{shutil.copy(records.mlflow_database, tmp_path / 'elsewhere.db')}"
    journal = records.journal(STUDY, None)
    journal.parent.mkdir(parents=True)
    StudyRuns(records, STUDY, "id")
    journal.write_text(encode(StartRun("abc", name="n", params={}, tags={})))
    away = StudyRuns(records, STUDY, "id", uri)
    BackgroundWriter(away, records.journal(STUDY, uri), pytest.fail)
    assert len(away.client.search_runs([away.experiment_id])) == 1
    assert len(read_journal(journal)) == 1
    back = StudyRuns(records, STUDY, "id")
    BackgroundWriter(back, journal, pytest.fail)
    assert back.run_id("abc")
    assert read_journal(journal) == []


def test_what_was_meant_for_an_emptied_store_is_not_told(records: Records, tmp_path: Path) -> None:
    emptied = f"sqlite:///{shutil.copy(records.mlflow_database, tmp_path / 'emptied.db')}"
    journal = records.journal(STUDY, None)
    journal.parent.mkdir(parents=True)
    StudyRuns(records, STUDY, "id")
    journal.write_text(encode(LogPoints("abc", points=[Point(EPOCH_VAL_PPL, 1, 9.0)])))  # its run was started before
    # says nothing: the trial's record has it
    BackgroundWriter(StudyRuns(records, STUDY, "id", emptied), journal, pytest.fail)
    assert read_journal(journal) == []
