"""Ends of a run that are no bug: a configuration without a result, a disk that takes no more."""

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


class NoResultError(Exception):
    """A training ended without a model, for a reason of its configuration."""


class OtherCodeError(Exception):
    """A worker runs other code than the study that it works for."""


class StoppedError(Exception):
    """What a study runs on has ended it, and why; nothing is wrong with the study."""


def unwritable(error: BaseException | None) -> str:
    """Which of `UNWRITABLE` is behind an error, or behind those that it followed from; empty if none is."""
    while error is not None:
        said = str(error)
        for text in UNWRITABLE:
            if text in said:
                return text
        error = error.__cause__ or error.__context__
    return ""
