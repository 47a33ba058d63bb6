"""Trained models in MLflow: one run each, in an experiment of their own, linked to the trial that it comes from.

A run here is told what is on disk anyway: an MLflow that is away costs a training nothing, and is told at its end.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from trainables.host.signals import defer_signals
from trainables.metrics import SERIES
from trainables.records import Records, write_whole
from trainables.tracking.runs import MAX_METRICS, NAME_TAG, REASON_TAG
from trainables.tracking.store import find_experiment, is_outage, open_experiment
from trainables.tracking.study_runs import HASH_TAG, STUDY_ID_TAG

EXPERIMENT, KEY = "trained models", "trained-models"  # no study's name has a space
TRIAL_RUN_TAG, TOKEN_TAG = "trial_run", "training"
RETRY_SECONDS = 60.0  # between tries while MLflow is away; each may take long


@contextmanager
def _reached() -> Iterator[None]:
    """Raise ValueError where MLflow is away."""
    try:
        yield
    except Exception as error:
        if not is_outage(error):
            raise
        raise ValueError(f"MLflow cannot be reached: {error}") from error


class ModelRun:
    """One training's run."""

    def __init__(self, records: Records, tracking_uri: str | None, say: Callable[[str], None]) -> None:
        """Open MLflow's store; `say` shows the user a sentence.

        Raises:
            ValueError: it cannot be used.
        """
        self.client, self.experiment_id, _ = open_experiment(records, EXPERIMENT, tracking_uri, KEY)
        self.run_id, self._say = "", say
        self._last_step: dict[str, int] = {}  # of a reopened run's curves
        self._waiting: list[Metric] = []
        self._tried = -RETRY_SECONDS
        self._away = False

    def trial_run(self, study: str, study_id: str, config_hash: str) -> str | None:
        """The run of a study's trial, if this MLflow has it."""
        experiment = find_experiment(self.client, study, study_id)
        if experiment is None:
            return None
        where = f"tags.{STUDY_ID_TAG} = '{study_id}' and tags.{HASH_TAG} = '{config_hash}'"
        runs = self.client.search_runs([experiment.experiment_id], filter_string=where, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def start(self, name: str, params: dict[str, Any], tags: dict[str, str]) -> None:
        """Make the run; nothing of an earlier one is kept.

        Raises:
            ValueError: MLflow is away.
        """
        self._waiting, self._last_step, self._away = [], {}, False
        with _reached(), defer_signals():
            run = self.client.create_run(self.experiment_id, tags={NAME_TAG: name} | tags)
            self.run_id = run.info.run_id
            self._log_params(params)

    def take_up(self, token: str, name: str, params: dict[str, Any], tags: dict[str, str]) -> None:
        """Go on with the run that has this token, or make it: a training that is ended at any moment has one run.

        Raises:
            ValueError: MLflow is away.
        """
        with _reached(), defer_signals():
            where = f"tags.{TOKEN_TAG} = '{token}'"
            found = self.client.search_runs([self.experiment_id], filter_string=where, max_results=1)
            if found:
                run = found[0]
                self.run_id = run.info.run_id
                self.client.update_run(self.run_id, status="RUNNING")
                self._log_params(params)  # which may be what it was ended in
                curves = [name for name in run.data.metrics if name.startswith(SERIES)]
                history = {name: self.client.get_metric_history(self.run_id, name) for name in curves}
                self._last_step = {name: points[-1].step for name, points in history.items()}
        if not found:
            self.start(name, params, tags | {TOKEN_TAG: token})

    def _log_params(self, params: dict[str, Any]) -> None:
        self.client.log_batch(self.run_id, params=[Param(key, str(value)) for key, value in params.items()])

    def log(self, points: Iterable[tuple[str, int, float]]) -> None:
        """Points (metric, step, value) of the curves; those that a reopened run has are left out."""
        now = int(time.time() * 1000)
        new = [Metric(name, value, now, step) for name, step, value in points if step > self._last_step.get(name, -1)]
        self._waiting += new
        if new and not (self._away and time.monotonic() - self._tried < RETRY_SECONDS):
            self._attempt(self._flush)

    def _flush(self) -> None:
        for start in range(0, len(self._waiting), MAX_METRICS):
            self.client.log_batch(self.run_id, metrics=self._waiting[start : start + MAX_METRICS])
        self._waiting = []

    def _attempt(self, call: Callable[[], None]) -> bool:
        """Whether a call went through; what MLflow refuses for good is said and left."""
        self._tried = time.monotonic()
        try:
            with defer_signals():
                call()
        except Exception as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
            if is_outage(error):
                if not self._away:
                    self._say(f"MLflow is away: the training goes on, and is handed over at its end ({why})")
                self._away = True
                return False
            if not isinstance(error, MlflowException):
                raise
            self._waiting = []
            self._say(f"MLflow refused a part of this training's record, which goes on without it: {why}")
        self._away = False
        return True

    def finish(self, figures: dict[str, float], tags: dict[str, str], left: Path) -> bool:
        """Log the figures and end the run; False where MLflow is away, and `left` then holds what it lacks."""
        self.leave(figures, tags, left)
        return self.finish_later(left)

    def leave(self, figures: dict[str, float], tags: dict[str, str], left: Path) -> None:
        """Write down all that MLflow has not been told and what ends the run, for `finish_later`."""
        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, 0) for name, value in figures.items()]
        points = [(m.key, m.value, m.timestamp, m.step) for m in self._waiting]
        write_whole(left, json.dumps({"run": self.run_id, "points": points, "tags": tags}))

    def finish_later(self, left: Path) -> bool:
        """Log what `leave` wrote down and end the run; False where MLflow is away, and `left` stays."""
        kept = json.loads(left.read_text())
        self.run_id, self._waiting = kept["run"], [Metric(*point) for point in kept["points"]]
        tags = [RunTag(key, value) for key, value in kept["tags"].items()]
        calls = (  # each by itself: what MLflow refuses of one must not keep the run open
            self._flush,
            lambda: self.client.log_batch(self.run_id, tags=tags),
            lambda: self.client.set_terminated(self.run_id, "FINISHED"),
        )
        if not all(map(self._attempt, calls)):
            return False
        left.unlink(missing_ok=True)
        return True

    def end(self, status: str, reason: str) -> None:
        """End a run that has no result, KILLED or FAILED, if it was made."""

        def call() -> None:
            self._flush()
            self.client.set_tag(self.run_id, REASON_TAG, reason[:500])
            self.client.set_terminated(self.run_id, status)

        if self.run_id:
            self._attempt(call)
