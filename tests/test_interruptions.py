"""Studies whose driver was killed or stopped: the same command continues them."""

from pathlib import Path

import pytest
from costless import CELLS, DIMS, base_config, finish, handed_out, layers_study, run_to_the_end, trial, unended
from entries import context_modes
from optuna.trial import TrialState

from search.ledger.ledger import Ledger
from search.ledger.trials import REASON, RETRY_OF
from trainables.config import RunConfig


def test_an_interrupted_study_goes_on_as_if_it_had_not_been(
    whole: tuple[Ledger, list[RunConfig]], database: Path
) -> None:
    ledger, handed = whole
    finished = []
    for cut_off in (0, 2, 5, 7):  # how many trials have finished when the driver is killed
        disturbed = Ledger(ledger.study, "s", database)
        while len(finished) < cut_off:
            assignment = handed_out(disturbed)
            finish(disturbed, assignment)
            finished.append(assignment.config)
        disturbed.next()  # and never heard of again
    disturbed = Ledger(ledger.study, "s", database)
    finished += run_to_the_end(disturbed)
    assert finished == handed
    assert unended(disturbed) == []


def test_trials_that_a_killed_driver_left_are_failed_as_interrupted(database: Path) -> None:
    first = handed_out(Ledger(layers_study(), "s", database))
    reopened = Ledger(layers_study(), "s", database)
    record = trial(reopened, first.number)
    assert (record.state, record.user_attrs[REASON]) == (TrialState.FAIL, "interrupted")
    assert reopened.failed() == []


@pytest.mark.parametrize("stop", ["kill", "interrupt"])
def test_an_interrupted_trial_is_handed_out_again(database: Path, stop: str) -> None:
    ledger = Ledger(layers_study(trials=5), "s", database)
    cut_off = [handed_out(ledger) for _ in range(5)]
    if stop == "interrupt":
        for assignment in cut_off:
            ledger.interrupt(assignment.number)
    reopened = Ledger(layers_study(trials=5), "s", database)
    again = run_to_the_end(reopened)
    assert {a.config.config_hash() for a in cut_off} <= {c.config_hash() for c in again}
    assert len(again) == 5
    for retry in (t for t in reopened.finished() if RETRY_OF in t.user_attrs):
        assert retry.params == trial(reopened, retry.user_attrs[RETRY_OF]).params


def test_what_the_sampler_had_proposed_is_run_again_whatever_it_would_propose_now(database: Path) -> None:
    study = layers_study(trials=9)
    ledger = Ledger(study, "s", database)
    for _ in CELLS:
        finish(ledger, handed_out(ledger))
    at_once = [handed_out(ledger) for _ in range(4)]
    for assignment in at_once[2:]:
        finish(ledger, assignment)  # the sampler now knows more than when it proposed the two that are cut off
    reopened = Ledger(study, "s", database)
    again = [handed_out(reopened) for _ in range(2)]
    assert [a.config for a in again] == [a.config for a in at_once[:2]]
    assert [trial(reopened, a.number).user_attrs[RETRY_OF] for a in again] == [a.number for a in at_once[:2]]


def test_a_cell_is_not_lost_if_the_driver_dies_while_it_is_asked_for(database: Path) -> None:
    ledger = Ledger(layers_study(trials=4), "s", database)
    ledger.optuna.ask()  # marked as running, its parameters not yet on record
    handed = run_to_the_end(Ledger(layers_study(trials=4), "s", database))
    assert sorted((c.context_layers, c.token_layers) for c in handed) == sorted(CELLS)


def test_a_grid_is_complete_even_if_the_driver_dies_while_a_point_is_asked_for(database: Path) -> None:
    study = context_modes(base_config(), DIMS[:1])
    Ledger(study, "s", database).optuna.ask()
    handed = run_to_the_end(Ledger(study, "s", database))
    assert {c.config_hash() for c in handed} == {base_config(**p).config_hash() for p in study.fixed_points}


def test_an_interrupted_retry_is_handed_out_once_more(database: Path) -> None:
    handed = []
    for _ in range(3):
        handed.append(handed_out(Ledger(layers_study(trials=4), "s", database)).config)
    last = run_to_the_end(Ledger(layers_study(trials=4), "s", database))
    assert {c.config_hash() for c in handed} <= {c.config_hash() for c in last}
    assert len(last) == 4


def test_an_interrupted_grid_is_completed_without_repeats(database: Path) -> None:
    study = context_modes(base_config(), DIMS[:1])
    ledger = Ledger(study, "s", database)
    finish(ledger, handed_out(ledger))
    handed_out(ledger), handed_out(ledger)
    rest = run_to_the_end(Ledger(study, "s", database))
    assert len(rest) == len({c.config_hash() for c in rest}) == len(study.fixed_points) - 1
