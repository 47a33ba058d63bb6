"""The commands of the three packages, and the studies of the three entries without a command line."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import search.asym_layers
import search.context_modes
import search.four_cells
from model.modes import CONTEXT_MODES, context_reads
from search.spaces import NO_SCHEDULER, Study
from trainables.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
# Every file that is started as a script, from the project's folder.
COMMANDS = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("model", "trainables", "search")
    for path in (ROOT / package).glob("*.py")
    if 'if __name__ == "__main__":' in path.read_text()
)
MODES = CONTEXT_MODES[:6]  # that tests count with; a mode that is added changes none of them


def distinct(context_layers: int = 2, token_layers: int = 2) -> int:
    """How many models of this shape there are with all modes."""
    return len({context_reads(mode, context_layers, token_layers) for mode in CONTEXT_MODES})


def asym_layers(
    base: RunConfig, context_dims: tuple[int, ...], sampler: str, trials: int, scheduler: str = NO_SCHEDULER
) -> Study:
    return search.asym_layers.study(_settings(base, context_dims, sampler=sampler, trials=trials, scheduler=scheduler))


def context_modes(base: RunConfig, context_dims: tuple[int, ...]) -> Study:
    return search.context_modes.study(_settings(base, context_dims))


def four_cells(base: RunConfig, context_dims: tuple[int, ...]) -> Study:
    return search.four_cells.study(_settings(base, context_dims))


def _settings(base: RunConfig, context_dims: tuple[int, ...], **others: Any) -> Any:
    return SimpleNamespace(base=base, context_dims=context_dims, context_modes=MODES, **others)
