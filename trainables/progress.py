"""A run's progress events and the type of their callbacks. Importing this costs nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """A progress event: one sweep, pass or epoch of a run."""

    phase: str  # "phase 1", "contexts" or "phase 2"
    step: int
    total: int  # an upper bound: both phases may stop early
    series: dict[str, float] = field(default_factory=dict)  # metric name (trainables.metrics) -> value at `step`


ProgressCallback = Callable[[Progress], None]
