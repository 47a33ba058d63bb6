"""Which configuration is better, and how sure is that: pure functions on arrays.

A configuration is its validation losses summed by document, one row for each seed it was run with. Configurations of
a study are judged on the same documents, so differences are taken document by document.

Two things could have been others: the documents and the seeds. With K seeds s and n documents d the loss of a
configuration is modelled as mean + document_d + seed_s + interaction_sd, and the variance of a difference in mean
loss as the sum of what each adds:

    documents   from the differences of the losses averaged over seeds, document by document
    seeds       s_a²/K_a + s_b²/K_b, as in Welch's test; left out, and said so, where a configuration has one seed
    interaction of both, which the two above count twice: taken off once

Variances are added since a two-level bootstrap is wrong for few seeds: drawn with replacement, two seeds show on
average half of their variance. The interval is Student's t with Welch and Satterthwaite's degrees of freedom. Two
configurations that share Phase 1 share part of a seed's luck; treated as independent, their interval is, if anything,
too wide. The leader is the best of many, so its comparisons are corrected: their intervals take Tukey's studentised
range over all that were compared in place of t (Games and Howell), which holds for every pair at once, whichever leads;
with few documents a little less often than 95 times in 100.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

from trainables.bootstrap import LEVEL, Interval, percentiles, resampled_sums


@dataclass(frozen=True, eq=False)
class Losses:
    """One configuration's validation losses."""

    nats: np.ndarray  # (seeds, documents) summed over each document's targets
    targets: np.ndarray  # (documents,) how many

    @property
    def by_seed(self) -> np.ndarray:
        """Mean loss of each seed, nats.  # (seeds,)"""
        by_seed: np.ndarray = self.nats.sum(axis=1) / self.targets.sum()
        return by_seed

    @property
    def mean(self) -> float:
        """Mean loss over seeds, nats: the log of the geometric mean PPL."""
        return float(self.by_seed.mean())

    def influence(self) -> np.ndarray:
        """What each document adds to each seed's mean loss, centred: linearised, times the number of documents.

        # (seeds, documents)
        """
        share = self.targets / self.targets.mean()
        influence: np.ndarray = self.nats / self.targets.mean() - share * self.by_seed[:, None]
        return influence


@dataclass(frozen=True)
class Difference:
    """Configuration b minus a, in mean loss unless said otherwise; below zero b is better."""

    documents: Interval  # over documents alone, by bootstrap
    documents_ppl: Interval  # the same in PPL
    seeds: Interval | None  # over seeds alone (Welch); None where one of both has a single seed
    combined: Interval  # over documents, and seeds where both have several; corrected where asked for
    num_seeds: tuple[int, int]

    @property
    def seeds_tested(self) -> bool:
        """Whether another seed has been allowed for."""
        return self.seeds is not None


def bootstrap(configurations: list[Losses], seed: int = 0) -> np.ndarray:
    """Mean losses on resampled documents; every configuration sees the same ones.  # (RESAMPLES, configurations)"""
    averaged = [losses.nats.mean(axis=0) for losses in configurations]  # (documents,) each
    drawn = resampled_sums(np.stack([*averaged, configurations[0].targets], axis=1), seed)
    means: np.ndarray = drawn[:, :-1] / drawn[:, -1:]
    return means


def documents_intervals(a: Losses, b: Losses, drawn_a: np.ndarray, drawn_b: np.ndarray) -> tuple[Interval, Interval]:
    """b minus a over documents, in mean loss and in PPL: percentiles of the bootstrap."""
    loss = percentiles(b.mean - a.mean, drawn_b - drawn_a)
    ppl = percentiles(float(np.exp(b.mean) - np.exp(a.mean)), np.exp(drawn_b) - np.exp(drawn_a))
    return loss, ppl


def _welch(parts: list[tuple[float, float]]) -> tuple[float, float]:
    """Sum of independent variances and its degrees of freedom, from (variance, degrees of freedom) of each."""
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / freedom for variance, freedom in parts)
    return total, total**2 / spread if spread > 0 else float(parts[0][1])


def _seed_parts(a: Losses, b: Losses) -> list[tuple[float, float]]:
    return [(float(x.by_seed.var(ddof=1)) / len(x.nats), len(x.nats) - 1.0) for x in (a, b)]


def seeds_interval(a: Losses, b: Losses) -> Interval | None:
    """b minus a over seeds, these documents taken as given: Welch's t. None where one has a single seed."""
    if min(len(a.nats), len(b.nats)) < 2:
        return None
    return _student(b.mean - a.mean, *_welch(_seed_parts(a, b)), compared=2)


def combined_interval(a: Losses, b: Losses, compared: int = 2) -> Interval:
    """b minus a over documents and seeds (this module's head says how).

    Args:
        compared: how many configurations were looked at to choose these two; above 2 the interval is wider, so that
            the intervals of all pairs hold at once with 95 %.

    Raises:
        ValueError: fewer than two documents.
    """
    number = len(a.targets)
    if number < 2:
        raise ValueError(f"an interval needs at least 2 validation documents, not {number}")
    each = b.influence().mean(axis=0) - a.influence().mean(axis=0)  # (documents,)
    documents = (float(each.var(ddof=1)) / number, number - 1.0)
    if min(len(a.nats), len(b.nats)) < 2:
        return _student(b.mean - a.mean, *documents, compared)
    parts = [documents, *_seed_parts(a, b)]
    total, freedom = _welch(parts)
    seeds = parts[1][0] + parts[2][0]
    # Each of the two is at most the whole: never below either, whatever the estimate of the interaction.
    variance = max(total - _interaction(a) - _interaction(b), documents[0], seeds)
    return _student(b.mean - a.mean, variance, freedom, compared)


def _interaction(losses: Losses) -> float:
    """Variance of a mean loss that comes from seeds doing differently on different documents."""
    influence = losses.influence()
    seeds, number = influence.shape
    rest = influence - influence.mean(axis=0)
    return float((rest**2).sum() / ((seeds - 1) * (number - 1)) / (seeds * number))


def _student(value: float, variance: float, freedom: float, compared: int) -> Interval:
    half = _quantile(compared, math.floor(10 * freedom) / 10) * variance**0.5
    return Interval(value, value - half, value + half)


@cache  # a tenth of a second each: hence the rounded degrees of freedom, downwards
def _quantile(compared: int, freedom: float) -> float:
    if compared > 2:
        return float(stats.studentized_range.ppf(LEVEL, compared, freedom)) / 2**0.5
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def differences(configurations: list[Losses], pairs: list[tuple[int, int]], compared: int) -> list[Difference]:
    """The differences `b - a` of pairs (a, b), by index; all on the same documents.

    Args:
        compared: as in `combined_interval`.
    """
    drawn = bootstrap(configurations)
    found = []
    for i, j in pairs:
        a, b = configurations[i], configurations[j]
        loss, ppl = documents_intervals(a, b, drawn[:, i], drawn[:, j])
        sizes = (len(a.nats), len(b.nats))
        found.append(Difference(loss, ppl, seeds_interval(a, b), combined_interval(a, b, compared), sizes))
    return found
