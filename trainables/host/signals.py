"""Ctrl-C and SIGTERM: what they end, and what they may not cut in half."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def defer_signals() -> Iterator[None]:
    """What arrives within is delivered at the end: a write cut in half may leave its database locked for this process.

    Only a process's main thread hears signals; elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.signal(number, keep) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


class TerminatedError(KeyboardInterrupt):
    """SIGTERM."""


def interrupt_on_sigterm() -> None:
    """From now on SIGTERM ends this process as Ctrl-C does."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise TerminatedError

    signal.signal(signal.SIGTERM, terminate)


class Interrupts:
    """Hears both signals once `listen` was called."""

    def __init__(self) -> None:
        self.first: int | None = None  # the signal that ends this study

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.first or signal.SIGINT)

    def listen(self) -> None:
        """To be called again after Ray was started, which hears SIGTERM itself."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.first is not None:  # records survive a kill at any moment, so nothing is left to do
            os.write(sys.stderr.fileno(), b"\nended at once; the same command continues this study\n")
            os._exit(128 + number)
        self.first = number
        if callable(signal.getsignal(signal.SIGUSR1)):  # Tune is running: this is how it is told to end
            signal.raise_signal(signal.SIGUSR1)
        else:
            raise KeyboardInterrupt


def tune_ended() -> None:
    """Tune leaves its handler behind: from now on a signal interrupts this process."""
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
