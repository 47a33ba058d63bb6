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
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.entities import PagedList
from mlflow.tracking import MlflowClient

from trainables.metrics import SERIES
from trainables.tracking.operations import FailRun, FinishRun, LogFile, LogPoints, Operation, PruneRun, StartRun
from trainables.tracking.tags import NAME_TAG, PHASE1_TAG, PROFILED_TAG, PRUNED_TAG, REASON_TAG

MAX_REASON = 500  # characters


@dataclass
class _KnownRun:
    """What MLflow has of a run."""

    run_id: str
    figures: dict[str, float]
    last_step: dict[str, int]  # of each curve


class ExperimentRuns(ABC):
    """Runs by key: a study's trials by config hash, trained models by token."""

    def __init__(self, client: MlflowClient, experiment_id: str, is_new: bool, root: Path) -> None:
        """Runs of an experiment that is open.

        Args:
            is_new: whether it was made now.
            root: of the files that operations name.
        """
        self.client, self.experiment_id, self.is_new, self._root = client, experiment_id, is_new, root
        self._known: dict[str, _KnownRun] = {}
        self._all_known = False  # whether there is no run of a key that is not among them
        self._common: dict[str, str] = {}  # tags that each run is made with

    @abstractmethod
    def identity(self, key: str) -> dict[str, str]:
        """The tags by which a run is found."""

    def search(self, tags: dict[str, str], condition: str = "", **page: Any) -> PagedList[Run]:
        """Runs with these tags for which `condition` (" and …") holds."""
        held = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
        return self.client.search_runs([self.experiment_id], held + condition, **page)

    def find(self, key: str) -> Run | None:
        """A run that was started before."""
        if self._all_known and key not in self._known:
            return None
        found = self.search(self.identity(key), max_results=1)
        return found[0] if found else None

    def run_id(self, key: str) -> str:
        """The id of a run that was started before.

        Raises:
            MlflowException: there is none.
        """
        return self._open(key).run_id

    def forget(self) -> None:
        """Look at all runs anew: after an outage a request may have got through whose answer was lost."""
        self._known.clear()
        self._all_known = False

    def apply(self, operation: Operation) -> None:
        """Have MLflow do it.

        Raises:
            MlflowException, OSError: it did not; `store.is_outage` says whether it may later.
        """
        key = operation.key
        match operation:
            case StartRun(name=name, params=params, tags=tags):
                self._know(key, self._resume(self.find(key), name, params, self.identity(key) | self._common | tags))
            case LogPoints(points=points):
                run, now = self._open(key), int(time.time() * 1000)
                new = [point for point in points if point.step > run.last_step.get(point.name, -1)]
                self.client.log_batch(run.run_id, metrics=[Metric(n, value, now, step) for n, step, value in new])
            case LogFile(file=file):
                self.client.log_artifact(self.run_id(key), str(self._root / file))
            case FinishRun(figures=figures, place=place, phase1_by=phase1_by, traces=traces):
                tags = place | ({PHASE1_TAG: phase1_by} if phase1_by else {})
                if traces:
                    tags[PROFILED_TAG] = "true"  # its seconds are not those of an ordinary trial
                self._end(key, "FINISHED", figures, tags)
                if traces and (folder := self._root / traces).exists():  # else they are there already
                    self.client.log_artifacts(self.run_id(key), str(folder), "profile")
                    shutil.rmtree(folder)
            case PruneRun(reason=reason, figures=figures, place=place):
                self._end(key, "FINISHED", figures, {PRUNED_TAG: reason[:MAX_REASON]} | place)
            case FailRun(reason=reason, details=details, status=status, place=place):
                self._end(key, status, {}, {REASON_TAG: reason[:MAX_REASON]} | place)
                if details:
                    self.client.log_text(self.run_id(key), details, "error.txt")
            case _:
                raise TypeError(f"{operation.verb} is of another experiment")

    def _open(self, key: str) -> _KnownRun:
        if key in self._known:
            return self._known[key]
        if (found := self.find(key)) is None:
            raise MlflowException(f"no run of {key}", RESOURCE_DOES_NOT_EXIST)
        return self._know(key, found)

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
        new = [Param(key, str(value)) for key, value in params.items() if key not in found.data.params]
        changed = [RunTag(key, value) for key, value in tags.items() if found.data.tags.get(key) != value]
        self.client.log_batch(found.info.run_id, params=new, tags=changed)
        return found

    def _end(self, key: str, status: str, figures: dict[str, float], tags: dict[str, str]) -> int:
        """Log figures that a run does not have yet, and tags, and end it also where they are refused; when that was."""
        run, now = self._open(key), int(time.time() * 1000)
        new = [Metric(name, value, now, 0) for name, value in figures.items() if run.figures.get(name) != value]
        try:
            self.client.log_batch(run.run_id, metrics=new, tags=[RunTag(name, value) for name, value in tags.items()])
        finally:
            self.client.set_terminated(run.run_id, status, now)
        run.figures |= figures
        return now
