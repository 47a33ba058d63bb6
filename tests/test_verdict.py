"""Intervals on data whose truth is known: they must hold about as often as they say."""

import numpy as np
import pytest
from scipy import stats

from search.verdict import (
    Losses,
    all_pairs,
    combined_interval,
    differences,
    documents_intervals,
    pooled_seeds,
    seeds_interval,
)

STUDIES = 600


def simulated(
    rng: np.random.Generator, effects: list[float], seeds: int, documents: int, spread: tuple[float, float, float]
) -> list[Losses]:
    """Configurations with true mean losses 3 + effect on common documents of unequal length.

    Args:
        spread: standard deviations of what documents, seeds and both together do to one configuration.
    """
    targets = rng.integers(50, 400, documents).astype(float)
    common, found = rng.normal(3, 0.5, documents), []
    for effect in effects:
        own = rng.normal(0, spread[0], documents) + rng.normal(0, spread[1], (seeds, 1))
        own = own + rng.normal(0, spread[2], (seeds, documents))
        found.append(Losses((common + effect + own) * targets, targets))
    return found


SPREADS = {
    "documents": (0.1, 0.0, 0.0),
    "seeds": (0.02, 0.03, 0.02),
    "all": (0.1, 0.02, 0.05),
    "both": (0.05, 0.0, 0.2),
}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("seeds", "documents"), [(2, 60), (3, 40), (5, 40)])
def test_the_combined_interval_covers_the_truth_about_95_times_in_100(spread: str, seeds: int, documents: int) -> None:
    rng, truth, covered = np.random.default_rng(1), 0.02, 0
    for _ in range(STUDIES):
        a, b = simulated(rng, [0.0, truth], seeds, documents, SPREADS[spread])
        interval = combined_interval(a, b)
        covered += interval.low <= truth <= interval.high
    # two seeds say little of their spread, and the interval is wide for it: up to 99 times in 100
    assert 0.92 <= covered / STUDIES <= (0.999 if seeds == 2 else 0.99)


def test_seeds_left_out_of_an_interval_are_missed() -> None:
    """What the documents alone say is wrong as soon as seeds matter: why a winner needs replicates."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        a, b = simulated(rng, [0.0, 0.0], 1, 40, SPREADS["seeds"])
        covered += combined_interval(a, b).covers_zero
    assert covered / 200 < 0.6


def test_the_documents_interval_covers_where_only_documents_vary() -> None:
    rng, covered = np.random.default_rng(2), 0
    for _ in range(STUDIES):
        pair = simulated(rng, [0.0, 0.0], 1, 100, SPREADS["documents"])
        loss, ppl = documents_intervals(*pair)
        assert loss.covers_zero == ppl.covers_zero or min(map(abs, (loss.low, loss.high))) < 0.001
        covered += loss.covers_zero
    assert 0.93 <= covered / STUDIES <= 0.97


def test_the_best_of_many_equals_is_seldom_told_apart_from_any() -> None:
    """Of eight equal configurations the leader is chosen by looking; uncorrected it seems ahead of some too often."""
    rng, wrong, studies = np.random.default_rng(3), {2: 0, 8: 0}, 200
    for _ in range(studies):
        found = simulated(rng, [0.0] * 8, 1, 100, SPREADS["documents"])
        leader = min(found, key=lambda losses: losses.mean)
        for compared in wrong:
            others = (combined_interval(leader, other, all_pairs(compared)) for other in found if other is not leader)
            wrong[compared] += any(interval.low > 0 for interval in others)
    assert wrong[8] / studies <= 0.06
    assert wrong[2] / studies > 0.4


def test_a_difference_is_that_of_the_mean_losses_and_has_the_sign_of_b_minus_a() -> None:
    a, b = simulated(np.random.default_rng(4), [0.0, 0.5], 2, 30, SPREADS["all"])
    (difference,) = differences([a, b], [(0, 1)], comparisons=1)
    assert difference.combined.value == pytest.approx(b.mean - a.mean)
    assert difference.documents.value == pytest.approx(b.mean - a.mean)
    assert difference.documents_ppl.value == pytest.approx(np.exp(b.mean) - np.exp(a.mean))
    assert difference.combined.low > 0
    assert difference.num_seeds == (2, 2)
    assert a.mean == pytest.approx((a.nats.sum(axis=1) / a.targets.sum()).mean())


def test_the_same_losses_twice_differ_by_nothing() -> None:
    (a,) = simulated(np.random.default_rng(5), [0.0], 1, 30, SPREADS["all"])
    (difference,) = differences([a, a], [(0, 1)], comparisons=1)
    assert difference.combined.covers_zero
    assert (difference.documents.low, difference.documents.high) == (0, 0)


def test_with_one_seed_on_a_side_seeds_are_not_tested() -> None:
    rng = np.random.default_rng(6)
    (a,) = simulated(rng, [0.0], 3, 30, SPREADS["all"])
    one = Losses(a.nats[:1] + 1, a.targets)
    assert seeds_interval(a, one) is None
    (difference,) = differences([a, one], [(0, 1)], comparisons=1)
    assert not difference.seeds_tested


def test_one_document_has_no_interval() -> None:
    one = Losses(np.array([[5.0]]), np.array([2.0]))
    with pytest.raises(ValueError, match="at least 2 validation documents"):
        combined_interval(one, one)


def test_seeds_spread_and_freedom_are_welchs() -> None:
    """Against scipy's own Welch test, on documents that are all alike."""
    rng = np.random.default_rng(8)
    targets = np.full(20, 100.0)
    a, b = (Losses(rng.normal(3, 0.1, (seeds, 1)) * targets, targets) for seeds in (3, 4))
    expected = stats.ttest_ind(b.by_seed, a.by_seed, equal_var=False).confidence_interval(0.95)
    for interval in (seeds_interval(a, b), combined_interval(a, b)):
        assert interval is not None
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-6)


def test_seeds_of_all_compared_are_pooled() -> None:
    rng = np.random.default_rng(9)
    found = simulated(rng, [0.0, 0.0, 0.0], 3, 20, SPREADS["seeds"])
    pooled = pooled_seeds(found)
    assert pooled is not None
    assert float(pooled.variance) == pytest.approx(np.mean([each.by_seed.var(ddof=1) for each in found]))
    assert float(pooled.freedom) == 6
    assert pooled_seeds([Losses(each.nats[:1], each.targets) for each in found]) is None
