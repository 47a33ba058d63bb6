"""The terminal, or the log, that a command writes to."""

import sys
from typing import Any

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.status import Status
from rich.table import Table
from rich.text import Text

LOG_WIDTH = 120  # characters: a log has no width of its own
WIDEST = 10_000  # of a table


class _Console(Console):
    def print(self, *objects: Any, **how: Any) -> None:
        """As rich does it, but a table keeps its width: a narrow terminal breaks its lines, and no figure is cut."""
        if len(objects) != 1 or not isinstance(objects[0], Table):
            super().print(*objects, **how)
            return
        before = self._width
        self._width = max(self.width, Measurement.get(self, self.options.update(width=WIDEST), objects[0]).maximum)
        try:
            super().print(*objects, **how)
        finally:
            self._width = before

    def status(self, status: RenderableType, **how: Any) -> Status:
        """As rich does it, with a spinner that the terminal's encoding has."""
        text = Text(status) if isinstance(status, str) else status
        return super().status(text, **{"spinner": "line" if self.options.ascii_only else "dots"} | how)


def open_console() -> Console:
    """A console on standard output.

    No string is ever taken for markup, since names, paths and errors may have any characters: what is to stand out
    is given a `style`, or is a `Text`.
    """
    return _Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
