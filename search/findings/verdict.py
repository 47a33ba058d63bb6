"""Which configuration is better, and how sure is that: pure functions on arrays.

A configuration is its validation losses summed by unit (documents that are independent of each other,
`trainables.evaluation.intervals`), one row for each seed it was run with. Configurations of a study are scored on the
same documents, so differences are taken unit by unit.

Two things could have been others: the documents and the seeds. With K seeds s and n units d the loss of a
configuration is modelled as mean + unit_d + seed_s + interaction_sd, and the variance of a difference in mean
loss as the sum of what each adds:

    documents   the jackknife's, from the differences of the losses averaged over seeds
    seeds       s_a²/K_a + s_b²/K_b, as in Welch's test; left out, and said so, where a configuration has one seed
    interaction of both, which the two above count twice: taken off once

The interval is Student's t: half of it is that of the documents and that of the seeds (Welch's), squares added. Two
configurations that share Phase 1 share part of a seed's luck; treated as independent, their interval is, if anything,
too wide. The leader is the best of many, so its comparisons are corrected: all pairs count (Bonferroni), whichever
leads. With two or three seeds each a pair's own spread of seeds is small by chance too often among so many: there it
is no less than that of all compared configurations together. The studentised range is narrower, but takes one variance
for all pairs; each pair has its own here, and with few documents it errs too often.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainables.evaluation.intervals import Interval, Part, added, documents_part, half_width, ratio


@dataclass(frozen=True, eq=False)
class Losses:
    """One configuration's validation losses."""

    nats: np.ndarray  # (..., seeds, units) summed over each unit's targets
    targets: np.ndarray  # (..., units) how many

    @property
    def num_seeds(self) -> int:
        """K."""
        return int(self.nats.shape[-2])

    @property
    def num_units(self) -> int:
        """How many independent documents there are."""
        return int(self.nats.shape[-1])

    @property
    def by_seed(self) -> np.ndarray:
        """Mean loss of each seed, nats.  # (..., seeds)"""
        by_seed: np.ndarray = self.nats.sum(axis=-1) / self.targets.sum(axis=-1)[..., None]
        return by_seed

    @property
    def mean(self) -> np.ndarray:
        """Mean loss over seeds, nats: the log of the geometric mean PPL.  # (...)"""
        mean: np.ndarray = self.by_seed.mean(axis=-1)
        return mean

    def influence(self) -> np.ndarray:
        """What each unit adds to each seed's mean loss, centred: linearised, times the number of units.

        # (..., seeds, units)
        """
        mean = self.targets.mean(axis=-1, keepdims=True)
        share = (self.targets / mean)[..., None, :]
        influence: np.ndarray = self.nats / mean[..., None, :] - share * self.by_seed[..., None]
        return influence


@dataclass(frozen=True)
class Difference:
    """Configuration b minus a, in mean loss unless said otherwise; below zero b is better."""

    documents: Interval  # over documents alone
    documents_ppl: Interval  # the same in PPL
    seeds: Interval | None  # over seeds alone (Welch); None where one of both has a single seed
    combined: Interval  # over documents, and seeds where both have several; corrected where asked for
    num_seeds: tuple[int, int]
    num_units: int  # independent documents

    @property
    def seeds_tested(self) -> bool:
        """Whether another seed has been allowed for."""
        return self.seeds is not None


def documents_intervals(a: Losses, b: Losses) -> tuple[Interval, Interval]:
    """b minus a over documents alone, in mean loss and in PPL."""
    (_, of_a), (_, of_b) = (ratio(x.nats.mean(axis=0), x.targets) for x in (a, b))
    found = []
    for value, without in (
        (b.mean - a.mean, of_b - of_a),
        (np.exp(b.mean) - np.exp(a.mean), np.exp(of_b) - np.exp(of_a)),
    ):
        half = half_width([documents_part(np.asarray(value), without, a.targets)])
        found.append(Interval(float(value), float(value - half), float(value + half)))
    return found[0], found[1]


