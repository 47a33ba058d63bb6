"""A study in MLflow: one experiment, one parent run, one child run per trial.

The driver is the only writer. Runs are found again by tag, so that a study that is continued reopens its
runs and never makes a second one for the same configuration; another's study of the same name, which shares the
experiment on a server, has another id.
"""

import time
from typing import Any

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.entities import PagedList

from trainables.host.collection import no_collection
from trainables.host.digests import Provenance
from trainables.records import Records
from trainables.tracking.operations import EndStudy, Operation, StartStudy, StartTrial
from trainables.tracking.runs import ExperimentRuns
from trainables.tracking.store import PAGE, local_folder, open_experiment, opened, reached

STUDY_TAG, STUDY_ID_TAG, HASH_TAG, TRIAL_TAG, ROLE_TAG = "study", "study_id", "config_hash", "optuna_trial", "role"
COMPUTE_TAG, DEVICE_TAG, REPLICATE_TAG = "compute", "device_name", "replicate_of"
DIGEST_TAG = "digest"  # of the code, torch and device that gave the figures (`digests.Provenance`)
PARENT_TAG = "mlflow.parentRunId"


def provenance_tags(recorded: dict[str, Any] | None) -> dict[str, str]:
    """What a run's tags say of the code, torch and device behind its figures; nothing where it was not recorded."""
    if not recorded:
        return {}
    made = Provenance(**recorded)
    return {DIGEST_TAG: made.digest, "code": made.code, "torch": made.torch, "device": made.device}


class StudyRuns(ExperimentRuns):
    """One study's runs: trials by config hash, the parent by the empty key."""

    def __init__(self, records: Records, study: str, study_id: str, tracking_uri: str | None = None) -> None:
        """Open or make the experiment `study`, and its parent run.

        Args:
            study_id: which study of that name.
            records: hold the database and the artifacts, unless `tracking_uri` says where runs go instead.

        Raises:
            ValueError: MLflow refuses the store, a deleted experiment holds the name, or its files cannot be written.
        """
        self.study, self.study_id = study, study_id
        super().__init__(*open_experiment(records, study, tracking_uri, study_id), records.root)
        self.mended = ""  # what others had done to the study's own run, in one sentence
        with opened(tracking_uri or records.tracking_uri):
            if tracking_uri and not self.is_new:
                self._check_place(records)
            found = None if self.is_new else self._find_parent()
            # the experiment may be that of another study of this name
            self.is_new = found is None and (self.is_new or not self._search("", max_results=1))
            parent = self._resume(found, study, {}, self._tags({ROLE_TAG: "study"})).info
            self.parent: str = parent.run_id
            if not self.is_new:
                self._adopt()
        self._all_known = self.is_new  # no trial has a run that was not made here
        self._ended: int | None = parent.end_time  # as an earlier driver left it

    @property
    def ending(self) -> tuple[str, int | None]:
        """The parent run, and when it ended last, in milliseconds: no other state of this store has ended then."""
        return self.parent, self._ended

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
        if found := self._find(ROLE_TAG, "study"):
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

    def _search(self, condition: str, **page: Any) -> PagedList[Run]:
        """This study's runs for which `condition` holds."""
        mine = f"tags.{STUDY_ID_TAG} = '{self.study_id}'" + (condition and f" and {condition}")
        return self.client.search_runs([self.experiment_id], mine, **page)

    def _find(self, tag: str, value: str) -> Run | None:
        """This study's run with this tag."""
        found = self._search(f"tags.{tag} = '{value}'", max_results=1)
        return found[0] if found else None

    def _tags(self, own: dict[str, str]) -> dict[str, str]:
        return {STUDY_TAG: self.study, STUDY_ID_TAG: self.study_id} | own

    def fetch(self, key: str) -> Run:
        """A trial's run by its config hash, or the parent."""
        found = self._find(HASH_TAG, key) if key else self.client.get_run(self.parent)
        if found is None:
            raise MlflowException(f"no run of configuration {key}", RESOURCE_DOES_NOT_EXIST)
        return found

    def forget(self) -> None:
        """As of any runs; one may have been made of which this process does not know."""
        super().forget()
        self._all_known = False

    def apply(self, operation: Operation) -> None:
        """As of any runs, and what is a study's alone."""
        match operation:
            case StartStudy(params=params):
                self._resume(self.fetch(""), self.study, params, {})
            case StartTrial():
                self._start_trial(operation)
            case EndStudy():
                self._end_study(operation)
            case _:
                super().apply(operation)

    def _start_trial(self, trial: StartTrial) -> None:
        found = None if self._all_known and trial.key not in self._known else self._find(HASH_TAG, trial.key)
        tags = self._tags({HASH_TAG: trial.key, PARENT_TAG: self.parent, TRIAL_TAG: str(trial.number)})
        if trial.replicate_of is not None:
            tags[REPLICATE_TAG] = str(trial.replicate_of)
        self._know(trial.key, self._resume(found, trial.name, trial.params, tags))

    def _end_study(self, end: EndStudy) -> None:
        for run in self._search("attributes.status = 'RUNNING'"):
            if run.info.run_id != self.parent:
                self.client.set_terminated(run.info.run_id, "KILLED")
        self._log_figures(self._open(""), end.figures, {})
        now = int(time.time() * 1000)
        self.client.set_terminated(self.parent, end.status, now)
        self._ended = now
        for file in end.files:
            self.client.log_artifact(self.parent, str(self._root / file))

    def ended_hashes(self) -> dict[str, set[str]]:
        """Configurations whose run has ended, FINISHED or FAILED; all their runs are read.

        Raises:
            ValueError: MLflow is away.
        """
        with reached():
            return {status: self._hashes(status) for status in ("FINISHED", "FAILED")}

    def _hashes(self, status: str) -> set[str]:
        found: set[str] = set()
        token = None
        while token != "":
            with no_collection():  # a page is some hundred thousand objects
                page = self._search(f"attributes.status = '{status}'", page_token=token, max_results=PAGE)
            found |= {run.data.tags[HASH_TAG] for run in page if HASH_TAG in run.data.tags}
            token = page.token or ""
        return found
