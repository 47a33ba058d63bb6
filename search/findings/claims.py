"""What two earlier reports on this model concluded, held against a study that has the configurations for it.

A report's claim was made before this study: its intervals are the plain 95 % ones of `verdict.combined_interval`, over
documents, and over seeds where both sides have several.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from model.modes import CONTEXT_MODES
from search.findings.evidence import NO_LOSSES, ON_DOCUMENTS, Evidence, documents, percent
from search.findings.verdict import combined_interval
from search.ledger.trials import METRICS, trial_config
from search.spaces import CELLS
from trainables.config import RunConfig
from trainables.evaluation.intervals import LEVEL, Interval
from trainables.metrics import SWEEPS
from trainables.phases.convergence import converged

SUPPORTED, NOT_SUPPORTED, CONTRADICTED, NOT_TESTED = "supported", "not supported", "contradicted", "not tested here"
ABOUT_HALF = (1 / 3, 2 / 3)  # of the sweeps


@dataclass(frozen=True)
class Claim:
    """One claim at one setting."""

    text: str
    where: str  # e.g. `D=48, prev_and_current`
    verdict: str
    detail: str


Cells = dict[tuple[int, int], Evidence]
By = dict[str, Evidence]  # by config hash


def evaluate(evidence: list[Evidence]) -> list[Claim]:
    """Every claim wherever the study has what it needs; once as not tested where it has not."""
    by_hash = {e.found.config.config_hash(): e for e in evidence}
    by_cells = _cells(evidence, by_hash)
    checks: tuple[tuple[str, str, list[Claim]], ...] = (
        (LAYERWISE, "C2T2 layerwise and final_only at one D", _layerwise(evidence, by_hash)),
        (FIRST_CELL, ALL_CELLS, [_claim(FIRST_CELL, where, _first_cell, cells) for where, cells in by_cells]),
        (AVOID, ALL_CELLS, [_claim(AVOID, where, _avoid, cells) for where, cells in by_cells]),
        (HALF, "C=1 and C=2 at one D, both converged", _half(evidence)),
    )
    found = []
    for text, needs, claims in checks:
        found += claims or [Claim(text, "", NOT_TESTED, f"needs {needs}")]
    return found


LAYERWISE = "layerwise beats final_only (C2T2)"
FIRST_CELL = "C1T1 is the best of the four cells"
AVOID = "avoid C1T2: it is the worst of the four cells"
HALF = "2 context layers converge in about half the sweeps of 1"
ALL_CELLS = "C1T1, C2T1, C1T2 and C2T2 of one mode at one D"


def _bases(evidence: list[Evidence]) -> dict[int, RunConfig]:
    """One configuration for each D."""
    return {e.found.config.context_dim: e.found.config for e in reversed(evidence)}


def _at(base: RunConfig, by_hash: By, context: int, token: int, mode: str) -> Evidence | None:
    wanted = base.replace(context_layers=context, token_layers=token, context_mode=mode)
    return by_hash.get(wanted.config_hash())


def _layerwise(evidence: list[Evidence], by_hash: By) -> list[Claim]:
    found = []
    for dim, base in sorted(_bases(evidence).items()):
        better, worse = (_at(base, by_hash, 2, 2, mode) for mode in ("layerwise", "final_only"))
        if better and worse:
            pair = {(0, 0): better, (0, 1): worse}
            found.append(_claim(LAYERWISE, f"D={dim}", lambda c: _beats(c[0, 0], [c[0, 1]]), pair))
    return found


def _cells(evidence: list[Evidence], by_hash: By) -> list[tuple[str, Cells]]:
    """The settings (D, mode) of which all four cells are there."""
    found: list[tuple[str, Cells]] = []
    for dim, base in sorted(_bases(evidence).items()):
        for mode in CONTEXT_MODES:
            cells = {(c, t): e for c, t in CELLS if (e := _at(base, by_hash, c, t, mode))}
            if len(cells) == len(CELLS):
                found.append((f"D={dim}, {mode}", cells))
    return found


def _claim(text: str, where: str, verdict: Callable[[Cells], tuple[str, str]], cells: Cells) -> Claim:
    missing = [e for e in cells.values() if e.losses is None or len(e.losses.targets) < 2]
    if missing:
        return Claim(text, where, NOT_TESTED, next((e.lacks for e in missing if e.contradicted), NO_LOSSES))
    said, detail = verdict(cells)
    one_seed = min(e.num_seeds for e in cells.values()) == 1
    return Claim(text, where, f"{said} {ON_DOCUMENTS}" if one_seed else said, detail)


def _first_cell(cells: Cells) -> tuple[str, str]:
    return _beats(cells[1, 1], [e for cell, e in cells.items() if cell != (1, 1)])


def _avoid(cells: Cells) -> tuple[str, str]:
    return _beats(cells[1, 2], [e for cell, e in cells.items() if cell != (1, 2)], loses=True)


def _beats(one: Evidence, others: list[Evidence], loses: bool = False) -> tuple[str, str]:
    """Whether `one` is below all others in loss (or above, with `loses`).

    All intervals must say so at 95 %; for a contradiction one of several is enough, so those are widened.
    """
    sign = -1 if loses else 1

    def interval(other: Evidence, comparisons: int) -> Interval:
        assert one.losses is not None
        assert other.losses is not None
        plain = combined_interval(one.losses, other.losses, comparisons)
        low, high = sorted((sign * plain.low, sign * plain.high))
        return Interval(sign * plain.value, low, high)

    detail = "; ".join(
        f"{_short(other, one)} against {_short(one, other)}: {percent(_less(one, other))}" for other in others
    )
    assert one.losses is not None
    detail = f"{detail}; {documents(one.losses.num_units, all(e.units_known for e in (one, *others)))}"
    if all(interval(other, 1).low > 0 for other in others):
        return SUPPORTED, detail
    if any(interval(other, len(others)).high < 0 for other in others):
        return CONTRADICTED, detail
    return NOT_SUPPORTED, detail


def _short(one: Evidence, other: Evidence) -> str:
    """The cell, or the mode where the cell is the same."""
    cell, _, mode = other.name.split()
    return mode if one.name.split()[0] == cell else cell


def _less(one: Evidence, other: Evidence) -> Interval:
    assert one.losses is not None
    assert other.losses is not None
    return combined_interval(other.losses, one.losses)


def _half(evidence: list[Evidence]) -> list[Claim]:
    """Phase 1 depends on C, D and seed only, so any trial with them will do."""
    sweeps: dict[tuple[int, int, int], float] = {}
    for trial in (t for e in evidence for t in e.found.trials):
        config, figures = trial_config(trial), trial.user_attrs[METRICS]
        if converged(config, figures):
            sweeps[config.context_dim, config.seed, config.context_layers] = figures[SWEEPS]
    found = []
    for dim in sorted({key[0] for key in sweeps}):
        seeds = sorted(s for d, s, c in sweeps if d == dim and c == 1 and (dim, s, 2) in sweeps)
        if seeds:
            pairs = [(sweeps[dim, s, 1], sweeps[dim, s, 2]) for s in seeds]
            found.append(_half_at(dim, pairs))
    return found


def _half_at(dim: int, pairs: list[tuple[float, float]]) -> Claim:
    ratios = np.log([two / one for one, two in pairs])
    mean, half = float(ratios.mean()), 0.0
    if len(pairs) > 1:
        error = float(ratios.std(ddof=1)) / len(pairs) ** 0.5
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(pairs) - 1)) * error
    low, high = math.exp(mean - half), math.exp(mean + half)
    least, most = ABOUT_HALF
    said = SUPPORTED if least <= low and high <= most else CONTRADICTED if low > most or high < least else NOT_SUPPORTED
    shown = ", ".join(f"{two:.0f} against {one:.0f}" for one, two in pairs)
    detail = f"{shown} sweeps: {math.exp(mean):.2f} of them"
    if len(pairs) > 1:
        return Claim(HALF, f"D={dim}", said, f"{detail} [{low:.2f}, {high:.2f}] (about half: 0.33 to 0.67)")
    return Claim(HALF, f"D={dim}", f"{said}, one seed", f"{detail} (about half: 0.33 to 0.67)")
