"""How deep should each block be? Four cells first, then a sampler over layers, context dim and context mode."""

import sys

from search.driver import main
from search.options import StudySettings
from search.spaces import CELLS, DEPTHS, Space, Study


def study(settings: StudySettings) -> Study:
    """The four cells at the base's D, then layers 1–4, D and mode by a sampler.

    Raises:
        ValueError: fewer trials than cells.
    """
    if settings.trials < len(CELLS):
        raise ValueError(f"--trials must be at least {len(CELLS)}, the cells that come first, not {settings.trials}")
    of_all = {"context_dim": settings.base.context_dim, "context_mode": "prev_and_current"}
    return Study(
        entry="asym_layers",
        base=settings.base,
        space=Space(
            context_layers=DEPTHS,
            token_layers=DEPTHS,
            context_dims=settings.context_dims,
            context_modes=settings.context_modes,
        ),
        # In this order neighbours differ in C: two trials at a time never wait for one Phase 1.
        fixed_points=tuple({"context_layers": c, "token_layers": t, **of_all} for c, t in CELLS),
        sampler=settings.sampler,
        trials=settings.trials,
        scheduler=settings.scheduler,
    )


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", study, sampled=True))
