"""Trained models in MLflow: one run each, in an experiment of their own, linked to the trial that it comes from."""

from trainables.records import Records
from trainables.tracking.runs import ExperimentRuns
from trainables.tracking.store import find_experiment, open_experiment
from trainables.tracking.tags import HASH_TAG, STUDY_ID_TAG

EXPERIMENT, KEY = "trained models", "trained-models"  # no study's name has a space
TRIAL_RUN_TAG, TOKEN_TAG = "trial_run", "training"


class ModelRuns(ExperimentRuns):
    """Runs by their training's token: one that is ended at any moment has one run."""

    def __init__(self, records: Records, tracking_uri: str | None) -> None:
        """Open MLflow's store.

        Raises:
            ValueError: it cannot be used.
        """
        super().__init__(*open_experiment(records, EXPERIMENT, tracking_uri, KEY), records.root)

    def identity(self, key: str) -> dict[str, str]:
        """The tag that holds the token."""
        return {TOKEN_TAG: key}

    def trial_run(self, study: str, study_id: str, config_hash: str) -> str | None:
        """The run of a study's trial, if this MLflow has it."""
        experiment = find_experiment(self.client, study, study_id)
        if experiment is None:
            return None
        where = f"tags.{STUDY_ID_TAG} = '{study_id}' and tags.{HASH_TAG} = '{config_hash}'"
        runs = self.client.search_runs([experiment.experiment_id], filter_string=where, max_results=1)
        return str(runs[0].info.run_id) if runs else None