def _seeds_part(a: Losses, b: Losses) -> Part:
    each = [Part(x.by_seed.var(axis=-1, ddof=1) / x.num_seeds, np.asarray(x.num_seeds - 1.0)) for x in (a, b)]
    return added(each)


def seeds_interval(a: Losses, b: Losses) -> Interval | None:
    """b minus a over seeds, these documents taken as given: Welch's t. None where one has a single seed."""
    if min(a.num_seeds, b.num_seeds) < 2:
        return None
    value, half = b.mean - a.mean, half_width([_seeds_part(a, b)])
    return Interval(float(value), float(value - half), float(value + half))


def combined_interval(a: Losses, b: Losses, comparisons: int = 1, pooled: Part | None = None) -> Interval:
    """b minus a over documents and seeds (this module's head says how).

    Args:
        comparisons: how many intervals are to hold at once with 95 %; of a leader, `all_pairs`.
        pooled: of all compared configurations, `pooled_seeds`: the least that seeds are taken to vary.

    Raises:
        ValueError: fewer than two units of documents.
    """
    value, half = combined(a, b, comparisons, pooled)
    return Interval(float(value), float(value - half), float(value + half))


def combined(a: Losses, b: Losses, comparisons: int = 1, pooled: Part | None = None) -> tuple[np.ndarray, np.ndarray]:
    """As `combined_interval`, its middle and half its width; of arrays with leading axes one for each.  # (...)"""
    if a.num_units < 2:
        raise ValueError(f"an interval needs at least 2 validation documents, not {a.num_units}")
    value, without = ratio(b.nats.mean(axis=-2) - a.nats.mean(axis=-2), a.targets)
    documents = documents_part(value, without, a.targets)
    if min(a.num_seeds, b.num_seeds) < 2:
        return value, half_width([documents], comparisons)
    seeds = _seeds_part(a, b)
    if pooled is not None:
        least = pooled.variance * (1 / a.num_seeds + 1 / b.num_seeds)
        seeds = Part(np.maximum(seeds.variance, least), pooled.freedom)
    # Each of the two is at most the whole: never below either, whatever the estimate of the interaction.
    whole = documents.variance + seeds.variance - _interaction(a) - _interaction(b)
    variance = np.maximum(whole, np.maximum(documents.variance, seeds.variance))
    return value, half_width([documents, seeds], comparisons, variance)


def _interaction(losses: Losses) -> np.ndarray:
    """Variance of a mean loss that comes from seeds doing differently on different documents.  # (...)"""
    influence = losses.influence()
    seeds, number = influence.shape[-2:]
    rest = influence - influence.mean(axis=-2, keepdims=True)
    found: np.ndarray = (rest**2).sum(axis=(-2, -1)) / ((seeds - 1) * (number - 1)) / (seeds * number)
    return found


def pooled_seeds(configurations: Sequence[Losses]) -> Part | None:
    """How much mean loss varies from seed to seed, over all configurations with several; None where none has."""
    several = [losses for losses in configurations if losses.num_seeds > 1]
    if not several:
        return None
    freedom = sum(losses.num_seeds - 1 for losses in several)
    squares = sum(losses.by_seed.var(axis=-1) * losses.num_seeds for losses in several)
    return Part(np.asarray(squares / freedom), np.asarray(float(freedom)))


def all_pairs(compared: int) -> int:
    """How many comparisons a leader is the outcome of that was chosen by looking at `compared` configurations."""
    return compared * (compared - 1) // 2


def differences(configurations: list[Losses], pairs: list[tuple[int, int]], comparisons: int) -> list[Difference]:
    """The differences `b - a` of pairs (a, b), by index; all on the same documents.

    Args:
        comparisons: as in `combined_interval`.
    """
    found, pooled = [], pooled_seeds(configurations) if comparisons > 1 else None
    for i, j in pairs:
        a, b = configurations[i], configurations[j]
        loss, ppl = documents_intervals(a, b)
        sizes, both = (a.num_seeds, b.num_seeds), combined_interval(a, b, comparisons, pooled)
        found.append(Difference(loss, ppl, seeds_interval(a, b), both, sizes, a.num_units))
    return found
