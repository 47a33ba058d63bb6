"""What is wrong with a records folder, in plain words."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    kind: str  # trial file, mlflow, leaderboard, cache, registry or database
    where: str  # the study and trial, or the file
    what: str
    remedy: str
    repairable: bool  # by `--repair`


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """What was not checked or not mended, and why."""

    where: str
    why: str
