"""When a run of a study is to stop asking for trials. No part of the study's definition."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

LEAST_GAIN = 0.005  # a best that is not lower by this share has not improved


def on_plateau(before: Sequence[float], last: Sequence[float | None]) -> bool:
    """Whether the `last` values brought no improvement on the lowest of those `before`; None: pruned, no value."""
    finished = [value for value in last if value is not None]
    return bool(before) and min(finished, default=float("inf")) > min(before) * (1 - LEAST_GAIN)


@dataclass(frozen=True)
class Budgets:
    """What the user grants one run of a study."""

    max_hours: float | None = None
    plateau: int | None = None  # trials of the sampler without an improvement
    began: float = field(default_factory=time.monotonic)

    def out_of_time(self) -> bool:
        """Whether nothing at all may be begun."""
        return self.max_hours is not None and time.monotonic() - self.began >= self.max_hours * 3600

    def used_up(self, values: Sequence[tuple[float | None, bool]]) -> str | None:
        """Why no new configuration may be asked for; None while one may.

        Args:
            values: of the trials that ended, in the order they were proposed: the value, None if it was pruned, and
                whether the sampler proposed it.
        """
        if self.out_of_time():
            return f"--max-hours {self.max_hours:g} is used up: the same command continues this study"
        sampled = [position for position, (_, proposed) in enumerate(values) if proposed]
        if self.plateau is None or len(sampled) < self.plateau:
            return None
        start = sampled[-self.plateau]
        before = [value for value, _ in values[:start] if value is not None]
        if on_plateau(before, [value for value, _ in values[start:]]):
            return (
                f"the last {self.plateau} proposals have not improved the best by {LEAST_GAIN:.1%}: "
                "without --plateau, or with a larger one, this study continues"
            )
        return None


UNLIMITED = Budgets()
