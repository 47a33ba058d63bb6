"""What is to be done in MLflow, as typed operations, and the journal's lines that keep them: `[verb, key, arguments]`.

Files and folders are named as by `Records.inside`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_args

from trainables.metrics import SERIES
from trainables.reports import Point
from trainables.tracking.tags import trial_tags


@dataclass(frozen=True)
class _RunOperation:
    key: str  # of the run: a trial's config hash, or a training's token


@dataclass(frozen=True, kw_only=True)
class StartStudy:
    """Set the study's own run to running, with those params that it lacks."""

    verb: ClassVar[str] = "start_study"
    key: ClassVar[str] = ""
    params: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EndStudy:
    """End the study's own run, and as killed each trial's that never ended."""

    verb: ClassVar[str] = "end_study"
    key: ClassVar[str] = ""
    status: str
    figures: dict[str, float]
    files: list[str]


@dataclass(frozen=True, kw_only=True)
class StartRun(_RunOperation):
    """Make or reopen the run of a trial or a training; params that it has are left as they are."""

    verb: ClassVar[str] = "start_run"
    name: str
    params: dict[str, Any]
    tags: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class LogPoints(_RunOperation):
    """Points of curves; those that a reopened run has are left out."""

    verb: ClassVar[str] = "log_series"
    points: list[Point]


@dataclass(frozen=True, kw_only=True)
class LogFile(_RunOperation):
    """A file as an artifact."""

    verb: ClassVar[str] = "log_file"
    file: str


@dataclass(frozen=True, kw_only=True)
class FinishRun(_RunOperation):
    """End a run that has a result."""

    verb: ClassVar[str] = "finish_trial"
    figures: dict[str, float]
    place: dict[str, str] = field(default_factory=dict)  # tags that say where and how they were computed
    phase1_by: str = ""  # config hash, and so the tag `config_hash`, of the run that trained Phase 1
    traces: str | None = None  # a folder that is moved to the artifacts


@dataclass(frozen=True, kw_only=True)
class PruneRun(_RunOperation):
    """End a run that was stopped early, with the figures that it has."""

    verb: ClassVar[str] = "prune_trial"
    reason: str
    figures: dict[str, float]
    place: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FailRun(_RunOperation):
    """End a run that has no result, FAILED or KILLED."""

    verb: ClassVar[str] = "fail_trial"
    reason: str
    details: str = ""  # an artifact: a traceback, say
    status: str = "FAILED"
    place: dict[str, str] = field(default_factory=dict)


Operation = StartStudy | EndStudy | StartRun | LogPoints | LogFile | FinishRun | PruneRun | FailRun
KINDS: dict[str, type[Operation]] = {kind.verb: kind for kind in get_args(Operation)}


def encode(operation: Operation) -> str:
    """An operation as a line."""
    arguments = {name: value for name, value in vars(operation).items() if name != "key"}
    return json.dumps([operation.verb, operation.key, arguments]) + "\n"


def _decode(line: str) -> Operation:
    verb, key, arguments = json.loads(line)
    if verb == "start_trial":  # of an earlier version
        verb, tags = "start_run", trial_tags(arguments.pop("number"), arguments.pop("replicate_of", None))
        arguments["tags"] = tags
    if "points" in arguments:
        arguments["points"] = [Point(*point) for point in arguments["points"]]
    return KINDS[verb](**arguments, **({"key": key} if key else {}))


def read_journal(journal: Path) -> list[Operation]:
    """What MLflow has not got yet; a last line that a kill cut off is left out.

    Raises:
        ValueError: it holds something else.
    """
    if not journal.exists():
        return []
    try:  # behind the last line's end there is nothing, or half a line
        return [_decode(line) for line in journal.read_text(encoding="utf-8").split("\n")[:-1]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{journal} is damaged: delete it, and the same command ends MLflow's runs again") from error


def read_left(file: Path, token: str) -> list[Operation]:
    """The curves that a training of an earlier version left for an MLflow that was away."""
    if not file.exists():
        return []
    points = json.loads(file.read_text(encoding="utf-8"))["points"]
    return [LogPoints(token, points=[Point(name, step, x) for name, x, _, step in points if name.startswith(SERIES)])]
