"""A study in MLflow: one experiment, one parent run, one child run per trial.

The driver is the only writer. Runs are found again by tag, so that a study that is continued reopens its
runs and never makes a second one for the same configuration; another's study of the same name, which shares the
experiment on a server, has another id. Files come last: a run whose files are refused has ended.
"""

import shutil
import time
from collections.abc import Iterable
from typing import Any

from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.entities import PagedList

from trainables.host.collection import no_collection
from trainables.host.digests import Provenance
from trainables.metrics import SERIES
from trainables.records import Records
from trainables.tracking.store import PAGE, is_outage, local_folder, open_experiment, opened

STUDY_TAG, STUDY_ID_TAG, HASH_TAG, TRIAL_TAG, ROLE_TAG, REASON_TAG = (
    "study",
    "study_id",
    "config_hash",
    "optuna_trial",
    "role",
    "reason",
)
COMPUTE_TAG, DEVICE_TAG, PROFILED_TAG, REPLICATE_TAG = "compute", "device_name", "profiled", "replicate_of"
PHASE1_TAG = "phase1_trained_by"  # config hash of the run, in this study or another, that trained Phase 1
DIGEST_TAG = "digest"  # of the code, torch and device that gave the figures (`digests.Provenance`)
PRUNED_TAG = "pruned"  # why a trial was stopped early: an outcome, so its run ends as FINISHED
PARENT_TAG, NAME_TAG = "mlflow.parentRunId", "mlflow.runName"
MAX_METRICS, MAX_PARAMS = 1_000, 100  # per call, MLflow's limits


def provenance_tags(recorded: dict[str, Any] | None) -> dict[str, str]:
    """What a run's tags say of the code, torch and device behind its figures; nothing where it was not recorded."""
    if not recorded:
        return {}
    made = Provenance(**recorded)
    return {DIGEST_TAG: made.digest, "code": made.code, "torch": made.torch, "device": made.device}


