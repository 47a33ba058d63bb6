"""The ledger of a study, driven by an objective that costs nothing: a value looked up by the config's hash."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from model.modes import CONTEXT_MODES
from search.ledger import (
    CONFIG,
    HASH,
    METRICS,
    REASON,
    REPEAT_OF,
    RETRY_OF,
    Assignment,
    Ledger,
    open_storage,
)
from search.replicates import FINALISTS
from search.results import REPLICATE_OF, SEED, sorted_by_value, trial_config
from search.spaces import SAMPLERS, Point, Space, Study, asym_layers, context_modes
from trainables.config import BigramConfig, RunConfig
from trainables.metrics import VAL_PPL

DIMS = (8, 16)
TRIALS = 8  # the four cells, two more before gp and tpe start to model, two that they propose
CELLS = [(1, 1), (2, 1), (1, 2), (2, 2)]


def base_config(**changes: Any) -> RunConfig:
    base = RunConfig(
        data="a.jsonl",
        data_fingerprint="d1",
        embedding="bigram",
        embedding_fingerprint="bigram",
        bigram=BigramConfig(),
        context_dim=16,
    )
    return base.replace(**changes)


def layers_study(trials: int = TRIALS, sampler: str = "random", **changes: Any) -> Study:
    return asym_layers(base_config(**changes), DIMS, sampler, trials)


def small_study(trials: int, sampler: str = "random") -> Study:
    """A study over the six models of one context layer and at most two token layers."""
    space = Space(context_layers=(1, 1), token_layers=(1, 2), context_dims=(8,), context_modes=CONTEXT_MODES)
    fixed = tuple(space.points()[:1])
    return Study(entry="small", base=base_config(), space=space, fixed_points=fixed, sampler=sampler, trials=trials)


VALUES = {
    base_config(**point).config_hash(): 20 + 7919 * rank % 1000 / 25
    for study in (layers_study(), small_study(9))
    for rank, point in enumerate(study.space.points())
}


def value_of(config: RunConfig) -> float:
    """The objective: every model has a value of its own."""
    return VALUES[config.replace(seed=0).config_hash()]


def finish(ledger: Ledger, assignment: Assignment) -> None:
    ledger.complete(assignment.number, {VAL_PPL: value_of(assignment.config)})


def handed_out(ledger: Ledger) -> Assignment:
    """The ledger's next configuration, which there must be."""
    assignment = ledger.next()
    assert assignment is not None
    return assignment


def run_to_the_end(ledger: Ledger) -> list[RunConfig]:
    """Run a study one trial at a time; the configurations in the order they were handed out."""
    handed = []
    while (assignment := ledger.next()) is not None:
        finish(ledger, assignment)
        handed.append(assignment.config)
    return handed


def on_record(ledger: Ledger) -> list[FrozenTrial]:
    """What the database says."""
    return optuna.load_study(study_name=ledger.name, storage=ledger.storage.database).trials


def trial(ledger: Ledger, number: int) -> FrozenTrial:
    return on_record(ledger)[number]


def unended(ledger: Ledger) -> list[FrozenTrial]:
    return [t for t in on_record(ledger) if t.state in (TrialState.RUNNING, TrialState.WAITING)]


def ask_next(ledger: Ledger, **point: Any) -> None:
    """Make the ledger's next proposal that of `point`, as a sampler might."""
    whole: Point = {"context_dim": 16, "context_mode": "prev_and_current"} | point
    ledger.optuna.enqueue_trial(ledger.study.space.params(whole))


