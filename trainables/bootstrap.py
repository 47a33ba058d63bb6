"""Bootstrap over documents: what the figures would have been on other documents of the same kind."""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
CHUNK = 500  # resamples at once
LEVEL = 0.95


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


def resampled_sums(columns: np.ndarray, seed: int = 0) -> np.ndarray:
    """Sums of each column over documents drawn with replacement, as many as there are; all columns see the same ones.

    Args:
        columns: what each document adds to each sum.  # (documents, columns)

    # (RESAMPLES, columns)
    """
    number, rng = len(columns), np.random.default_rng(seed)
    even = np.full(number, 1 / number)
    drawn = []
    for _ in range(RESAMPLES // CHUNK):
        weights = rng.multinomial(number, even, size=CHUNK).astype(np.float64)  # (CHUNK, documents)
        drawn.append(weights @ columns)
    return np.concatenate(drawn)


def percentiles(value: float, drawn: np.ndarray) -> Interval:
    """The interval of an estimate from what it was on resampled documents.  # (RESAMPLES,)"""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
