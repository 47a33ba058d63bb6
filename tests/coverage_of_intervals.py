"""How often the project's 95 % intervals hold, on studies whose truth is known: run as a script for the full tables.

    python tests/coverage_of_intervals.py [--studies 10000] [--json FILE]

Intervals are the project's own; only a percentile bootstrap over documents and Tukey's studentised range, which they
took the place of, are here for comparison. All of it takes six minutes of one core.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from search.findings.verdict import Losses, _seeds_part, all_pairs, combined, pooled_seeds
from trainables.evaluation.intervals import CHAMPION_LEVEL, documents_part, half_width, ratio, share_ends

GENERATORS = ("normal", "skewed", "growing", "lognormal lengths")
DOCUMENTS, SEEDS = (10, 20, 100, 1000), (1, 2, 3, 5)
TRUTH, SPREAD, SEED_SPREAD = 0.02, 0.1, 0.02  # nats: true difference, of documents, of seeds
CELLS = 4_000_000  # numbers of one batch
SHARES = {"usual": (0.3, 0.05), "rare": (0.005, 0.01)}  # of hits: mean, and spread from document to document


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


def old_ends(difference: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Ends of a percentile bootstrap of each study, 2,000 draws, the same for all of a batch.  # (studies,) each"""
    number = targets.shape[-1]
    weights = rng.multinomial(number, np.full(number, 1 / number), size=2_000).astype(float)
    drawn = (difference @ weights.T) / (targets @ weights.T)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=-1)
    return low, high


def coverage(kind: str, studies: int, documents: int, seeds: int) -> float:
    """Share of studies whose interval holds the true difference."""
    rng = np.random.default_rng([documents, seeds, GENERATORS.index(kind)])

    def measure(number: int) -> np.ndarray:
        value, half = combined(*pair(kind, rng, number, documents, seeds))
        return np.abs(value - TRUTH) <= half

    return float(in_batches(studies, documents * seeds, measure).mean())


def ppl_coverage(kind: str, studies: int, documents: int) -> float:
    """Share of studies in which the interval of one model's loss, and so of its PPL, holds the true one."""
    rng = np.random.default_rng([documents, 11, GENERATORS.index(kind)])

    def measure(number: int) -> np.ndarray:
        targets = lengths(kind, rng, (number, documents))
        nats = (3 + per_target(kind, rng, targets, (number, documents))) * targets
        value, without = ratio(nats, targets)
        return np.abs(value - 3) <= half_width([documents_part(value, without, targets)])

    return float(in_batches(studies, documents, measure).mean())


def share_coverage(share: str, studies: int, documents: int, by_logit: bool = True) -> float:
    """As `ppl_coverage`, of a share of targets, as accuracy is; with or without being taken of its logit."""
    mean, spread = SHARES[share]
    both = mean * (1 - mean) / spread**2 - 1  # a beta distribution's two parameters together
    rng = np.random.default_rng([documents, 13, list(SHARES).index(share)])

    def measure(number: int) -> np.ndarray:
        sizes = rng.integers(50, 400, (number, documents))
        own = rng.beta(mean * both, (1 - mean) * both, sizes.shape)
        hits, targets = rng.binomial(sizes, own).astype(float), sizes.astype(float)
        value, without = ratio(hits, targets)
        half = half_width([documents_part(value, without, targets)])
        low, high = share_ends(value, half) if by_logit else (value - half, value + half)
        return (low <= mean) & (mean <= high)

    return float(in_batches(studies, documents, measure).mean())


def seeds_coverage(studies: int, seeds: tuple[int, int], by: float = 1.0) -> float:
    """Share of studies in which Welch's interval over seeds, these documents given, holds the true difference.

    Args:
        by: how much more the second configuration's seeds spread.
    """
    rng = np.random.default_rng([*seeds, 17])

    def measure(number: int) -> np.ndarray:
        targets = np.full((number, 2), 200.0)
        a, b = (
            Losses((3 + rng.normal(0, spread * SEED_SPREAD, (number, k, 1))) * targets[:, None], targets)
            for k, spread in zip(seeds, (1, by), strict=True)
        )
        return np.abs(b.mean - a.mean) <= half_width([_seeds_part(a, b)])

    return float(in_batches(studies, sum(seeds), measure).mean())


