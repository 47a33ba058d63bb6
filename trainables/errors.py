"""What is no bug: a configuration without a result, a disk that takes no more, a database of another version."""

import shlex

from model.errors import ProjectError, UserError

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


class NoResultError(ProjectError):
    """A run ended without a result, for a reason of its configuration: an outcome, on record like any other."""


class DivergedError(NoResultError):
    """A loss became NaN or infinite."""


class DoesNotFitError(NoResultError):
    """The GPU's memory is too small for a configuration: it has no result on this hardware."""


class CollapsedError(NoResultError):
    """Phase 1 ended with contexts of so few directions that Phase 2 is not worth its time."""

    def __init__(self, reason: str, figures: dict[str, float]) -> None:
        super().__init__(reason, figures)  # both, so that it can be pickled
        self.figures = figures  # Phase 1's

    def __str__(self) -> str:
        return str(self.args[0])


class StoppedError(ProjectError):
    """What a study runs on has ended it, and why; the same command continues it."""


class OtherCodeError(StoppedError):
    """A worker runs other code than the study that it works for."""


class AwayError(UserError, ValueError):
    """MLflow does not answer, or takes nothing now."""


class OtherVersionError(UserError, ValueError):
    """A database was made by another version of its library than the one that is installed; says what mends it."""

    def __init__(self, url: str, library: str, upgrade: str) -> None:
        """What is wrong with the database at `url`.

        Args:
            upgrade: the command that brings such a database up to date, its address left out; empty where the
                library is the older one.
        """
        self.upgrade, self.library = upgrade, library
        self.what = f"is of {'an earlier' if upgrade else 'a later'} version of {library} than the one installed"
        super().__init__(f"{url} {self.what}: {self.remedy(url)}")

    def at(self, url: str) -> "OtherVersionError":
        """The same of the database at `url`, of which that one is a copy."""
        return OtherVersionError(url, self.library, self.upgrade)

    def remedy(self, url: str) -> str:
        """What to do for a database at `url`."""
        if not self.upgrade:
            return f"run `pip install -U {self.library}`"
        return f"keep a copy of it, run `{self.upgrade} {shlex.quote(url)}`, then the same command again"


def unwritable(error: BaseException | None) -> str | None:
    """Which of `UNWRITABLE` is behind an error, or behind those that it followed from; None if none is."""
    while error is not None:
        said = str(error)
        for text in UNWRITABLE:
            if text in said:
                return text
        error = error.__cause__ or error.__context__
    return None
