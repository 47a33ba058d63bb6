"""What a user can mend: one sentence and exit code 2 instead of a traceback. For every command line here."""

from collections.abc import Iterator
from contextlib import contextmanager


class BadInputError(Exception):
    """What the user can mend, in one sentence."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Around all that looks at what the user gave. A ValueError from elsewhere is a bug and keeps its traceback."""
    try:
        yield
    except (ValueError, OSError) as error:  # OSError: a path that is too long, a folder that may not be looked into
        raise BadInputError(str(error)) from error