def old_coverage(kind: str, studies: int, documents: int) -> float:
    """As `coverage`, of the percentile bootstrap with one seed."""
    rng = np.random.default_rng([documents, 9, GENERATORS.index(kind)])

    def measure(number: int) -> np.ndarray:
        a, b = pair(kind, rng, number, documents, 1)
        low, high = old_ends((b.nats - a.nats)[:, 0], a.targets, rng)
        return (low <= TRUTH) & (high >= TRUTH)

    return float(in_batches(studies, 4_000, measure).mean())


def studentised(a: Losses, b: Losses, compared: int) -> np.ndarray:
    """Half of Tukey's interval, one seed each: what decided before, beside the percentile bootstrap.  # (...)"""
    each = (b.influence() - a.influence())[..., 0, :]
    number = each.shape[-1]
    quantile = stats.studentized_range.ppf(0.95, compared, number - 1) / 2**0.5
    half: np.ndarray = quantile * each.std(axis=-1, ddof=1) / number**0.5
    return half


def family(
    studies: int, configurations: int, documents: int, seeds: int = 1, ahead: float = 0, old: bool = False
) -> int:
    """Of studies of many configurations, how often the leader is said to be ahead of another.

    Args:
        ahead: by how much the first is truly better than all others, nats.
        old: by the studentised range, for one seed.

    Returns:
        Without `ahead` the number of studies in which that is said of any; with it that of all others of all studies
        which are said to be behind the first.
    """
    rng = np.random.default_rng([configurations, documents, seeds])

    def measure(number: int) -> np.ndarray:
        targets = lengths("growing", rng, (number, documents))
        own = rng.normal(0, SPREAD / 2, (configurations, number, seeds, documents))
        own += rng.normal(0, SPREAD, (configurations, number, 1, documents)) if not ahead else 0
        own += rng.normal(0, SEED_SPREAD, (configurations, number, seeds, 1)) if seeds > 1 else 0
        own[0] -= ahead
        every = Losses((3 + own) * targets[:, None], targets)
        leader = every.mean.argmin(axis=0)
        best = Losses(np.broadcast_to(every.nats[leader, np.arange(number)], own.shape), targets)
        if old:
            value, half = every.mean - best.mean, studentised(best, every, configurations)
        else:
            pooled = pooled_seeds([Losses(each, targets) for each in every.nats])
            value, half = combined(best, every, all_pairs(configurations), pooled)
        behind = value > half
        return behind[1:].sum(axis=0) * (leader == 0) if ahead else behind.any(axis=0)

    return int(in_batches(studies, configurations * documents * seeds, measure).sum())


def family_error(
    studies: int, configurations: int, documents: int, seeds: int = 1, old: bool = False
) -> dict[str, float]:
    """Share of studies of equal configurations in which one is said to be behind, and its upper 95 % limit."""
    wrong = family(studies, configurations, documents, seeds, old=old)
    return {"share": wrong / studies, "at most": float(stats.beta.ppf(0.95, wrong + 1, studies - wrong))}


def family_power(studies: int, configurations: int, documents: int, old: bool) -> float:
    """Share of the others, of one seed, that are said to be behind a leader whose PPL is 3 % lower."""
    found = family(studies, configurations, documents, ahead=math.log(1.03), old=old)
    return found / studies / (configurations - 1)


def power(studies: int, documents: int, old: bool) -> float:
    """Share of studies that tell two configurations of one seed apart whose PPL differs by 3 %."""
    rng = np.random.default_rng([documents, 3])

    def measure(number: int) -> np.ndarray:
        targets = lengths("growing", rng, (number, documents))
        difference = (math.log(1.03) + rng.normal(0, SPREAD / 2**0.5, (number, documents))) * targets
        if old:
            return old_ends(difference, targets, rng)[0] > 0
        value, without = ratio(difference, targets)
        return value > half_width([documents_part(value, without, targets)])

    return float(in_batches(studies, 4_000, measure).mean())


def false_better(kind: str, studies: int, documents: int) -> float:
    """Share of studies in which a model that is no better would be the registry's champion.

    Documents that it is much worse on are rare where differences are skewed: the direction in which this errs more.
    """
    rng = np.random.default_rng([documents, 5, GENERATORS.index(kind)])

    def measure(number: int) -> np.ndarray:
        a, b = pair(kind, rng, number, documents, 1)
        value, without = ratio((b.nats - a.nats)[:, 0] - TRUTH * a.targets, a.targets)
        return value + half_width([documents_part(value, without, a.targets)], level=CHAMPION_LEVEL) < 0

    return float(in_batches(studies, documents, measure).mean())


