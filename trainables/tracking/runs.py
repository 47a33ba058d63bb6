"""Runs of one experiment in MLflow, and what each operation does to one of them.

Applying an operation twice changes nothing: a run that is opened again is asked which points and figures it has. Files
come last: a run whose files are refused has ended.
"""

import shutil
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient

from trainables.metrics import SERIES
from trainables.reports import Point
from trainables.tracking.operations import (
    FailRun,
    FinishRun,
    LogFigures,
    LogFile,
    LogPoints,
    Operation,
    PruneRun,
)

NAME_TAG, REASON_TAG = "mlflow.runName", "reason"
PHASE1_TAG = "phase1_trained_by"  # config hash of the run, in this study or another, that trained Phase 1
PROFILED_TAG = "profiled"
PRUNED_TAG = "pruned"  # why a trial was stopped early: an outcome, so its run ends as FINISHED
MAX_METRICS, MAX_PARAMS = 1_000, 100  # per call, MLflow's limits
MAX_TAG = 500  # characters of a reason


@dataclass
class _KnownRun:
    """What MLflow has of a run."""

    run_id: str
    figures: dict[str, float]
    last_step: dict[str, int]  # of each curve


class ExperimentRuns(ABC):
    """Runs by key: a study's trials by config hash, trained models by id."""

    def __init__(self, client: MlflowClient, experiment_id: str, is_new: bool, root: Path) -> None:
        """Args:
        is_new: whether the experiment was made now.
        root: of the files that operations name.
        """
        self.client, self.experiment_id, self.is_new, self._root = client, experiment_id, is_new, root
        self._known: dict[str, _KnownRun] = {}

    @abstractmethod
    def fetch(self, key: str) -> Run:
        """A run that was started before.

        Raises:
            MlflowException: there is none.
        """

    def forget(self) -> None:
        """Look at runs anew: after an outage a request may have got through whose answer was lost."""
        self._known.clear()

    def apply(self, operation: Operation) -> None:
        """Have MLflow do it.

        Raises:
            MlflowException, OSError: it did not; `store.is_outage` says whether it may later.
        """
        run = self._open(operation.key)
        match operation:
            case LogPoints(points=points):
                self._log_points(run, points)
            case LogFigures(figures=figures, tags=tags):
                self._log_figures(run, figures, tags)
            case LogFile(file=file):
                self.client.log_artifact(run.run_id, str(self._root / file))
            case FinishRun():
                self._finish(run, operation)
            case PruneRun(reason=reason, figures=figures, place=place):
                self._log_figures(run, figures, {PRUNED_TAG: reason[:MAX_TAG]} | place)
                self.client.set_terminated(run.run_id, "FINISHED")
            case FailRun():
                self._log_figures(run, {}, {REASON_TAG: operation.reason[:MAX_TAG]} | operation.place)
                self.client.set_terminated(run.run_id, operation.status)
                if operation.details:
                    self.client.log_text(run.run_id, operation.details, "error.txt")
            case _:
                raise TypeError(f"{operation.verb} is a study's")

    def _open(self, key: str) -> _KnownRun:
        return self._known.get(key) or self._know(key, self.fetch(key))

    def _know(self, key: str, run: Run) -> _KnownRun:
        curves = [name for name in run.data.metrics if name.startswith(SERIES)]
        history = {name: self.client.get_metric_history(run.info.run_id, name) for name in curves}
        last_step = {name: max(point.step for point in points) for name, points in history.items()}
        known = self._known[key] = _KnownRun(run.info.run_id, dict(run.data.metrics), last_step)
        return known

    def _resume(self, found: Run | None, name: str, params: dict[str, Any], tags: dict[str, str]) -> Run:
        """The run that was found, running again, or a new one; params that it has are left as they are."""
        if found is None:
            found = self.client.create_run(self.experiment_id, tags={NAME_TAG: name} | tags)
        else:
            self.client.update_run(found.info.run_id, status="RUNNING")
            if REASON_TAG in found.data.tags:  # why it was cut off last time
                self.client.delete_tag(found.info.run_id, REASON_TAG)
        listed = [Param(key, str(value)) for key, value in params.items() if key not in found.data.params]
        for start in range(0, len(listed), MAX_PARAMS):
            self.client.log_batch(found.info.run_id, params=listed[start : start + MAX_PARAMS])
        changed = [RunTag(key, value) for key, value in tags.items() if found.data.tags.get(key) != value]
        if changed:
            self.client.log_batch(found.info.run_id, tags=changed)
        return found

    def _log_points(self, run: _KnownRun, points: list[Point]) -> None:
        now = int(time.time() * 1000)
        listed = [Metric(name, value, now, step) for name, step, value in points if step > run.last_step.get(name, -1)]
        for start in range(0, len(listed), MAX_METRICS):
            self.client.log_batch(run.run_id, metrics=listed[start : start + MAX_METRICS])

    def _log_figures(self, run: _KnownRun, figures: dict[str, float], tags: dict[str, str]) -> None:
        """Figures that the run does not have yet, and tags, in one call."""
        now = int(time.time() * 1000)
        listed = [Metric(name, value, now, 0) for name, value in figures.items() if run.figures.get(name) != value]
        self.client.log_batch(run.run_id, metrics=listed, tags=[RunTag(key, value) for key, value in tags.items()])
        run.figures |= figures

    def _finish(self, run: _KnownRun, operation: FinishRun) -> None:
        tags = operation.place | ({PHASE1_TAG: operation.phase1_by} if operation.phase1_by else {})
        if operation.traces:
            tags[PROFILED_TAG] = "true"  # its seconds are not those of an ordinary trial
        self._log_figures(run, operation.figures, tags)
        self.client.set_terminated(run.run_id, "FINISHED")
        if operation.traces and (folder := self._root / operation.traces).exists():  # else they are there already
            self.client.log_artifacts(run.run_id, str(folder), "profile")
            shutil.rmtree(folder)
