"""Budgets of one run, from values alone."""

import time

import pytest

from search.budgets import Budgets

CELLS = [(40.0, False), (38.0, False)]


def test_without_budgets_nothing_is_used_up() -> None:
    assert Budgets().used_up([*CELLS, *[(50.0, True)] * 100]) == ""


def test_hours_count_from_the_start_of_the_run() -> None:
    assert Budgets(max_hours=1.0, began=time.monotonic() - 3_590).used_up([]) == ""
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
    assert ("the last 3 proposals" in reason) == over


def test_a_plateau_needs_something_to_compare_with() -> None:
    assert Budgets(plateau=2).used_up([(40.0, True), (40.0, True)]) == ""
