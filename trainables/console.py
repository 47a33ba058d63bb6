"""The terminal, or the log, that a command writes to."""

import os
import sys

from rich.console import Console

LOG_WIDTH = 120  # characters: a log has no width of its own


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read the output is gone (`| head`): the work goes on, unseen."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def open_console() -> Console:
    """A console on standard output."""
    return _Console(highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