def textbook_half(a: Losses, b: Losses) -> np.ndarray:
    """Half of Welch and Satterthwaite's interval of documents and seeds, of equal lengths; of one seed Student's t.

    The variances are those of two-way tables: documents', seeds', less what both do together.  # (...)
    """
    each = [x.nats / x.targets[..., None, :] for x in (a, b)]  # (..., seeds, documents)
    seeds, documents = each[0].shape[-2:]
    of_documents = (each[1] - each[0]).mean(axis=-2).var(axis=-1, ddof=1) / documents
    if seeds == 1:
        return np.asarray(stats.t.isf(0.025, documents - 1) * of_documents**0.5)
    variances, freedoms, both = [of_documents], [documents - 1], np.zeros_like(of_documents)
    for losses in each:
        variances.append(losses.mean(axis=-1).var(axis=-1, ddof=1) / seeds)
        freedoms.append(seeds - 1)
        rest = losses - losses.mean(axis=-1, keepdims=True) - losses.mean(axis=-2, keepdims=True)
        rest += losses.mean(axis=(-2, -1), keepdims=True)
        both += (rest**2).sum(axis=(-2, -1)) / ((seeds - 1) * (documents - 1)) / (seeds * documents)
    parts = np.stack(variances)
    spread = sum(part**2 / freedom for part, freedom in zip(parts, freedoms, strict=True))
    variance = np.maximum(parts.sum(axis=0) - both, np.maximum(of_documents, parts[1:].sum(axis=0)))
    half: np.ndarray = stats.t.isf(0.025, parts.sum(axis=0) ** 2 / spread) * variance**0.5
    return half


def width(studies: int, documents: int, seeds: int = 1) -> dict[str, float]:
    """On normal data of equal lengths: mean width by that of `textbook_half`, and how often that one holds."""
    rng = np.random.default_rng([documents, seeds, 7])

    def measure(number: int) -> np.ndarray:
        a, b = pair("normal", rng, number, documents, seeds)
        (value, half), textbook = combined(a, b), textbook_half(a, b)
        return np.stack([half / textbook, np.abs(value - TRUTH) <= textbook], axis=-1)

    ratios, holds = in_batches(studies, documents * seeds, measure).mean(axis=0)
    return {"ratio": float(ratios), "the textbook's holds": float(holds)}


def measured(studies: int) -> dict[str, Any]:
    """All figures, as shares."""
    few = DOCUMENTS[:3]
    families = {
        f"{k} configurations": {
            f"{d} documents": {
                "wrongly behind": {f"{s} seeds": family_error(studies, k, d, s) for s in (1, 2, 3)},
                "wrongly behind by the studentised range": family_error(studies, k, d, old=True),
                "power at 3 %": family_power(studies, k, d, old=False),
                "power at 3 % of the studentised range": family_power(studies, k, d, old=True),
            }
            for d in few
        }
        for k in (12, 48)
    }
    return {
        "coverage": {
            kind: {f"{d} documents": {f"{s} seeds": coverage(kind, studies, d, s) for s in SEEDS} for d in DOCUMENTS}
            for kind in GENERATORS
        },
        "coverage of a percentile bootstrap": {
            kind: {f"{d} documents": old_coverage(kind, studies, d) for d in few} for kind in GENERATORS
        },
        "families": families,
        "power of a pair at 3 %": {
            f"{d} documents": {
                "this": power(studies, d, old=False),
                "percentile bootstrap": power(studies, d, old=True),
            }
            for d in few
        },
        "equal model called better": {
            kind: {f"{d} documents": false_better(kind, studies, d) for d in DOCUMENTS} for kind in GENERATORS
        },
        "width by Welch and Satterthwaite's": {
            f"{d} documents": {f"{s} seeds": width(studies, d, s) for s in SEEDS} for d in DOCUMENTS
        },
        "coverage of one model's PPL": {
            kind: {f"{d} documents": ppl_coverage(kind, studies, d) for d in DOCUMENTS} for kind in GENERATORS
        },
        "coverage of one model's accuracy": {
            share: {f"{d} documents": share_coverage(share, studies, d) for d in DOCUMENTS} for share in SHARES
        },
        "the same without its logit": {
            share: {f"{d} documents": share_coverage(share, studies, d, by_logit=False) for d in DOCUMENTS}
            for share in SHARES
        },
        "coverage of Welch's over seeds": {
            f"{a} and {b} seeds": {
                f"the second's spread times {by:.3g}": seeds_coverage(studies, (a, b), by) for by in (1, 3, 1 / 3)
            }
            for a, b in ((2, 2), (3, 3), (5, 5), (2, 5))
        },
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
