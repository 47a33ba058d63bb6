"""Losses by document, and how sure a difference is over documents: a paired bootstrap, on arrays."""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
CHUNK = 500  # resamples at once
LEVEL = 0.95


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
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def covers_zero(self) -> bool:
        """Whether no difference is among what is plausible."""
        return self.low <= 0 <= self.high


def bootstrap(configurations: list[Losses], seed: int = 0) -> np.ndarray:
    """Mean losses on resampled documents; every configuration sees the same ones.  # (RESAMPLES, configurations)"""
    targets = configurations[0].targets
    averaged = np.stack([losses.nats.mean(axis=0) for losses in configurations], axis=1)  # (documents, configurations)
    number, rng = len(targets), np.random.default_rng(seed)
    even = np.full(number, 1 / number)
    drawn = []
    for _ in range(RESAMPLES // CHUNK):
        weights = rng.multinomial(number, even, size=CHUNK).astype(np.float64)  # (CHUNK, documents)
        drawn.append(weights @ averaged / (weights @ targets)[:, None])
    return np.concatenate(drawn)


def documents_intervals(a: Losses, b: Losses, drawn_a: np.ndarray, drawn_b: np.ndarray) -> tuple[Interval, Interval]:
    """b minus a over documents, in mean loss and in PPL: percentiles of the bootstrap."""
    loss = _percentiles(b.mean - a.mean, drawn_b - drawn_a)
    ppl = _percentiles(float(np.exp(b.mean) - np.exp(a.mean)), np.exp(drawn_b) - np.exp(drawn_a))
    return loss, ppl


def _percentiles(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
