"""A study in MLflow: one experiment, one parent run, one child run per trial.

The driver is the only writer. Runs are found again by tag, so that a study that is continued reopens its
runs and never makes a second one for the same configuration; another's study of the same name, which shares the
experiment on a server, has another id.
"""

from mlflow.entities import Run, ViewType

from trainables.records import Records
from trainables.tracking.operations import EndStudy, Operation, StartStudy
from trainables.tracking.runs import ExperimentRuns
from trainables.tracking.store import PAGE, local_folder, open_experiment, opened, pages, reached
from trainables.tracking.tags import HASH_TAG, PARENT_TAG, ROLE_TAG, STUDY_ID_TAG, STUDY_TAG


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
        super().__init__(*open_experiment(records, study, tracking_uri, study_id), records.root)
        self.study, self.study_id, self._mine = study, study_id, {STUDY_ID_TAG: study_id}
        self.mended = ""  # what others had done to the study's own run, in one sentence
        with opened(tracking_uri or records.tracking_uri):
            if tracking_uri and not self.is_new:
                self._check_place(records)
            found = None if self.is_new else self._find_parent()
            # the experiment may be that of another study of this name
            self.is_new = found is None and (self.is_new or not self.search(self._mine, max_results=1))
            run = self._resume(found, study, {}, self.identity("") | {STUDY_TAG: study})
            self.parent = self._know("", run).run_id
            if not self.is_new:
                self._adopt()
        self._all_known = self.is_new
        self._common = {STUDY_TAG: study, PARENT_TAG: self.parent}
        self._ended: int | None = run.info.end_time  # as an earlier driver left it

    @property
    def ending(self) -> tuple[str, int | None]:
        """The parent run, and when it ended last, in milliseconds: no other state of this store has ended then."""
        return self.parent, self._ended

    def identity(self, key: str) -> dict[str, str]:
        """The tags of a trial, or of the parent."""
        return self._mine | ({HASH_TAG: key} if key else {ROLE_TAG: "study"})

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
        if found := self.find(""):
            return found
        deleted = self.search(self.identity(""), run_view_type=ViewType.DELETED_ONLY, max_results=1)
        if not deleted:
            return None
        self.client.restore_run(deleted[0].info.run_id)
        self.mended = "the study's own run in MLflow was deleted: it is back"
        return self.client.get_run(deleted[0].info.run_id)

    def _adopt(self) -> None:
        """Make all trials children of the parent: those of one that is gone for good are shown nowhere."""
        while strays := self.search(self._mine, f" and tags.`{PARENT_TAG}` != '{self.parent}'", max_results=PAGE):
            for run in strays:
                self.client.set_tag(run.info.run_id, PARENT_TAG, self.parent)
            self.mended = self.mended or "the study's own run in MLflow was gone: its trials belong to a new one"

    def apply(self, operation: Operation) -> None:
        """As of any runs, and a study's start and end."""
        match operation:
            case StartStudy(params=params):
                self._resume(self.client.get_run(self.parent), self.study, params, {})
            case EndStudy(status=status, figures=figures, files=files):
                for run in self.search(self._mine, " and attributes.status = 'RUNNING'"):
                    if run.info.run_id != self.parent:
                        self.client.set_terminated(run.info.run_id, "KILLED")
                self._ended = self._end("", status, figures, {})
                for file in files:
                    self.client.log_artifact(self.parent, str(self._root / file))
            case _:
                super().apply(operation)

    def ended_hashes(self) -> dict[str, set[str]]:
        """Configurations whose run has ended, FINISHED or FAILED; all their runs are read.

        Raises:
            AwayError: MLflow is away.
        """
        with reached():
            return {status: self._hashes(f" and attributes.status = '{status}'") for status in ("FINISHED", "FAILED")}

    def _hashes(self, condition: str) -> set[str]:
        found = pages(self.search, self._mine, condition, max_results=PAGE)
        return {run.data.tags[HASH_TAG] for run in found if HASH_TAG in run.data.tags}
