"""A study's trials as they count are those of the database, whatever becomes of them."""

import gc
from pathlib import Path
from typing import Any

import optuna
import pytest
from costless import ask_next, finish, handed_out, layers_study, on_record, replicated, run_to_the_end, trial
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event

from search.ledger.ledger import Ledger
from search.ledger.storage import open_storage
from search.ledger.trials import CONFIG, HASH
from trainables.metrics import VAL_PPL


def content(trials: list[FrozenTrial]) -> list[tuple[Any, ...]]:
    """All but the times, which each takes for itself."""
    return [
        (t.number, t.state, t.values, t.params, t.distributions, t.user_attrs, t.system_attrs, t.intermediate_values)
        for t in trials
    ]


def test_memory_and_database_hold_the_same_trials(tmp_path: Path) -> None:
    ledger = replicated(7, 2, tmp_path / "optuna.db")
    cells = [handed_out(ledger) for _ in range(4)]
    ask_next(ledger, context_layers=1, token_layers=1, context_mode="final_only")  # waits for the first cell
    lost = handed_out(ledger)
    for epoch in (1, 2):
        ledger.epoch(cells[0].number, epoch, 90.0 - epoch)
    ledger.prune(cells[0].number, "poor", {})
    ledger.fail(cells[1].number, "diverged")
    finish(ledger, cells[2])
    finish(ledger, cells[3])
    ledger.on_worker_lost(lost.number)
    assert len(ledger.optuna.trials) == 6
    assert content(on_record(ledger)) == content(ledger.optuna.trials)
    run_to_the_end(ledger)
    ledger.keep_summary({"inputs": "a table", "threads": 1})
    assert {t.state for t in ledger.optuna.trials} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    again = replicated(7, 2, tmp_path / "optuna.db")
    assert content(on_record(ledger)) == content(ledger.optuna.trials) == content(again.optuna.trials)
    assert again.summary() == {"inputs": "a table", "threads": 1}
    assert again.optuna.user_attrs == ledger.optuna.user_attrs


def test_a_trial_is_on_record_whole_or_not_at_all(tmp_path: Path) -> None:
    ledger = Ledger(layers_study(), "s", tmp_path / "optuna.db")
    others = optuna.load_study(study_name="s", storage=open_storage(tmp_path / "optuna.db"))
    seen: list[FrozenTrial] = []
    for moment in ("begin", "commit"):  # what a kill there would leave behind
        event.listen(ledger.storage.engine, moment, lambda connection: seen.extend(others.get_trials()))
    asked = handed_out(ledger)
    handed_out(ledger)
    assert seen
    assert {t.state for t in seen} == {TrialState.RUNNING}
    assert {len(t.params) for t in seen} == {len(trial(ledger, 0).params)}
    assert all(t.user_attrs.keys() >= {HASH, CONFIG} for t in seen)
    assert seen[0].user_attrs[HASH] == asked.config.config_hash()


def test_what_the_database_refuses_is_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(layers_study(), "s", tmp_path / "optuna.db")
    number = handed_out(ledger).number

    def full(*args: object, **named: object) -> None:
        raise optuna.exceptions.StorageInternalError("the disk is full")

    monkeypatch.setattr(ledger.storage, "set_trial_state_values", full)
    with pytest.raises(optuna.exceptions.StorageInternalError):
        ledger.complete(number, {VAL_PPL: 12.5})
    assert not ledger.has_ended(number)
    ledger.optuna.refresh()
    assert not ledger.has_ended(number)
    assert content(on_record(ledger)) == content(ledger.optuna.trials)


def test_other_studies_of_the_database_are_left_alone(tmp_path: Path) -> None:
    for name in ("one", "other"):
        finish(one := Ledger(layers_study(trials=4), name, tmp_path / "optuna.db"), handed_out(one))
    assert len(one.optuna.trials) == 1
    assert sorted(optuna.get_all_study_names(open_storage(tmp_path / "optuna.db"))) == ["one", "other"]


def test_a_trial_costs_the_same_queries_however_many_there_are(tmp_path: Path) -> None:
    ledger = Ledger(layers_study(trials=12), "s", tmp_path / "optuna.db")
    queries: list[str] = []
    event.listen(ledger.storage.engine, "before_cursor_execute", lambda c, cursor, statement, *rest: queries.append(""))
    costs = []
    for _ in range(12):
        queries.clear()
        finish(ledger, handed_out(ledger))
        costs.append(len(queries))
    assert costs[-1] == costs[4]  # the first of a parameter has one query less


@pytest.mark.parametrize("enabled", [True, False])
def test_opening_a_study_leaves_pythons_collector_as_it_was(database: Path, enabled: bool) -> None:
    run_to_the_end(Ledger(layers_study(trials=4), "s", database))
    if not enabled:
        gc.disable()
    try:
        assert len(Ledger(layers_study(trials=4), "s", database).finished()) == 4
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
