"""The studies of the three entries, without a command line."""

from types import SimpleNamespace
from typing import Any

import search.asym_layers
import search.context_modes
import search.four_cells
from model.modes import CONTEXT_MODES
from search.spaces import NO_SCHEDULER, Study
from trainables.config import RunConfig


def asym_layers(
    base: RunConfig, context_dims: tuple[int, ...], sampler: str, trials: int, scheduler: str = NO_SCHEDULER
) -> Study:
    return search.asym_layers.study(_settings(base, context_dims, sampler=sampler, trials=trials, scheduler=scheduler))


def context_modes(base: RunConfig, context_dims: tuple[int, ...]) -> Study:
    return search.context_modes.study(_settings(base, context_dims))


def four_cells(base: RunConfig, context_dims: tuple[int, ...]) -> Study:
    return search.four_cells.study(_settings(base, context_dims))


def _settings(base: RunConfig, context_dims: tuple[int, ...], **others: Any) -> Any:
    return SimpleNamespace(base=base, context_dims=context_dims, context_modes=CONTEXT_MODES, **others)
