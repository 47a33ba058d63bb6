"""How often the project's 95 % intervals hold, on studies whose truth is known: run as a script for the full tables.

    python tests/coverage_of_intervals.py [--studies 10000] [--json FILE]

Intervals are the project's own; only `old_half`, a percentile bootstrap over documents, is here for comparison.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from search.verdict import Losses, all_pairs, combined, pooled_seeds
from trainables.intervals import documents_part, half_width, ratio

GENERATORS = ("normal", "skewed", "growing", "lognormal lengths")
DOCUMENTS, SEEDS = (10, 20, 100, 1000), (1, 2, 3, 5)
TRUTH, SPREAD, SEED_SPREAD = 0.02, 0.1, 0.02  # nats: true difference, of documents, of seeds
CELLS = 4_000_000  # numbers of one batch


def lengths(kind: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Targets of each document.  # `shape`"""
    if kind == "normal":
        return np.full(shape, 200.0)
    if kind == "lognormal lengths":
        return np.ceil(rng.lognormal(5, 1, shape))
    return rng.integers(50, 400, shape).astype(float)


def per_target(kind: str, rng: np.random.Generator, targets: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What documents add to a mean loss, mean zero over targets.  # `shape`"""
    if kind == "skewed":
        return SPREAD * (rng.exponential(1, shape) - 1)
    noise = rng.normal(0, SPREAD, shape)
    if kind == "growing":  # mean 0 over targets where lengths are even from 50 to 399
        values = np.arange(50, 400)
        noise = noise + SPREAD * (targets - (values**2).sum() / values.sum()) / values.std()
    return noise


def pair(kind: str, rng: np.random.Generator, studies: int, documents: int, seeds: int) -> tuple[Losses, Losses]:
    """Two configurations of each study, the second worse by `TRUTH`."""
    targets = lengths(kind, rng, (studies, documents))
    own = per_target(kind, rng, targets, (studies, documents))[:, None]
    found = []
    for number in range(2):
        by_seed = rng.normal(0, SEED_SPREAD, (studies, seeds, 1)) if seeds > 1 else 0.0
        both = rng.normal(0, SPREAD / 2, (studies, seeds, documents))
        found.append(Losses((3 + by_seed + both + number * (own + TRUTH)) * targets[:, None], targets))
    return found[0], found[1]


def in_batches(studies: int, size: int, measure: Callable[[int], np.ndarray]) -> np.ndarray:
    """`measure` of all studies, so many at once that their numbers fit the memory.  # (studies, ...)"""
    batch = max(1, min(studies, CELLS // size))
    return np.concatenate([measure(min(batch, studies - begin)) for begin in range(0, studies, batch)])


def old_half(difference: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ends of a percentile bootstrap of one study, 2,000 draws.  # (2,)"""
    number = len(targets)
    weights = rng.multinomial(number, np.full(number, 1 / number), size=2_000).astype(float)
    found: np.ndarray = np.quantile((weights @ difference) / (weights @ targets), [0.025, 0.975])
    return found


def coverage(kind: str, studies: int, documents: int, seeds: int) -> float:
    """Share of studies whose interval holds the true difference."""
    rng = np.random.default_rng([documents, seeds, GENERATORS.index(kind)])

    def measure(number: int) -> np.ndarray:
        value, half = combined(*pair(kind, rng, number, documents, seeds))
        return np.abs(value - TRUTH) <= half

    return float(in_batches(studies, documents * seeds, measure).mean())


def old_coverage(kind: str, studies: int, documents: int) -> float:
    """As `coverage`, of the percentile bootstrap with one seed."""
    rng = np.random.default_rng([documents, 9, GENERATORS.index(kind)])
    a, b = pair(kind, rng, studies, documents, 1)
    ends = np.array([old_half((b.nats - a.nats)[i, 0], a.targets[i], rng) for i in range(studies)])
    return float(((ends[:, 0] <= TRUTH) & (ends[:, 1] >= TRUTH)).mean())


def family_error(studies: int, configurations: int, documents: int, seeds: int = 1, kind: str = "growing") -> float:
    """Share of studies of equal configurations in which the leader is said to be ahead of some other."""
    rng = np.random.default_rng([configurations, documents, seeds])

    def measure(number: int) -> np.ndarray:
        targets = lengths(kind, rng, (number, documents))
        own = rng.normal(0, SPREAD, (configurations, number, 1, documents))
        own = own + rng.normal(0, SPREAD / 2, (configurations, number, seeds, documents))
        if seeds > 1:
            own = own + rng.normal(0, SEED_SPREAD, (configurations, number, seeds, 1))
        nats = (3 + own) * targets[:, None]
        leader = Losses(nats, targets).mean.argmin(axis=0)
        best = Losses(nats[leader, np.arange(number)], targets)
        pooled, wrong = pooled_seeds([Losses(each, targets) for each in nats]), np.zeros(number, bool)
        for each in nats:
            value, half = combined(best, Losses(each, targets), all_pairs(configurations), pooled)
            wrong |= value > half
        return wrong

    return float(in_batches(studies, configurations * documents * seeds, measure).mean())


def power(studies: int, documents: int, old: bool) -> float:
    """Share of studies that tell two configurations of one seed apart whose PPL differs by 3 %."""
    rng = np.random.default_rng([documents, 3])
    targets = lengths("growing", rng, (studies, documents))
    difference = (math.log(1.03) + rng.normal(0, SPREAD / 2, (studies, documents))) * targets
    if old:
        lows = [old_half(d, t, rng)[0] for d, t in zip(difference, targets, strict=True)]
        return float((np.array(lows) > 0).mean())
    value, without = ratio(difference, targets)
    return float((value > half_width([documents_part(value, without, targets)])).mean())


def false_better(kind: str, studies: int, documents: int) -> float:
    """Share of studies in which a model that is no better would be the registry's champion."""
    rng = np.random.default_rng([documents, 5, GENERATORS.index(kind)])
    a, b = pair(kind, rng, studies, documents, 1)
    value, half = combined(a, Losses(b.nats - TRUTH * b.targets[:, None], b.targets))
    return float((value + half < 0).mean())


def width(studies: int, documents: int) -> float:
    """Mean width on normal data of equal lengths, by that of Student's t."""
    rng = np.random.default_rng([documents, 7])
    a, b = pair("normal", rng, studies, documents, 1)
    each = ((b.nats - a.nats) / a.targets[:, None])[:, 0]
    students = stats.t.ppf(0.975, documents - 1) * each.std(axis=-1, ddof=1) / documents**0.5
    return float((combined(a, b)[1] / students).mean())


def measured(studies: int) -> dict[str, Any]:
    """All figures, as shares."""
    fewer = max(studies // 5, 1)
    return {
        "coverage": {
            kind: {f"{d} documents": {f"{s} seeds": coverage(kind, studies, d, s) for s in SEEDS} for d in DOCUMENTS}
            for kind in GENERATORS
        },
        "coverage of a percentile bootstrap": {
            kind: {f"{d} documents": old_coverage(kind, fewer, d) for d in DOCUMENTS[:3]} for kind in GENERATORS
        },
        "wrongly behind": {
            f"{k} configurations": {
                f"{d} documents": {f"{s} seeds": family_error(fewer, k, d, s) for s in (1, 2, 3)} for d in DOCUMENTS[:3]
            }
            for k in (12, 48)
        },
        "power at 3 %": {
            f"{d} documents": {"this": power(studies, d, old=False), "percentile bootstrap": power(fewer, d, old=True)}
            for d in DOCUMENTS[:3]
        },
        "equal model called better": {
            kind: {f"{d} documents": false_better(kind, studies, d) for d in DOCUMENTS[:3]} for kind in GENERATORS
        },
        "width by Student's": {f"{d} documents": width(fewer, d) for d in DOCUMENTS},
    }


def main() -> None:
    """Measure, and print or write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    found = json.dumps(measured(args.studies), indent=2)
    print(found)
    if args.json:
        args.json.write_text(found + "\n")


if __name__ == "__main__":
    main()
