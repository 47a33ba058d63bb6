"""Budgets of one run: from values alone, and what a study that has used one up still asks for."""

import time
from pathlib import Path

import pytest
from costless import finish, handed_out, replicated

from search.ledger.budgets import Budgets
from trainables.metrics import VAL_PPL

CELLS = [(40.0, False), (38.0, False)]


def test_without_budgets_nothing_is_used_up() -> None:
    assert Budgets().used_up([*CELLS, *[(50.0, True)] * 100]) is None


def test_hours_count_from_the_start_of_the_run() -> None:
    assert Budgets(max_hours=1.0, began=time.monotonic() - 3_590).used_up([]) is None
    assert "--max-hours 1 is used up" in Budgets(max_hours=1.0, began=time.monotonic() - 3_601).used_up([])


@pytest.mark.parametrize(
    ("proposed", "over"),
    [
        ([39.0, 38.5], False),  # fewer than three proposals
        ([39.0, 38.5, 37.9], True),  # better by less than 0.5 %
        ([39.0, 38.5, 37.0], False),
        ([37.0, 38.5, 37.9], False),
        ([37.0, 38.5, 37.9, 36.9], True),
        ([None, None, None], True),  # pruned
        ([None, None, 30.0], False),
    ],
)
def test_a_plateau_is_three_proposals_that_bring_less_than_half_a_per_cent(
    proposed: list[float | None], over: bool
) -> None:
    reason = Budgets(plateau=3).used_up([*CELLS, *((value, True) for value in proposed)])
    assert ("the last 3 proposals" in (reason or "")) == over


def test_a_plateau_needs_something_to_compare_with() -> None:
    assert Budgets(plateau=2).used_up([(40.0, True), (40.0, True)]) is None


def test_out_of_time_nothing_begins_not_even_replicates_and_the_next_run_goes_on(database: Path) -> None:
    spent = Budgets(max_hours=1.0, began=time.monotonic() - 3_601)
    ledger = replicated(6, 2, database)
    running = handed_out(ledger)
    assert ledger.next(spent) is None
    assert "--max-hours 1 is used up" in ledger.nothing_to_run(spent)
    finish(ledger, running)  # what runs may end
    assert ledger.next(spent) is None
    again = replicated(6, 2, database)
    assert (again.made(), again.open_trials()) == (1, 5)
    while again.open_trials():
        finish(again, handed_out(again))
    assert again.open_replicates()
    assert again.next(spent) is None


def test_on_a_plateau_replicates_follow_and_nothing_else(database: Path) -> None:
    ledger, budgets = replicated(30, 2, database), Budgets(plateau=2)
    values = iter([30.0] * 30)
    while (assignment := ledger.next(budgets)) is not None and assignment.replicate_of is None:
        ledger.complete(assignment.number, {VAL_PPL: next(values)})
    assert ledger.made() == len(ledger.study.fixed_points) + 2
    assert "the last 2 proposals have not improved" in ledger.enough(budgets)
    replicates = 0
    while assignment is not None:
        assert assignment.replicate_of is not None
        finish(ledger, assignment)
        replicates, assignment = replicates + 1, ledger.next(budgets)
    assert replicates == len(ledger.replicates()) > 0
