"""The ledger of a study: what it hands out, and what is on record of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from costless import (
    CELLS,
    DIMS,
    TRIALS,
    base_config,
    finish,
    handed_out,
    layers_study,
    run_to_the_end,
    small_study,
    trial,
    unended,
    value_of,
)
from entries import context_modes
from optuna.trial import TrialState

from search.ledger.budgets import Budgets
from search.ledger.ledger import Assignment, Ledger
from search.ledger.storage import open_storage
from search.ledger.trials import CONFIG, HASH, METRICS, sorted_by_value, trial_config
from trainables.config import RunConfig
from trainables.metrics import VAL_PPL


def test_exactly_as_many_trials_as_asked_for_are_handed_out(whole: tuple[Ledger, list[RunConfig]]) -> None:
    ledger, handed = whole
    assert len(handed) == len(ledger.finished()) == TRIALS
    assert ledger.open_trials() == 0


def test_no_model_is_handed_out_twice(whole: tuple[Ledger, list[RunConfig]]) -> None:
    hashes = [config.config_hash() for config in whole[1]]
    assert len(set(hashes)) == len(hashes)


def test_the_cells_are_handed_out_first_and_in_order(whole: tuple[Ledger, list[RunConfig]]) -> None:
    assert [(c.context_layers, c.token_layers) for c in whole[1][:4]] == CELLS
    assert {(c.context_dim, c.context_mode) for c in whole[1][:4]} == {(16, "prev_and_current")}


def test_no_trial_is_left_running_or_waiting(whole: tuple[Ledger, list[RunConfig]]) -> None:
    assert unended(whole[0]) == []


def test_the_best_trial_is_the_one_of_the_lowest_value(whole: tuple[Ledger, list[RunConfig]]) -> None:
    ledger, handed = whole
    best = ledger.best()
    assert best is not None
    assert best.value == min(value_of(config) for config in handed) == sorted_by_value(ledger.finished())[0].value
    assert value_of(trial_config(best)) == best.value


def test_the_same_seed_makes_the_same_sequence(whole: tuple[Ledger, list[RunConfig]], database: Path) -> None:
    ledger, handed = whole
    assert run_to_the_end(Ledger(ledger.study, "s", database)) == handed


def test_another_seed_makes_another_sequence(database: Path) -> None:
    one = run_to_the_end(Ledger(layers_study(trials=5), "one", database))
    other = run_to_the_end(Ledger(layers_study(trials=5, seed=1), "other", database))
    assert [c.replace(seed=0) for c in other] != one


def test_an_assignment_is_on_record_as_it_was_handed_out(database: Path) -> None:
    ledger = Ledger(layers_study(), "s", database)
    assignment = handed_out(ledger)
    record = trial(ledger, assignment.number)
    assert record.state == TrialState.RUNNING
    assert record.user_attrs[HASH] == assignment.config.config_hash()
    assert RunConfig.from_flat(record.user_attrs[CONFIG]) == trial_config(record) == assignment.config


def test_a_result_is_on_record_with_its_figures(database: Path) -> None:
    ledger = Ledger(layers_study(), "s", database)
    assignment = handed_out(ledger)
    ledger.complete(assignment.number, {VAL_PPL: 12.5, "phase1/sweeps": 7.0})
    record = Ledger(layers_study(), "s", database).finished()[0]
    assert (record.number, record.value) == (assignment.number, 12.5)
    assert record.user_attrs[METRICS] == {VAL_PPL: 12.5, "phase1/sweeps": 7.0}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_study_ends_when_its_space_is_exhausted(database: Path, sampler: str) -> None:
    ledger = Ledger(small_study(trials=50, sampler=sampler), "s", database)
    handed = run_to_the_end(ledger)
    models = {base_config(**p).config_hash() for p in ledger.study.space.points()}
    assert len(models) == 6
    assert sorted(c.config_hash() for c in handed) == sorted(models)
    assert unended(ledger) == []


def test_a_larger_study_of_an_exhausted_space_has_nothing_to_run(database: Path) -> None:
    ledger = Ledger(small_study(trials=50), "s", database)
    assert ledger.nothing_to_run(Budgets()) is None
    for _ in range(5):
        finish(ledger, handed_out(ledger))
    last = handed_out(ledger)
    cut_off = Ledger(small_study(trials=60), "s", database)  # its driver was killed: the last model is open again
    assert cut_off.nothing_to_run(Budgets()) is None
    assert [c.config_hash() for c in run_to_the_end(cut_off)] == [last.config.config_hash()]
    larger = Ledger(small_study(trials=60), "s", database)
    assert "every model of this study's space has been tried" in (larger.nothing_to_run(Budgets()) or "")
    seeds = Ledger(small_study(trials=60), "s", database, seeds=2)
    assert seeds.nothing_to_run(Budgets()) is None  # replicates follow


def test_a_grid_hands_out_its_points_in_order_and_then_nothing(database: Path) -> None:
    study = context_modes(base_config(), DIMS[:1])
    ledger = Ledger(study, "s", database)
    assert run_to_the_end(ledger) == [base_config(**point) for point in study.fixed_points]
    assert unended(ledger) == []


def test_a_larger_number_of_trials_continues_a_finished_study(database: Path) -> None:
    first = run_to_the_end(Ledger(layers_study(trials=4), "s", database))
    extended = Ledger(layers_study(trials=6), "s", database)
    assert extended.open_trials() == 2
    more = run_to_the_end(extended)
    assert len({c.config_hash() for c in first + more}) == 6
    assert len(extended.finished()) == 6


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_an_extended_study_goes_on_as_a_longer_one_would_have(database: Path, sampler: str) -> None:
    once = run_to_the_end(Ledger(layers_study(trials=7, sampler=sampler), "once", database))
    parts = [c for n in (4, 7) for c in run_to_the_end(Ledger(layers_study(n, sampler), "parts", database))]
    assert parts == once


def test_a_smaller_number_of_trials_hands_out_nothing(database: Path) -> None:
    run_to_the_end(Ledger(layers_study(trials=5), "s", database))
    smaller = Ledger(layers_study(trials=4), "s", database)
    assert smaller.next() is None
    assert len(smaller.finished()) == 5


def test_another_definition_under_the_same_name_is_refused_with_its_differences(database: Path) -> None:
    Ledger(layers_study(), "s", database)
    with pytest.raises(ValueError, match="study 's' exists with another definition") as refused:
        Ledger(layers_study(seed=1, phase2_epochs=3), "s", database)
    message = str(refused.value)
    assert "seed is 1, was 0" in message
    assert "phase2_epochs is 3, was 20" in message
    assert "phase1" not in message
    assert "--name" in message


def test_a_refused_definition_leaves_the_study_as_it_was(database: Path) -> None:
    ledger = Ledger(layers_study(trials=4), "s", database)
    assignment = handed_out(ledger)
    with pytest.raises(ValueError, match="another definition"):
        Ledger(layers_study(trials=4, seed=1), "s", database)
    assert trial(ledger, assignment.number).state == TrialState.RUNNING
    assert run_to_the_end(Ledger(layers_study(trials=4), "s", database))[-1].seed == 0


def test_studies_of_other_names_share_a_database_and_nothing_else(database: Path) -> None:
    one = run_to_the_end(Ledger(layers_study(trials=4), "one", database))
    assert run_to_the_end(Ledger(layers_study(trials=4), "other", database)) == one


@pytest.mark.parametrize("end", [finish, lambda ledger, a: ledger.fail(a.number, "diverged")], ids=["done", "failed"])
def test_with_several_trials_at_once_none_is_made_twice(
    database: Path, end: Callable[[Ledger, Assignment], None]
) -> None:
    ledger = Ledger(small_study(trials=6), "s", database)
    running: list[Assignment] = []
    handed: list[str] = []
    while True:
        while len(running) < 3 and (assignment := ledger.next()) is not None:
            running.append(assignment)
            handed.append(assignment.config.config_hash())
        if not running:
            break
        end(ledger, running.pop(len(handed) % len(running)))
    assert len(handed) == len(set(handed)) == 6
    assert unended(ledger) == []


def test_a_database_whose_making_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / ".optuna.db.new").write_bytes(b"half a database")
    open_storage(tmp_path / "optuna.db")
    assert not list(tmp_path.glob(".optuna.db.new*"))


def test_mlflow_is_looked_through_only_where_it_may_lack_something(tmp_path: Path) -> None:
    ledger = Ledger(small_study(4), "study", tmp_path / "optuna.db")
    finish(ledger, handed_out(ledger))
    assert not ledger.is_synced(("parent", 1_000))
    ledger.mark_synced(("parent", 1_000))
    again = Ledger(small_study(4), "study", tmp_path / "optuna.db")
    assert again.is_synced(("parent", 1_000))
    assert not again.is_synced(("of another store", 1_000))
    assert not again.is_synced(("parent", 900))  # an older copy of the store was put in its place
    finish(again, handed_out(again))  # and the driver is killed before MLflow hears of it
    assert not Ledger(small_study(4), "study", tmp_path / "optuna.db").is_synced(("parent", 1_000))


def test_a_trial_in_the_place_of_a_failed_one_is_not_told_yet(tmp_path: Path) -> None:
    ledger = Ledger(small_study(4), "study", tmp_path / "optuna.db")
    number = handed_out(ledger).number
    ledger.fail(number, "a bug")
    assert ledger.run_again([number], always=False)
    ledger.mark_synced(("parent", 1_000))
    mended = Ledger(small_study(4), "study", tmp_path / "optuna.db")
    finish(mended, handed_out(mended))
    assert len(mended.made_with_replicates()) == 1
    assert not mended.is_synced(("parent", 1_000))


def test_what_fails_again_and_again_does_not_hold_a_study_up(tmp_path: Path) -> None:
    first = None
    for again in (True, True, False):
        ledger = Ledger(small_study(4), "study", tmp_path / "optuna.db")
        assignment = handed_out(ledger)
        assert first in (None, assignment.config)
        first = assignment.config
        ledger.fail(assignment.number, "too large")
        assert ledger.run_again([assignment.number], always=False) is again
    ledger = Ledger(small_study(4), "study", tmp_path / "optuna.db")
    assert handed_out(ledger).config != first
    assert len(ledger.failed()) == 1


def test_a_full_disk_is_no_trials_fault(tmp_path: Path) -> None:
    for _ in range(5):
        ledger = Ledger(small_study(4), "study", tmp_path / "optuna.db")
        number = handed_out(ledger).number
        ledger.fail(number, "No space left on device")
        assert ledger.run_again([number], always=True)
    assert Ledger(small_study(4), "study", tmp_path / "optuna.db").made() == 0


def test_inputs_that_were_made_anew_and_differ_are_refused(tmp_path: Path) -> None:
    ledger = Ledger(small_study(4), "study", tmp_path / "optuna.db")
    for _ in range(2):
        ledger.keep_summary({"inputs": "a table"})
    with pytest.raises(ValueError, match="began with another embedding table"):
        ledger.keep_summary({"inputs": "another"})
    assert ledger.summary() == {"inputs": "a table"}


def test_trials_to_run_again_are_added_up(tmp_path: Path) -> None:
    ledger = Ledger(small_study(4), "study", tmp_path / "optuna.db")
    for _ in range(2):
        number = handed_out(ledger).number
        ledger.fail(number, "a bug")
        assert ledger.run_again([number], always=False)
    assert Ledger(small_study(4), "study", tmp_path / "optuna.db").made() == 0
