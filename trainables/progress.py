"""What a run says of itself while it goes. Importing this costs nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """One step of a run, for whoever listens."""

    phase: str  # "phase 1", "contexts" or "phase 2"
    step: int
    total: int  # an upper bound: both phases may stop early
    series: dict[str, float] = field(default_factory=dict)  # metric name (trainables.metrics) -> value at `step`


ProgressCallback = Callable[[Progress], None]
