"""Whether a run's Phase 1 converged, or ended at its cap: decided here, from its configuration and figures."""

import math
from collections.abc import Mapping

from trainables.config import RunConfig
from trainables.metrics import CONVERGED, CONVERGENCE, SWEEPS

MARK = "!"  # behind what rests on a Phase 1 that did not converge
MARKED = "Phase 1 not converged"


def converged(config: RunConfig, figures: Mapping[str, float]) -> bool:
    """Whether so many positions had converged at the last sweep as were asked for.

    Args:
        figures: by the names of `trainables.metrics`, Phase 1's among them.

    Raises:
        KeyError: Phase 1's are not among them.
    """
    return figures[CONVERGENCE] >= config.phase1.converged_share


def with_converged(config: RunConfig, figures: Mapping[str, float]) -> dict[str, float]:
    """The figures as MLflow gets them: with 1 or 0 for `converged`, where Phase 1's are among them."""
    if CONVERGENCE not in figures:
        return dict(figures)
    return {**figures, CONVERGED: float(converged(config, figures))}


def shortfall(config: RunConfig, figures: Mapping[str, float]) -> str | None:
    """A sentence for people on a Phase 1 that ended at its cap; None where it converged."""
    if converged(config, figures):
        return None
    share, wanted = math.floor(100 * figures[CONVERGENCE]), 100 * config.phase1.converged_share
    cap = f"at its cap of {figures[SWEEPS]:.0f} sweeps"
    return f"Phase 1 did not converge: {share}% of positions {cap}, {wanted:g}% asked for"
