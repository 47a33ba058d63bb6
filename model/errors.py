"""The root of this project's errors, their exit codes, and user errors: one sentence instead of a traceback."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

SECRET_KEY = r"\w*(?:password|passwd|pwd|token|secret)\w*"  # of an address's query


class Exit(IntEnum):
    """What a command's exit code says."""

    OK = 0
    FAILED = 1  # no result, or a study that had to stop; of a check: something is wrong
    USER_ERROR = 2  # what the user can mend
    INTERRUPTED = 128 + signal.SIGINT
    TERMINATED = 128 + signal.SIGTERM


class ProjectError(Exception):
    """Ends a command with one sentence; anything else that is raised is a bug and keeps its traceback."""

    exit_code = Exit.FAILED


class UserError(ProjectError):
    """What the user can mend, in one sentence."""

    exit_code = Exit.USER_ERROR


def without_passwords(text: str) -> str:
    """A text with `***` for each password of an address in it (`scheme://user:password@host`, `?password=`)."""
    text = re.sub(r"(\w://[^\s/@:]*):[^\s/]*@", r"\1:***@", text)
    return re.sub(rf"([?&]{SECRET_KEY}=)[^&\s'\"]*", r"\1***", text, flags=re.IGNORECASE)


def message_of(error: Exception) -> str:
    """What went wrong, without the number that an operating system has for it, and without a password."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return without_passwords(f"{error.filename}: {error.strerror}")
    return without_passwords(str(error))


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def user_errors(remedy: str = "") -> Iterator[None]:
    """Around all that looks at what the user gave. A ValueError from elsewhere is a bug and keeps its traceback.

    Args:
        remedy: what to do about it, where the errors themselves do not say.
    """
    try:
        yield
    except (ValueError, OSError) as error:  # OSError: a path that is too long, a folder that may not be looked into
        raise UserError(f"{message_of(error)}{remedy and f'; {remedy}'}") from error
