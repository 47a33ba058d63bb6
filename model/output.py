"""Standard output and error that cannot make a command fail: in any encoding, closed, or read by nobody any more."""

import codecs
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

# What stands for a character that the terminal's encoding does not have.
PLAIN = {
    "…": "...", "–": "-", "—": "-", "·": "-", "±": "+-", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "²": "2",
    "“": '"', "”": '"', "‘": "'", "’": "'", "█": "#", "━": "-", "─": "-", "│": "|",
}  # fmt: skip
ERRORS = "plain"  # the name under which Python knows `_plain`


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end


codecs.register_error(ERRORS, _plain)


def open_standard_files() -> None:
    """Open standard input, output and error where whoever started this process has closed them (`>&-`).

    To be called first: the next file that is opened takes the free number, and a database would be written to by all
    that prints.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


def print_in_any_encoding() -> None:
    """Characters that the encoding of standard output or error lacks are shown by others."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # not of a stream that a test puts in its place
        if reconfigure is not None:
            reconfigure(errors=ERRORS)


class _Unfailing:
    """A stream that nothing can go wrong with: what it cannot write is lost, and all that follows."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # ValueError: it was closed
            self._lose()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._lose()

    def _lose(self) -> None:
        """What is still in the stream's buffer goes nowhere too: Python writes it when it ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())
            with suppress(OSError, ValueError):
                self._stream.flush()
        except (OSError, ValueError):  # it has no number any more
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        finally:
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def print_without_fail() -> None:
    """From now on printing cannot end this process, whatever happens to its terminal, pipe or file.

    For commands whose result lies in files. Where the output is the result, it must not be lost in silence.
    """
    open_standard_files()
    print_in_any_encoding()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Unfailing):
            setattr(sys, name, _Unfailing(stream))
