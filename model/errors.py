"""What a user can mend: one sentence and exit code 2 instead of a traceback. For every command line here."""

import re
from collections.abc import Iterator
from contextlib import contextmanager


class BadInputError(Exception):
    """What the user can mend, in one sentence."""


def without_passwords(text: str) -> str:
    """A text with `***` for each password of an address in it (`scheme://user:password@host`)."""
    return re.sub(r"(\w://[^\s/@:]*):[^\s/@]*@", r"\1:***@", text)


def told(error: Exception) -> str:
    """What went wrong, without the number that an operating system has for it, and without a password."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return without_passwords(f"{error.filename}: {error.strerror}")
    return without_passwords(str(error))


@contextmanager
def user_errors(remedy: str = "") -> Iterator[None]:
    """Around all that looks at what the user gave. A ValueError from elsewhere is a bug and keeps its traceback.

    Args:
        remedy: what to do about it, where the errors themselves do not say.
    """
    try:
        yield
    except (ValueError, OSError) as error:  # OSError: a path that is too long, a folder that may not be looked into
        raise BadInputError(f"{told(error)}{remedy and f'; {remedy}'}") from error
