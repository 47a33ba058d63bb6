"""What MLflow is to be told, as typed operations, and the journal's lines that keep them: `[verb, key, arguments]`."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from trainables.reports import Point


@dataclass(frozen=True)
class _StudyOperation:
    """On a study's own run."""

    key: ClassVar[str] = ""


@dataclass(frozen=True)
class _RunOperation:
    """On one run."""

    key: str  # a trial's config hash, or the id of a trained model's run


@dataclass(frozen=True, kw_only=True)
class StartStudy(_StudyOperation):
    """Set the study's run to running, with those params that it lacks."""

    verb: ClassVar[str] = "start_study"
    params: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EndStudy(_StudyOperation):
    """End the study's run, and as killed each trial's that never ended."""

    verb: ClassVar[str] = "end_study"
    status: str
    figures: dict[str, float]
    files: list[str]  # as `Records.inside` names them


@dataclass(frozen=True, kw_only=True)
class StartTrial(_RunOperation):
    """Make or reopen a trial's run, a child of the study's."""

    verb: ClassVar[str] = "start_trial"
    number: int
    name: str
    params: dict[str, Any]
    replicate_of: int | None = None


@dataclass(frozen=True, kw_only=True)
class LogPoints(_RunOperation):
    """Points of curves; those that a reopened run has are left out."""

    verb: ClassVar[str] = "log_series"
    points: list[Point]


@dataclass(frozen=True, kw_only=True)
class LogFigures(_RunOperation):
    """Final figures, once, and tags."""

    verb: ClassVar[str] = "log_figures"
    figures: dict[str, float]
    tags: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class LogFile(_RunOperation):
    """A file as an artifact."""

    verb: ClassVar[str] = "log_file"
    file: str  # as `Records.inside` names it


@dataclass(frozen=True, kw_only=True)
class FinishRun(_RunOperation):
    """End a run that has a result."""

    verb: ClassVar[str] = "finish_trial"
    figures: dict[str, float] = field(default_factory=dict)
    place: dict[str, str] = field(default_factory=dict)  # tags that say where and how they were computed
    phase1_by: str = ""  # config hash, and so the tag `config_hash`, of the run that trained Phase 1
    traces: str | None = None  # a folder, as `Records.inside` names it, that is moved to the artifacts


@dataclass(frozen=True, kw_only=True)
class PruneRun(_RunOperation):
    """End a run that was stopped early, with the figures that it has."""

    verb: ClassVar[str] = "prune_trial"
    reason: str
    figures: dict[str, float]
    place: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FailRun(_RunOperation):
    """End a run that has no result."""

    verb: ClassVar[str] = "fail_trial"
    reason: str
    details: str = ""  # an artifact: a traceback, say
    status: str = "FAILED"  # or KILLED
    place: dict[str, str] = field(default_factory=dict)


RunOperation = LogPoints | LogFigures | LogFile | FinishRun | PruneRun | FailRun
Operation = StartStudy | EndStudy | StartTrial | RunOperation
KINDS: dict[str, type[Operation]] = {
    kind.verb: kind
    for kind in (StartStudy, EndStudy, StartTrial, LogPoints, LogFigures, LogFile, FinishRun, PruneRun, FailRun)
}


def encode(operation: Operation) -> str:
    """An operation as a line."""
    arguments = {name: value for name, value in vars(operation).items() if name != "key"}
    return json.dumps([operation.verb, operation.key, arguments]) + "\n"


def _decode(line: str) -> Operation:
    verb, key, arguments = json.loads(line)
    if "points" in arguments:
        arguments["points"] = [Point(*point) for point in arguments["points"]]
    return KINDS[verb](**arguments, **({"key": key} if key else {}))


def read_journal(journal: Path) -> list[Operation]:
    """What MLflow was not told yet; a last line that a kill cut off is left out.

    Raises:
        ValueError: it holds something else.
    """
    if not journal.exists():
        return []
    try:  # behind the last line's end there is nothing, or half a line
        return [_decode(line) for line in journal.read_text(encoding="utf-8").split("\n")[:-1]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{journal} is damaged: delete it, and the same command ends MLflow's runs again") from error
