"""What a user can mend: one sentence and exit code 2 instead of a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

# What a file system or a database says that takes no more, in whatever error.
UNWRITABLE = (
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "File too large",  # a limit of this process
    "database or disk is full",
    "database is locked",
    "disk I/O error",
    "attempt to write a readonly database",
)


class BadInputError(Exception):
    """What the user can mend, in one sentence."""


class NoResultError(Exception):
    """A training ended without a model, for a reason of its configuration."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Around all that looks at what the user gave. A ValueError from elsewhere is a bug and keeps its traceback."""
    try:
        yield
    except (ValueError, OSError) as error:  # OSError: a path that is too long, a folder that may not be looked into
        raise BadInputError(str(error)) from error


def unwritable(error: BaseException | None) -> str:
    """Which of `UNWRITABLE` is behind an error, or behind those that it followed from; empty if none is."""
    while error is not None:
        said = str(error)
        for text in UNWRITABLE:
            if text in said:
                return text
        error = error.__cause__ or error.__context__
    return ""
