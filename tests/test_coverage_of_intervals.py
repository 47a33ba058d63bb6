"""The measurement of tests/coverage_of_intervals.py in small: a percentile bootstrap would not pass it."""

import coverage_of_intervals as measured
import pytest

STUDIES = 2_000


def noise(share: float, studies: int = STUDIES) -> float:
    """Three standard errors of a share of so many studies."""
    return 3 * float((share * (1 - share) / studies) ** 0.5)


@pytest.mark.parametrize(
    ("kind", "documents", "least"),
    [
        ("normal", 10, 0.94), ("normal", 20, 0.94), ("normal", 100, 0.94),
        *((kind, 100, 0.92) for kind in measured.GENERATORS[1:]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seeds", [1, 3])
def test_an_interval_holds_the_truth_as_often_as_it_says(kind: str, documents: int, least: float, seeds: int) -> None:
    assert measured.coverage(kind, STUDIES, documents, seeds) >= least - noise(least)


def test_with_ten_documents_a_percentile_bootstrap_holds_too_seldom() -> None:
    """What the test above is there to find."""
    assert measured.old_coverage("normal", STUDIES // 4, 10) < 0.94 - noise(0.94, STUDIES // 4)


@pytest.mark.parametrize(("configurations", "documents", "seeds"), [(12, 10, 1), (48, 20, 1), (12, 100, 2)])
def test_of_equal_configurations_one_is_seldom_called_behind(configurations: int, documents: int, seeds: int) -> None:
    assert measured.family_error(500, configurations, documents, seeds)["share"] <= 0.05 + noise(0.05, 500)


def test_the_studentised_range_calls_too_many_behind() -> None:
    """What the test above is there to find."""
    assert measured.family_error(500, 48, 10, old=True)["share"] > 0.05 + noise(0.05, 500)


@pytest.mark.parametrize("kind", measured.GENERATORS)
def test_an_equal_model_seldom_becomes_champion(kind: str) -> None:
    """With an interval of 95 % it does in 4 to 5 of 100 studies of 20 documents with skewed differences."""
    assert measured.false_better(kind, 3 * STUDIES, 20) <= 0.035


@pytest.mark.parametrize(
    ("share", "documents", "least"), [("usual", 10, 0.94), ("rare", 10, 0.89), ("rare", 100, 0.92)]
)
def test_the_interval_of_a_share_holds_also_where_hits_are_rare(share: str, documents: int, least: float) -> None:
    assert measured.share_coverage(share, STUDIES, documents) >= least - noise(least)


def test_a_rare_share_that_is_not_taken_of_its_logit_holds_too_seldom() -> None:
    """What the test above is there to find."""
    assert measured.share_coverage("rare", STUDIES, 10, by_logit=False) < 0.89 - noise(0.89)


def test_the_interval_of_one_models_ppl_holds() -> None:
    assert all(measured.ppl_coverage(kind, STUDIES, 100) >= 0.94 - noise(0.94) for kind in measured.GENERATORS)


@pytest.mark.parametrize(("seeds", "least"), [((2, 2), 0.94), ((3, 3), 0.94), ((2, 5), 0.93)])
def test_welchs_interval_over_seeds_holds(seeds: tuple[int, int], least: float) -> None:
    assert measured.seeds_coverage(STUDIES, seeds) >= least - noise(least)


def test_intervals_are_no_wider_than_they_must_be() -> None:
    assert measured.width(500, 20)["ratio"] == pytest.approx(1, abs=1e-9)
    assert measured.width(500, 20, 3)["ratio"] <= 1.25
    assert measured.power(STUDIES, 100, old=False) > 0.9
    assert measured.family_power(500, 12, 100, old=False) > 0.5