@pytest.fixture(scope="module")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without a study; Optuna takes most of a second to make one, so tests copy it."""
    folder = tmp_path_factory.mktemp("optuna")
    open_storage(folder / "optuna.db")
    with sqlite3.connect(folder / "optuna.db") as connection:
        connection.execute(f"VACUUM INTO '{folder / 'new.db'}'")
    connection.close()
    return folder / "new.db"


@pytest.fixture
def database(new_database: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(new_database, tmp_path / "optuna.db"))


@pytest.fixture(scope="module", params=SAMPLERS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, list[RunConfig]]:
    """An undisturbed study of each sampler on a fresh database, and what it handed out."""
    database = tmp_path_factory.mktemp("whole") / "optuna.db"
    ledger = Ledger(layers_study(sampler=request.param), "s", database)
    return ledger, run_to_the_end(ledger)


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


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_study_ends_when_its_space_is_exhausted(database: Path, sampler: str) -> None:
    ledger = Ledger(small_study(trials=50, sampler=sampler), "s", database)
    handed = run_to_the_end(ledger)
    models = {base_config(**p).config_hash() for p in ledger.study.space.points()}
    assert len(models) == 6
    assert sorted(c.config_hash() for c in handed) == sorted(models)
    assert unended(ledger) == []


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


def test_a_grid_hands_out_its_points_in_order_and_then_nothing(database: Path) -> None:
    study = context_modes(base_config(), DIMS[:1])
    ledger = Ledger(study, "s", database)
    assert run_to_the_end(ledger) == [base_config(**point) for point in study.fixed_points]
    assert unended(ledger) == []


def test_an_interrupted_grid_is_completed_without_repeats(database: Path) -> None:
    study = context_modes(base_config(), DIMS[:1])
    ledger = Ledger(study, "s", database)
    finish(ledger, handed_out(ledger))
    handed_out(ledger), handed_out(ledger)
    rest = run_to_the_end(Ledger(study, "s", database))
    assert len(rest) == len({c.config_hash() for c in rest}) == len(study.fixed_points) - 1


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


def replicated(trials: int, seeds: int, database: Path, sampler: str = "random", name: str = "s") -> Ledger:
    return Ledger(layers_study(trials=trials, sampler=sampler), name, database, seeds)


def test_finalists_are_run_again_with_further_seeds_after_the_study(database: Path) -> None:
    ledger = replicated(TRIALS, 3, database)
    handed = run_to_the_end(ledger)
    own, more = handed[:TRIALS], handed[TRIALS:]
    assert {c.seed for c in own} == {0}
    best = sorted(own[4:], key=value_of)[:FINALISTS]
    expected = {c.replace(seed=seed).config_hash() for c in (*own[:4], *best) for seed in (1, 2)}
    assert {c.config_hash() for c in more} == expected
    assert len(more) == len(expected) == ledger.planned_replicates()
    assert len(ledger.finished()) == TRIALS
    assert all(len(c.trials) in (1, 3) for c in ledger.configurations())
    assert unended(ledger) == []


def test_a_replicate_says_of_which_trial_it_is_one(database: Path) -> None:
    ledger = replicated(4, 2, database)
    run_to_the_end(ledger)
    for record in ledger.replicates():
        first = trial(ledger, record.user_attrs[REPLICATE_OF])
        assert record.params == first.params
        assert trial_config(record) == trial_config(first).replace(seed=record.user_attrs[SEED])


def test_no_replicate_comes_before_the_last_own_trial_has_ended(database: Path) -> None:
    ledger = replicated(4, 2, database)
    running = [handed_out(ledger) for _ in range(4)]
    for assignment in running:
        assert ledger.next() is None
        assert ledger.undecided()
        finish(ledger, assignment)
    assert not ledger.undecided()
    assert {handed_out(ledger).replicate_of for _ in range(4)} == {0, 1, 2, 3}  # all at once now
    assert ledger.next() is None
    assert not ledger.undecided()


def test_more_seeds_go_on_where_fewer_ended(database: Path) -> None:
    run_to_the_end(replicated(4, 2, database))
    more = run_to_the_end(replicated(4, 3, database))
    assert [c.seed for c in more] == [2] * 4
    assert run_to_the_end(replicated(4, 3, database)) == []


def test_the_sampler_sees_no_replicate(whole: tuple[Ledger, list[RunConfig]], database: Path) -> None:
    sampler = whole[0].study.sampler
    assert sampler is not None
    run_to_the_end(replicated(TRIALS - 2, 3, database, sampler))
    extended = replicated(TRIALS, 1, database, sampler)
    assert len(extended.replicates()) == 2 * (4 + 2)
    assert run_to_the_end(extended) == whole[1][-2:]


def test_an_interrupted_replicate_is_run_again_with_its_own_seed(database: Path) -> None:
    ledger = replicated(4, 2, database)
    for _ in range(4):
        finish(ledger, handed_out(ledger))
    cut_off = handed_out(ledger)
    again = replicated(4, 2, database)
    assert handed_out(again).config == cut_off.config
    assert [c.seed for c in run_to_the_end(again)] == [1] * 3
    assert unended(again)[0].user_attrs[REPLICATE_OF] == cut_off.replicate_of
    assert len(again.finished()) == 4


def test_a_replicate_queued_when_its_driver_died_comes_as_one(database: Path) -> None:
    ledger = replicated(4, 2, database)
    for _ in range(4):
        finish(ledger, handed_out(ledger))
    first = ledger.finished()[2]
    ledger.optuna.enqueue_trial(first.params, user_attrs={REPLICATE_OF: first.number, SEED: 1})
    handed = run_to_the_end(replicated(4, 2, database))
    assert handed[0] == trial_config(first).replace(seed=1)
    assert len({c.config_hash() for c in handed}) == len(handed) == 4


def test_a_failed_replicate_is_not_tried_again_and_does_not_count(database: Path) -> None:
    ledger = replicated(4, 2, database)
    for _ in range(4):
        finish(ledger, handed_out(ledger))
    ledger.fail(handed_out(ledger).number, "diverged")
    assert len(run_to_the_end(ledger)) == 3
    assert ledger.failed() == []
    assert [len(c.trials) for c in ledger.configurations()].count(1) == 1


def test_mlflow_is_looked_through_only_where_it_may_lack_something(tmp_path: Path) -> None:
    ledger = Ledger(small_study(4), "study", tmp_path / "optuna.db")
    finish(ledger, handed_out(ledger))
    assert not ledger.all_told(("parent", 1_000))
    ledger.keep_told(("parent", 1_000))
    again = Ledger(small_study(4), "study", tmp_path / "optuna.db")
    assert again.all_told(("parent", 1_000))
    assert not again.all_told(("of another store", 1_000))
    assert not again.all_told(("parent", 900))  # an older copy of the store was put in its place
    finish(again, handed_out(again))  # and the driver is killed before MLflow hears of it
    assert not Ledger(small_study(4), "study", tmp_path / "optuna.db").all_told(("parent", 1_000))


def test_a_trial_in_the_place_of_a_failed_one_is_not_told_yet(tmp_path: Path) -> None:
    ledger = Ledger(small_study(4), "study", tmp_path / "optuna.db")
    number = handed_out(ledger).number
    ledger.fail(number, "a bug")
    ledger.run_again([number])
    ledger.keep_told(("parent", 1_000))
    mended = Ledger(small_study(4), "study", tmp_path / "optuna.db")
    finish(mended, handed_out(mended))
    assert len(mended.made_with_replicates()) == 1
    assert not mended.all_told(("parent", 1_000))


def test_trials_to_run_again_are_added_up(tmp_path: Path) -> None:
    ledger = Ledger(small_study(4), "study", tmp_path / "optuna.db")
    for _ in range(2):
        number = handed_out(ledger).number
        ledger.fail(number, "a bug")
        ledger.run_again([number])
    assert Ledger(small_study(4), "study", tmp_path / "optuna.db").made() == 0
