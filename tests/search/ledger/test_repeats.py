"""Proposals that are known already: answered from the record, not trained."""

from pathlib import Path

import pytest
from costless import (
    CELLS,
    ask_next,
    finish,
    handed_out,
    layers_study,
    on_record,
    run_to_the_end,
    small_study,
    trial,
    unended,
    value_of,
)
from optuna.trial import TrialState

from search.ledger.ledger import Assignment, Ledger
from search.ledger.trials import HASH, REASON, REPEAT_OF


def test_a_repeat_of_a_finished_trial_is_answered_with_its_value(database: Path) -> None:
    ledger = Ledger(layers_study(trials=5), "s", database)
    first = handed_out(ledger)
    finish(ledger, first)
    for _ in CELLS[1:]:
        finish(ledger, handed_out(ledger))
    ask_next(ledger, context_layers=1, token_layers=1, context_mode="final_only")  # the first cell by another name
    following = handed_out(ledger)
    assert following.config.config_hash() != first.config.config_hash()
    repeat = trial(ledger, following.number - 1)
    assert (repeat.state, repeat.value) == (TrialState.COMPLETE, value_of(first.config))
    assert repeat.user_attrs[REPEAT_OF] == first.number


def test_a_repeat_is_no_trial_of_its_own(database: Path) -> None:
    ledger = Ledger(layers_study(trials=5), "s", database)
    for _ in range(4):
        finish(ledger, handed_out(ledger))
    ask_next(ledger, context_layers=1, token_layers=1, context_mode="final_only")
    assert len(run_to_the_end(ledger)) == 1
    assert len(ledger.finished()) == 5


def start_with_a_parked_trial(ledger: Ledger) -> tuple[Assignment, int, Assignment]:
    """Four cells running and the first asked for again: the first cell, the parked trial, and the one after."""
    cells = [handed_out(ledger) for _ in CELLS]
    ask_next(ledger, context_layers=1, token_layers=1, context_mode="final_only")
    following = handed_out(ledger)
    for assignment in cells[1:]:
        finish(ledger, assignment)
    return cells[0], following.number - 1, following


def test_a_repeat_of_a_running_trial_waits_and_another_is_handed_out(database: Path) -> None:
    ledger = Ledger(layers_study(trials=5), "s", database)
    first, parked, following = start_with_a_parked_trial(ledger)
    assert trial(ledger, parked).state == TrialState.RUNNING
    assert trial(ledger, parked).user_attrs[HASH] == first.config.config_hash() != following.config.config_hash()


def test_a_waiting_repeat_gets_the_value_of_the_running_trial(database: Path) -> None:
    ledger = Ledger(layers_study(trials=5), "s", database)
    first, parked, _ = start_with_a_parked_trial(ledger)
    finish(ledger, first)
    repeat = trial(ledger, parked)
    assert (repeat.state, repeat.value) == (TrialState.COMPLETE, value_of(first.config))
    assert repeat.user_attrs[REPEAT_OF] == first.number


def test_a_waiting_repeat_fails_with_the_running_trial(database: Path) -> None:
    ledger = Ledger(layers_study(trials=5), "s", database)
    first, parked, _ = start_with_a_parked_trial(ledger)
    ledger.fail(first.number, "diverged")
    repeat = trial(ledger, parked)
    assert (repeat.state, repeat.user_attrs[REPEAT_OF]) == (TrialState.FAIL, first.number)
    assert [t.number for t in ledger.failed()] == [first.number]


def test_a_waiting_repeat_takes_no_place_of_another_trial(database: Path) -> None:
    ledger = Ledger(layers_study(trials=6), "s", database)
    first, _, following = start_with_a_parked_trial(ledger)
    assert ledger.open_trials() == 1
    finish(ledger, first)
    finish(ledger, following)
    assert len(run_to_the_end(ledger)) == 1


def test_a_waiting_repeat_does_not_outlive_an_interrupted_trial(database: Path) -> None:
    ledger = Ledger(layers_study(trials=5), "s", database)
    first, _, following = start_with_a_parked_trial(ledger)
    ledger.interrupt(first.number)
    ledger.interrupt(following.number)
    assert [t.number for t in on_record(ledger) if t.state == TrialState.RUNNING] == []


@pytest.mark.parametrize("stop", ["kill", "interrupt"])
def test_nothing_waits_at_the_end_of_a_study_that_was_stopped_with_a_waiting_repeat(database: Path, stop: str) -> None:
    ledger = Ledger(layers_study(trials=5), "s", database)
    first, _, following = start_with_a_parked_trial(ledger)
    if stop == "interrupt":  # as on Ctrl-C: those that were handed out
        ledger.interrupt(first.number)
        ledger.interrupt(following.number)
    reopened = Ledger(layers_study(trials=5), "s", database)
    run_to_the_end(reopened)
    assert len(reopened.finished()) == 5
    assert unended(reopened) == []


def test_every_repeat_on_record_has_the_value_of_the_trial_it_repeats(database: Path) -> None:
    ledger = Ledger(small_study(trials=50), "s", database)
    run_to_the_end(ledger)
    repeats = [t for t in on_record(ledger) if REPEAT_OF in t.user_attrs]
    assert repeats
    for repeat in repeats:
        known = trial(ledger, repeat.user_attrs[REPEAT_OF])
        assert (repeat.value, repeat.user_attrs[HASH]) == (known.value, known.user_attrs[HASH])


def test_a_failed_trial_counts_and_is_not_tried_again(database: Path) -> None:
    ledger = Ledger(layers_study(trials=5), "s", database)
    first = handed_out(ledger)
    ledger.fail(first.number, "diverged")
    reopened = Ledger(layers_study(trials=5), "s", database)
    handed = run_to_the_end(reopened)
    assert len(handed) == 4
    assert first.config.config_hash() not in {c.config_hash() for c in handed}
    assert [(t.number, t.user_attrs[REASON]) for t in reopened.failed()] == [(first.number, "diverged")]


def test_a_repeat_of_a_failed_trial_fails_without_being_trained(database: Path) -> None:
    ledger = Ledger(layers_study(trials=5), "s", database)
    first = handed_out(ledger)
    ledger.fail(first.number, "diverged")
    ask_next(ledger, context_layers=1, token_layers=1, context_mode="final_only")
    handed = run_to_the_end(ledger)
    assert first.config.config_hash() not in {c.config_hash() for c in handed}
    repeat = next(t for t in on_record(ledger) if REPEAT_OF in t.user_attrs)
    assert (repeat.state, repeat.user_attrs[REPEAT_OF]) == (TrialState.FAIL, first.number)


def test_a_study_whose_trials_all_fail_ends(database: Path) -> None:
    ledger = Ledger(layers_study(trials=4), "s", database)
    while (assignment := ledger.next()) is not None:
        ledger.fail(assignment.number, "out of memory")
    assert (len(ledger.failed()), ledger.finished(), ledger.best()) == (4, [], None)
