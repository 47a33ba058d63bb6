"""Intervals on data whose truth is known: they must hold about as often as they say."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import logit

from search.findings.verdict import (
    Losses,
    _interaction,
    all_pairs,
    combined,
    combined_interval,
    differences,
    documents_intervals,
    pooled_seeds,
    seeds_interval,
)
from trainables.evaluation.intervals import Part, added, documents_part, merged, ratio, ratio_interval, share_interval

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


def t_ratio(comparisons: int, freedom: float) -> float:
    """By how much the quantile for several comparisons at once is larger than that for one."""
    return float(stats.t.isf(0.025 / comparisons, freedom) / stats.t.isf(0.025, freedom))


def test_of_documents_alone_a_corrected_difference_is_wider_by_students_quantiles() -> None:
    targets = np.full(20, 100.0)
    found = [Losses(np.random.default_rng(k).normal(300, 10, (1, 20)), targets) for k in range(3)]
    (difference,) = differences(found, [(0, 1)], comparisons=3)
    plain, wide = (each.high - each.low for each in (difference.documents, difference.combined))
    assert wide / plain == pytest.approx(t_ratio(3, 19))
    (one,) = differences(found, [(0, 1)], comparisons=1)
    assert (one.combined.low, one.combined.high) == pytest.approx((one.documents.low, one.documents.high))


def alike(means: list[float]) -> Losses:
    """A configuration whose seeds have these mean losses on every document."""
    targets = np.full(20, 100.0)
    return Losses(np.array(means)[:, None] * targets, targets)


def test_a_corrected_difference_of_seeds_has_the_least_spread_and_the_freedom_of_all_compared() -> None:
    a, b, c = alike([3.0, 3.0]), alike([3.1, 3.1, 3.1]), alike([2.9, 3.1])
    pooled = 0.02 / 4  # the squares of `c` alone, over one, two and one degrees of freedom
    (difference,) = differences([a, b, c], [(0, 1)], comparisons=3)
    expected = stats.t.isf(0.025 / 3, 4) * (pooled * (1 / 2 + 1 / 3)) ** 0.5
    assert (difference.combined.high - difference.combined.low) / 2 == pytest.approx(expected)
    (own,) = differences([a, b, c], [(0, 1)], comparisons=1)  # a pair that nobody chose: its own seeds alone
    assert own.combined.high - own.combined.low == pytest.approx(0, abs=1e-9)
    (wider,) = differences([a, b, c], [(0, 2)], comparisons=3)  # its own spread is above the least
    expected = stats.t.isf(0.025 / 3, 4) * (0.02 / 2) ** 0.5
    assert (wider.combined.high - wider.combined.low) / 2 == pytest.approx(expected)


def test_what_seeds_and_documents_do_together_is_counted_once() -> None:
    """Against the analysis of variance of a table of seeds by documents of equal length."""
    rng = np.random.default_rng(11)
    seeds, number, size = 4, 10, 100.0
    targets = np.full(number, size)
    documents, each = rng.normal(0, 1, number), rng.normal(0, 1, (seeds, 1))
    table = 3 + documents + each + rng.normal(0, 0.5, (seeds, number))
    a, b = Losses(table * size, targets), Losses(np.full((seeds, number), 2.0) * size, targets)
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    together = (rest**2).sum() / ((seeds - 1) * (number - 1)) / (seeds * number)
    of_documents = table.mean(axis=0).var(ddof=1) / number
    of_seeds = table.mean(axis=1).var(ddof=1) / seeds
    whole = of_documents + of_seeds - together
    assert max(of_documents, of_seeds) < whole < of_documents + of_seeds
    squares = stats.t.isf(0.025, number - 1) ** 2 * of_documents + stats.t.isf(0.025, seeds - 1) ** 2 * of_seeds
    expected = (squares * whole / (of_documents + of_seeds)) ** 0.5
    interval = combined_interval(b, a)
    assert (interval.high - interval.low) / 2 == pytest.approx(expected)


def test_a_units_influence_is_what_its_weight_more_or_less_does_to_the_mean() -> None:
    """Against the derivative, on documents of unequal length."""
    (found,) = simulated(np.random.default_rng(12), [0.0], 2, 7, SPREADS["all"])
    influence = found.influence()
    for unit in range(found.num_units):
        weight = np.ones(found.num_units)
        weight[unit] += 1e-6
        moved = (found.nats * weight).sum(axis=1) / (found.targets * weight).sum()
        assert influence[:, unit] / found.num_units == pytest.approx((moved - found.by_seed) / 1e-6, rel=1e-4)
    assert influence.sum(axis=1) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("seeds", [(1, 3), (3, 1)])
def test_with_one_seed_on_either_side_the_interval_is_that_of_the_documents(seeds: tuple[int, int]) -> None:
    a, b = (simulated(np.random.default_rng(k), [0.0], k, 15, SPREADS["all"])[0] for k in seeds)
    b = Losses(b.nats, a.targets)
    (difference,) = differences([a, b], [(0, 1)], comparisons=1)
    ends = difference.documents.low, difference.documents.high
    assert (difference.combined.low, difference.combined.high) == pytest.approx(ends)
    assert not difference.seeds_tested


def test_two_seeds_on_each_side_are_tested_and_two_documents_are_enough() -> None:
    targets = np.full(2, 100.0)
    a, b = (Losses(np.array(nats) * targets, targets) for nats in ([[3.0, 3.1], [3.1, 3.2]], [[2.0, 2.1], [2.2, 2.3]]))
    (difference,) = differences([a, b], [(0, 1)], comparisons=1)
    assert difference.seeds_tested
    assert difference.num_units == 2
    assert np.isfinite([difference.combined.low, difference.combined.high]).all()


def test_units_weigh_as_many_as_documents_of_one_size_would() -> None:
    sizes = np.array([10.0, 10.0, 20.0])
    sums = np.array([30.0, 31.0, 59.0])
    value, without = ratio(sums, sizes)
    assert (float(value), *without) == pytest.approx((3.0, 90 / 30, 89 / 30, 61 / 20))
    part = documents_part(value, without, sizes)
    assert float(part.variance) == pytest.approx(2 / 3 * ((1 / 30) ** 2 + (1 / 20) ** 2))
    assert float(part.freedom) == pytest.approx(1600 / 600 - 1)
    lopsided = documents_part(value, without, np.array([1.0, 1.0, 98.0]))
    assert float(lopsided.freedom) == 1


def test_parts_of_no_variance_have_their_own_freedom() -> None:
    none = Part(np.array(0.0), np.array(3.0))
    both = added([none, none])
    assert (float(both.variance), float(both.freedom)) == (0, 3)
    small = added([Part(np.array(1e-3), np.array(3.0)), Part(np.array(2e-3), np.array(5.0))])
    assert float(small.freedom) == pytest.approx(9 / (1 / 3 + 4 / 5))


def test_documents_of_a_unit_are_added_up_whatever_their_order() -> None:
    units = np.array([7, -1, 7, 0, -1])
    columns = np.arange(10.0).reshape(2, 5)
    assert merged(units, columns).tolist() == [[5.0, 3.0, 2.0], [15.0, 8.0, 12.0]]


def test_a_share_s_interval_is_that_of_its_logit_and_stays_a_share() -> None:
    sizes = np.array([40.0, 60.0, 50.0, 30.0])
    hits = np.array([1.0, 0.0, 3.0, 0.0])
    plain, found = ratio_interval(hits, sizes), share_interval(hits, sizes)
    assert plain.low < 0 < found.low < found.value < plain.high < found.high < 1
    logits = [float(logit(end)) for end in (found.low, found.value, found.high)]
    slope = 1 / (found.value * (1 - found.value))
    assert logits[1] - logits[0] == pytest.approx(logits[2] - logits[1])
    assert logits[2] - logits[1] == pytest.approx(slope * (plain.high - plain.value))
    for share in (0.0, 1.0):  # nothing is known of the spread
        known = share_interval(share * sizes, sizes)
        assert (known.value, known.low, known.high) == (share, share, share)
    alone = share_interval(hits[:1], sizes[:1])
    assert np.isnan([alone.low, alone.high]).all()


def test_a_batch_of_studies_is_each_of_them_alone() -> None:
    rng = np.random.default_rng(3)
    spread = np.array([0.1, 1.0, 10.0])[:, None, None]  # so that no study may take another's
    targets = rng.integers(50, 200, (3, 12)).astype(float)
    a, b, c = (Losses((3 + spread * rng.normal(0, 0.1, (3, 4, 12))) * targets[:, None], targets) for _ in range(3))
    pooled = pooled_seeds([a, b, c])
    value, half = combined(a, b, 3, pooled)
    plain_value, plain_half = combined(a, b)
    for study in range(3):
        alone = [Losses(each.nats[study], targets[study]) for each in (a, b, c)]
        own = pooled_seeds(alone)
        assert np.allclose([value[study], half[study]], combined(*alone[:2], 3, own), rtol=1e-12)
        assert np.allclose([plain_value[study], plain_half[study]], combined(*alone[:2]), rtol=1e-12)
        assert np.allclose(a.influence()[study], alone[0].influence(), rtol=1e-12)
        assert np.isclose(_interaction(a)[study], _interaction(alone[0]), rtol=1e-12)
        assert pooled is not None
        assert own is not None
        assert np.isclose(pooled.variance[study], own.variance, rtol=1e-12)


def test_parts_of_a_batch_are_added_study_by_study() -> None:
    parts = [Part(np.array([1.0, 4.0]), np.array([3.0, 5.0])), Part(np.array([2.0, 0.5]), np.array([7.0, 2.0]))]
    whole = added(parts)
    for study in range(2):
        alone = added([Part(part.variance[study], part.freedom[study]) for part in parts])
        assert (whole.variance[study], whole.freedom[study]) == (alone.variance, alone.freedom)
