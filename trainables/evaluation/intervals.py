"""Intervals over documents: what a figure would have been on other documents of the same kind.

A figure is a ratio of sums over documents: nats by targets. Its variance is that of the delete-one jackknife, its
quantile Student's t, with as many degrees of freedom as documents of equal length would have that weigh as much
together. Documents that are no independent draws are one unit, their sums added, before any variance is taken.

Every function takes leading axes, one result for each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import expit, logit

LEVEL = 0.95
CHAMPION_LEVEL = 0.98  # so that with few, skewed documents, too, hardly an equal model counts as better
FEW_UNITS = 100  # under so many an interval is rough
FEW = "so few that the interval is rough"
UNITS_UNKNOWN = "equal documents not known"  # of a record of an earlier version: each counts as one of its own


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


@dataclass(frozen=True, eq=False)
class Part:
    """One independent part of an estimate's variance."""

    variance: np.ndarray  # (...)
    freedom: np.ndarray  # (...) degrees of freedom


def merged(units: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Each document's figures added up over the documents of its unit, by ascending unit.

    Args:
        units: whose equal numbers are one unit.  # (documents,) integers
        columns: # (..., documents)

    # (..., units)
    """
    order = np.argsort(units, kind="stable")
    starts = np.flatnonzero(np.diff(units[order], prepend=units[order][:1] - 1))
    found: np.ndarray = np.add.reduceat(columns[..., order], starts, axis=-1)
    return found


def ratio(sums: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A ratio of sums over units, and what it is without each of them.

    Args:
        sums: # (..., units)
        sizes: positive, at least two.  # (..., units)

    # (...) and (..., units)
    """
    whole, size = sums.sum(axis=-1), sizes.sum(axis=-1)
    without = (whole[..., None] - sums) / (size[..., None] - sizes)
    return whole / size, without


def documents_part(value: np.ndarray, without: np.ndarray, sizes: np.ndarray) -> Part:
    """The jackknife's variance of an estimate over units.

    Args:
        value: the estimate.  # (...)
        without: what it is without each unit.  # (..., units)
        sizes: of the units, which weigh them.  # (..., units)
    """
    number = without.shape[-1]
    # about the estimate itself, not the mean of `without`: never smaller, which few units of unequal size need
    variance = (number - 1) / number * ((without - value[..., None]) ** 2).sum(axis=-1)
    equal = sizes.sum(axis=-1) ** 2 / (sizes**2).sum(axis=-1)  # units of one size that weigh as much together
    return Part(variance, np.broadcast_to(np.maximum(equal - 1, 1), variance.shape))


def added(parts: Sequence[Part]) -> Part:
    """The sum of independent parts of one kind, with Welch and Satterthwaite's degrees of freedom."""
    total = np.sum([part.variance for part in parts], axis=0)
    spread = np.sum([part.variance**2 / part.freedom for part in parts], axis=0)
    known = spread > 0
    return Part(total, np.where(known, total**2 / np.where(known, spread, 1), parts[0].freedom))


def half_width(
    parts: Sequence[Part], comparisons: int = 1, variance: np.ndarray | None = None, level: float = LEVEL
) -> np.ndarray:
    """Half of an interval of independent parts: each with its own quantile of Student's t, their squares added.

    One number of degrees of freedom for the sum would be that of the part which is larger by chance; far out, where
    several comparisons are to hold, intervals would then be too narrow.

    Args:
        comparisons: how many intervals are to hold at once (Bonferroni).
        variance: the whole's where it isn't the parts' sum.  # (...)
        level: how often they are to hold.

    # (...)
    """
    total = np.sum([part.variance for part in parts], axis=0)
    tail = (1 - level) / 2 / comparisons
    squares = np.sum([stats.t.isf(tail, part.freedom) ** 2 * part.variance for part in parts], axis=0)
    if variance is not None:
        squares = squares * np.where(total > 0, variance / np.where(total > 0, total, 1), 1)
    half: np.ndarray = np.sqrt(squares)
    return half


def ratio_interval(sums: np.ndarray, sizes: np.ndarray, level: float = LEVEL) -> Interval:
    """A ratio of sums with its interval over units; NaN ends where there is one unit.

    Args:
        sums: # (units,)
        sizes: positive.  # (units,)
        level: how often it is to hold.
    """
    if len(sizes) < 2:
        return Interval(float(sums.sum() / sizes.sum()), np.nan, np.nan)
    value, without = ratio(sums, sizes)
    half = float(half_width([documents_part(value, without, sizes)], level=level))
    return Interval(float(value), float(value) - half, float(value) + half)


def share_ends(share: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An interval of a share, taken of its logit: the ends of a rare one lie further up, and never below none.

    Where none or all of them are hits nothing is known of the spread, and `half` is 0.

    Args:
        share: # (...)
        half: half of the share's own interval.  # (...)

    # (...) each
    """
    known = (share > 0) & (share < 1)
    inner = np.where(known, share, 0.5)
    wide = half / (inner * (1 - inner))  # the logit's slope
    low, high = (np.where(known, expit(logit(inner) + side * wide), share + side * half) for side in (-1, 1))
    return low, high


def share_interval(hits: np.ndarray, sizes: np.ndarray) -> Interval:
    """As `ratio_interval`, of a share: `hits` among `sizes`."""
    plain = ratio_interval(hits, sizes)
    low, high = share_ends(np.asarray(plain.value), np.asarray(plain.high - plain.value))
    return Interval(plain.value, float(low), float(high))


def transformed(interval: Interval, of: Callable[[float], float]) -> Interval:
    """The interval of a growing function of an estimate."""
    return Interval(*(float(of(end)) for end in (interval.value, interval.low, interval.high)))
