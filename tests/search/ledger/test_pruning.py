"""Trials that are stopped early: what the ledger decides, keeps and answers, without training."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from costless import ask_next, base_config, handed_out, trial
from entries import asym_layers
from optuna.trial import TrialState
from rich.console import Console

from search.execution.recorder import Recorder
from search.execution.searcher import LedgerSearcher
from search.ledger.budgets import Budgets
from search.ledger.ledger import Ledger
from search.ledger.records import read_trial_record
from search.ledger.trials import HASH, METRICS, PROVENANCE, REASON, RECORD, REPEAT_OF
from search.screen import Display
from search.spaces import SCHEDULERS, Study
from trainables.host.digests import Provenance
from trainables.metrics import VAL_ER, VAL_PPL
from trainables.progress import Progress
from trainables.records import Records
from trainables.reports import Collapsed, Failed, Report
from trainables.tracking.operations import FailRun, PruneRun
from trainables.tracking.tags import provenance_tags


def study(scheduler: str, trials: int = 10) -> Study:
    return asym_layers(base_config(), (8, 16), "random", trials, scheduler)


def cells_done(ledger: Ledger, first: float = 20.0, number: int = 4) -> None:
    """Run that many trials with first epochs of `first` and a little more each; none may be stopped."""
    for position in range(number):
        assignment = handed_out(ledger)
        assert ledger.epoch(assignment.number, 1, first + position) is None
        ledger.complete(assignment.number, {VAL_PPL: first + position})


def test_epochs_are_on_record_without_a_scheduler_too(tmp_path: Path) -> None:
    ledger = Ledger(study("none"), "s", tmp_path / "o.db")
    number = handed_out(ledger).number
    assert [ledger.epoch(number, epoch, 90.0 / epoch) for epoch in (1, 2, 3)] == [None] * 3
    assert trial(ledger, number).intermediate_values == {1: 90.0, 2: 45.0, 3: 30.0}


def test_fixed_points_are_never_stopped(tmp_path: Path) -> None:
    ledger = Ledger(study("asha"), "s", tmp_path / "o.db")
    cells_done(ledger)  # each worse than the one before


@pytest.mark.parametrize(("value", "stopped"), [(19.0, False), (90.0, True)])
def test_asha_stops_a_proposal_that_is_worse_than_the_cells(tmp_path: Path, value: float, stopped: bool) -> None:
    ledger = Ledger(study("asha"), "s", tmp_path / "o.db")
    cells_done(ledger)
    reason = ledger.epoch(handed_out(ledger).number, 1, value)
    assert bool(reason) == stopped
    assert (reason or "").startswith("asha: validation perplexity 90.00 after epoch 1") == stopped


def test_first_epoch_judges_the_first_epoch_only_and_lets_the_first_trials_finish(tmp_path: Path) -> None:
    ledger = Ledger(study("first-epoch"), "s", tmp_path / "o.db")
    cells_done(ledger)
    for _ in range(2):  # six have a first epoch before one is judged
        assignment = handed_out(ledger)
        assert ledger.epoch(assignment.number, 1, 90.0) is None
        ledger.complete(assignment.number, {VAL_PPL: 21.5})
    good, bad = handed_out(ledger).number, handed_out(ledger).number
    assert ledger.epoch(good, 1, 20.5) is None
    assert ledger.epoch(good, 2, 99.0) is None
    assert ledger.epoch(bad, 1, 91.0).startswith("first-epoch:")


def test_a_resumed_study_decides_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    ledger = Ledger(study("asha"), "s", tmp_path / "o.db")
    cells_done(ledger)
    cut_off = handed_out(ledger)
    ledger.epoch(cut_off.number, 1, 19.0)
    again = Ledger(study("asha"), "s", tmp_path / "o.db")
    retry = handed_out(again)
    assert retry.config == cut_off.config
    assert again.epoch(retry.number, 1, 19.0) is None
    # the second of six goes on; with the first try counted too it would be the third of seven, and stopped
    assert again.epoch(handed_out(again).number, 1, 19.5) is None


def test_a_pruned_trial_counts_as_made_and_is_no_result(tmp_path: Path) -> None:
    ledger = Ledger(study("asha", trials=5), "s", tmp_path / "o.db")
    cells_done(ledger)
    number = handed_out(ledger).number
    ledger.prune(number, ledger.epoch(number, 1, 90.0), {VAL_ER: 80.0})
    (record,) = Ledger(study("asha", trials=5), "s", tmp_path / "o.db").pruned()
    assert (record.state, record.value) == (TrialState.PRUNED, 90.0)
    assert record.user_attrs[REASON].startswith("asha:")
    assert record.user_attrs[METRICS] == {VAL_ER: 80.0}
    assert (len(ledger.finished()), ledger.failed(), ledger.made()) == (4, [], 5)
    assert ledger.enough(Budgets()) == "all trials of this study are finished"
    assert ledger.ended()[-1] == (None, True)


def test_a_repeat_of_a_pruned_trial_is_answered_alike(tmp_path: Path) -> None:
    ledger = Ledger(study("none"), "s", tmp_path / "o.db")
    first = handed_out(ledger)
    ledger.epoch(first.number, 1, 90.0)
    ledger.prune(first.number, "collapsed", {})
    ask_next(ledger, context_layers=1, token_layers=1, context_mode="final_only")  # the first cell by another name
    following = handed_out(ledger)
    assert following.config.config_hash() != first.config.config_hash()
    (repeat,) = (t for t in ledger.optuna.get_trials() if REPEAT_OF in t.user_attrs)
    assert (repeat.state, repeat.value, repeat.intermediate_values) == (TrialState.PRUNED, 90.0, {1: 90.0})


def test_the_scheduler_is_part_of_the_definition() -> None:
    names = {study(scheduler).default_name("data") for scheduler in SCHEDULERS}
    assert len(names) == len(SCHEDULERS)


@pytest.mark.parametrize(("code", "stopped"), [("old", True), ("new", False)])
def test_a_trial_is_measured_by_those_of_its_own_code_alone(tmp_path: Path, code: str, stopped: bool) -> None:
    ledger = Ledger(study("asha"), "s", tmp_path / "o.db")
    made = {"code": "old", "torch": "2.11.0", "device": "cpu", "compute": "fp32"}
    for position in range(4):
        number = handed_out(ledger).number
        assert ledger.epoch(number, 1, 20.0 + position, made) is None
        ledger.complete(number, {VAL_PPL: 20.0 + position}, "fp32", made)
    assert bool(ledger.epoch(handed_out(ledger).number, 1, 90.0, made | {"code": code})) == stopped
    assert not ledger.epoch(handed_out(ledger).number, 1, 80.0, made | {"code": "newer"})


MADE = Provenance(code="c", torch="2.11.0", device="cpu", compute="fp32")


@pytest.mark.parametrize(
    ("end", "kind"),
    [(Collapsed("collapsed", {VAL_ER: 1.0}), PruneRun), (Failed("diverged"), FailRun)],
)
def test_a_trial_without_a_result_says_what_code_it_was_of(
    tmp_path: Path, end: Collapsed | Failed, kind: type[PruneRun | FailRun]
) -> None:
    """In the ledger, its file and MLflow."""
    records = Records.at(tmp_path)
    ledger = Ledger(study("none"), "s", records.optuna_database)
    searcher, put = LedgerSearcher(ledger, None, Budgets()), []
    writer: Any = SimpleNamespace(put=put.append)
    display = Display(Console(file=io.StringIO()), 1, 0, None)
    recorder = Recorder(ledger, writer, display, searcher, {"threads": 1}, records, 60.0)
    searcher.suggest("a")
    last = Report(at=Progress("phase 1", 9, 9), device_name="a machine", provenance=MADE, end=end)
    ended: Any = SimpleNamespace(trial_id="a", config={}, last_result=last.as_result())
    recorder.on_trial_start(0, [], ended)
    recorder.on_trial_complete(0, [], ended)
    tags = {"compute": "fp32", "device_name": "a machine", **provenance_tags(vars(MADE))}
    assert [operation.place for operation in put if isinstance(operation, kind)] == [tags]
    (record,) = [*ledger.pruned(), *ledger.failed()]
    assert record.user_attrs[PROVENANCE] == vars(MADE)
    left = read_trial_record(records.trial_record("s", record.user_attrs[HASH]))
    assert left is not None
    assert left[1] == record.user_attrs[RECORD]
    assert left[0].runtime == {"threads": 1, **tags}
