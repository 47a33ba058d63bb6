"""Finalists that are run with more seeds."""

from pathlib import Path

from costless import (
    TRIALS,
    finish,
    handed_out,
    replicated,
    run_to_the_end,
    trial,
    unended,
    value_of,
)

from search.ledger.ledger import (
    Ledger,
)
from search.ledger.replicates import FINALISTS
from search.ledger.trials import REPLICATE_OF, SEED, trial_config
from trainables.config import RunConfig


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
    assert trial_config(first).replace(seed=1) in handed
    assert len({c.config_hash() for c in handed}) == len(handed) == 4


def test_a_failed_replicate_is_not_tried_again_and_does_not_count(database: Path) -> None:
    ledger = replicated(4, 2, database)
    for _ in range(4):
        finish(ledger, handed_out(ledger))
    ledger.fail(handed_out(ledger).number, "diverged")
    assert len(run_to_the_end(ledger)) == 3
    assert ledger.failed() == []
    assert [len(c.trials) for c in ledger.configurations()].count(1) == 1