class Tracker:
    """One study's runs in MLflow."""

    def __init__(self, records: Records, study: str, study_id: str, tracking_uri: str | None = None) -> None:
        """Open or make the experiment `study`.

        Args:
            study_id: which study of that name.
            records: hold the database and the artifacts, unless `tracking_uri` says where runs go instead.

        Raises:
            ValueError: MLflow refuses the store, a deleted experiment holds the name, or its files cannot be written.
        """
        self.study, self.study_id = study, study_id
        self._last_step: dict[str, dict[str, int]] = {}  # of reopened runs: series -> last step on record
        self._figures: dict[str, dict[str, float]] = {}  # of reopened runs: metric -> value on record
        self.client, self.experiment_id, fresh = open_experiment(records, study, tracking_uri, study_id)
        self._root = records.root
        self.mended = ""  # what others had done to the study's own run, in one sentence
        with opened(tracking_uri or records.tracking_uri):
            if tracking_uri and not fresh:
                self._check_place(records)
            found = None if fresh else self._find_parent()
            self.began = found is None and (fresh or not self._search("", max_results=1))  # it had nothing of the study
            parent = self._open({ROLE_TAG: "study"}, study, found).info
            self.parent: str = parent.run_id
            if not self.began:
                self._adopt()
        self._ended: int | None = parent.end_time  # as an earlier driver left it

    @property
    def ending(self) -> tuple[str, int | None]:
        """The parent run, and when it ended last, in milliseconds: no other state of this store has ended then."""
        return self.parent, self._ended

    def reopen(self) -> None:
        """The parent run is running again."""
        self.client.update_run(self.parent, status="RUNNING")

    def _check_place(self, records: Records) -> None:
        """Raise ValueError if a database elsewhere has this study's files in the folder that it was moved from."""
        place = local_folder(self.client.get_experiment(self.experiment_id).artifact_location)
        if place is not None and place.name == self.study_id and place.parent != records.artifacts:
            raise ValueError(
                f"MLflow has the files of study {self.study!r} in {place.parent}/, not in {records.artifacts}/: bring "
                "the records folder back there, or give another --tracking-uri, which gets all runs"
            )

    def _find_parent(self) -> Run | None:
        """The parent run; one that was deleted is brought back, with all that it shows."""
        if found := self._find({ROLE_TAG: "study"}):
            return found
        own = f"tags.{ROLE_TAG} = 'study'"
        deleted = self._search(own, run_view_type=ViewType.DELETED_ONLY, max_results=1)
        if not deleted:
            return None
        self.client.restore_run(deleted[0].info.run_id)
        self.mended = "the study's own run in MLflow was deleted: it is back"
        return self.client.get_run(deleted[0].info.run_id)

    def _adopt(self) -> None:
        """Make all trials children of the parent: those of one that is gone for good are shown nowhere."""
        while strays := self._search(f"tags.`{PARENT_TAG}` != '{self.parent}'", max_results=PAGE):
            for run in strays:
                self.client.set_tag(run.info.run_id, PARENT_TAG, self.parent)
            self.mended = self.mended or "the study's own run in MLflow was gone: its trials belong to a new one"

    @staticmethod
    def refusal(error: Exception) -> bool:
        """Whether a call will never go through: its run was deleted, its file may not be written, say."""
        return isinstance(error, MlflowException | FileNotFoundError | PermissionError) and not is_outage(error)

    def _search(self, condition: str, **page: Any) -> PagedList[Run]:
        """This study's runs for which `condition` holds."""
        mine = f"tags.{STUDY_ID_TAG} = '{self.study_id}'" + (condition and f" and {condition}")
        return self.client.search_runs([self.experiment_id], mine, **page)

    def _find(self, key: dict[str, str]) -> Run | None:
        """This study's run with these tags."""
        found = self._search(" and ".join(f"tags.{k} = '{v}'" for k, v in key.items()), max_results=1)
        return found[0] if found else None

    def _open(self, key: dict[str, str], name: str, found: Run | None, tags: dict[str, str] | None = None) -> Run:
        """The run that was found by `key`, reopened, or a new one."""
        if found is not None:
            self.client.update_run(found.info.run_id, status="RUNNING")
            if REASON_TAG in found.data.tags:  # why it was cut off last time
                self.client.delete_tag(found.info.run_id, REASON_TAG)
            return found
        tags = {NAME_TAG: name, STUDY_TAG: self.study, STUDY_ID_TAG: self.study_id} | key | (tags or {})
        return self.client.create_run(self.experiment_id, tags=tags)

    def start_study(self, params: dict[str, Any]) -> None:
        """Params of the parent run; those it has already are left as they are."""
        known = self.client.get_run(self.parent).data.params
        self._params(self.parent, {k: v for k, v in params.items() if k not in known})

    def start_trial(
        self,
        number: int,
        config_hash: str,
        name: str,
        params: dict[str, Any],
        replicate_of: int | None = None,
        first: bool = False,
    ) -> str:
        """The id of the child run of one configuration, new or reopened; `first`: there cannot be one to reopen."""
        tags = {TRIAL_TAG: str(number)} | ({} if replicate_of is None else {REPLICATE_TAG: str(replicate_of)})
        key = {HASH_TAG: config_hash}
        run = self._open(key, name, None if first else self._find(key), {PARENT_TAG: self.parent} | tags)
        run_id = self._look_at_metrics(run)
        self._params(run_id, {k: v for k, v in params.items() if k not in run.data.params})
        changed = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
        if changed:  # of a run that was reopened
            self.client.log_batch(run_id, tags=changed)
        return run_id

    def find_trial(self, config_hash: str) -> str:
        """The id of a child run that was started before."""
        found = self._find({HASH_TAG: config_hash})
        if found is None:
            raise MlflowException(f"no run of configuration {config_hash}", RESOURCE_DOES_NOT_EXIST)
        return self._look_at_metrics(found)

    def _look_at_metrics(self, run: Run) -> str:
        """A reopened run goes through its curves again: points and figures that it has are not logged twice."""
        run_id: str = run.info.run_id
        self._figures[run_id] = run.data.metrics
        curves = [name for name in run.data.metrics if name.startswith(SERIES)]
        self._last_step[run_id] = {
            name: max(point.step for point in self.client.get_metric_history(run_id, name)) for name in curves
        }
        return run_id

    def _params(self, run_id: str, params: dict[str, Any]) -> None:
        listed = [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, len(listed), MAX_PARAMS):
            self.client.log_batch(run_id, params=listed[start : start + MAX_PARAMS])

    def log_series(self, run_id: str, points: Iterable[tuple[str, int, float]]) -> None:
        """Points (metric, step, value) of a trial's curves, in as few calls as MLflow takes."""
        now = int(time.time() * 1000)
        known = self._last_step.get(run_id, {})
        listed = [Metric(name, value, now, step) for name, step, value in points if step > known.get(name, -1)]
        for start in range(0, len(listed), MAX_METRICS):
            self.client.log_batch(run_id, metrics=listed[start : start + MAX_METRICS])

    def finish_trial(
        self,
        run_id: str,
        figures: dict[str, float],
        place: dict[str, str] | None = None,
        phase1_by: str = "",
        traces: str | None = None,
    ) -> None:
        """The final figures, once, and the run's end; files in `traces` become artifacts.

        Files and folders are named as by `Records.inside`.

        Args:
            place: tags that say where and how they were computed.
            phase1_by: config hash of the run that trained Phase 1, and so that run's tag `config_hash`.
        """
        tags = (place or {}) | ({PHASE1_TAG: phase1_by} if phase1_by else {})
        if traces:
            tags[PROFILED_TAG] = "true"  # its seconds are not those of an ordinary trial
        self._log_figures(run_id, figures, tags)
        self.client.set_terminated(run_id, "FINISHED")
        if traces and (folder := self._root / traces).exists():  # else they are there already
            self.client.log_artifacts(run_id, str(folder), "profile")
            shutil.rmtree(folder)

    def log_file(self, run_id: str, file: str) -> None:
        """One file of a trial as an artifact."""
        self.client.log_artifact(run_id, str(self._root / file))

    def ended_hashes(self, status: str) -> set[str]:
        """Configurations whose run has ended, FINISHED or FAILED."""
        found: set[str] = set()
        token = None
        while token != "":
            with no_collection():  # a page is some hundred thousand objects
                page = self._search(f"attributes.status = '{status}'", page_token=token, max_results=1_000)
            found |= {run.data.tags[HASH_TAG] for run in page if HASH_TAG in run.data.tags}
            token = page.token or ""
        return found

    def fail_trial(
        self, run_id: str, reason: str, details: str, status: str = "FAILED", place: dict[str, str] | None = None
    ) -> None:
        """End a run without figures; `details` (a traceback, say) becomes an artifact, `place` as in `finish_trial`."""
        tags = {REASON_TAG: reason[:500]} | (place or {})
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        self.client.set_terminated(run_id, status)
        if details:
            self.client.log_text(run_id, details, "error.txt")

    def prune_trial(
        self, run_id: str, reason: str, figures: dict[str, float], place: dict[str, str] | None = None
    ) -> None:
        """End a run that was stopped early, with the figures that it has; `place` as in `finish_trial`."""
        self._log_figures(run_id, figures, {PRUNED_TAG: reason[:500]} | (place or {}))
        self.client.set_terminated(run_id, "FINISHED")

    def _log_figures(self, run_id: str, figures: dict[str, float], tags: dict[str, str]) -> None:
        """Figures that the run does not have yet, and tags, in one call."""
        known, now = self._figures.pop(run_id, {}), int(time.time() * 1000)
        listed = [Metric(name, value, now, 0) for name, value in figures.items() if known.get(name) != value]
        self.client.log_batch(run_id, metrics=listed, tags=[RunTag(key, value) for key, value in tags.items()])

    def end_study(self, status: str, figures: dict[str, float], files: Iterable[str]) -> None:
        """The parent run's figures, files and end; trials that never ended are marked killed."""
        for run in self._search("attributes.status = 'RUNNING'"):
            if run.info.run_id != self.parent:
                self.client.set_terminated(run.info.run_id, "KILLED")
        self._figures[self.parent] = self.client.get_run(self.parent).data.metrics
        self._log_figures(self.parent, figures, {})
        now = int(time.time() * 1000)
        self.client.set_terminated(self.parent, status, now)
        self._ended = now
        for file in files:
            self.client.log_artifact(self.parent, str(self._root / file))
