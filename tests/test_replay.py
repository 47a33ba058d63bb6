"""Replays of recorded results: what the comparison of samplers rests on."""

import pytest
from replay import TABLE, Table, interval, replay


@pytest.fixture(scope="module")
def table() -> Table:
    return Table(TABLE)


def test_the_regret_of_a_replay_is_the_best_so_far_minus_the_best_of_all(table: Table) -> None:
    done = replay(table, "random", "none", 12, seed=0)
    assert len(done.regret) == 12
    assert done.regret == sorted(done.regret, reverse=True)
    assert done.regret[-1] in {value - table.best for value, _ in table.rows.values()}
    assert min(value for value, _ in table.rows.values()) == table.best
    assert done.pruned == 0


def test_a_replay_is_repeatable_and_seeds_differ(table: Table) -> None:
    first, again, other = (replay(table, "tpe", "none", 9, seed) for seed in (0, 0, 1))
    assert first == again != other


def test_samplers_begin_alike_so_that_their_differences_can_be_paired(table: Table) -> None:
    gp, tpe = (replay(table, sampler, "none", 6, seed=3) for sampler in ("gp", "tpe"))
    assert gp.regret == tpe.regret


def test_pruned_trials_cost_fewer_epochs(table: Table) -> None:
    whole, pruned = (replay(table, "random", scheduler, 12, seed=0) for scheduler in ("none", "asha"))
    assert pruned.pruned > 0
    assert pruned.epochs[12] < whole.epochs[12]


def test_the_interval_of_a_mean_covers_it_and_a_constant_has_none() -> None:
    assert interval([1.0, 2.0, 3.0, 4.0]) == "2.50 [1.50, 3.50]"
    assert interval([0.0, 0.0, 0.0]) == "0.00 [0.00, 0.00]"
