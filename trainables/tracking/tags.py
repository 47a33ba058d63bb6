"""Names of tags by which runs are found and described. No MLflow."""

from typing import Any

from trainables.host.digests import Provenance

STUDY_TAG, STUDY_ID_TAG, HASH_TAG, TRIAL_TAG, ROLE_TAG = "study", "study_id", "config_hash", "optuna_trial", "role"
COMPUTE_TAG, DEVICE_TAG, PROFILED_TAG, REPLICATE_TAG = "compute", "device_name", "profiled", "replicate_of"
PHASE1_TAG = "phase1_trained_by"  # config hash of the run, in this study or another, that trained Phase 1
DIGEST_TAG = "digest"  # of the code, torch and device that gave the figures (`digests.Provenance`)
PRUNED_TAG = "pruned"  # why a trial was stopped early: an outcome, so its run ends as FINISHED
REASON_TAG = "reason"  # why a run has no result
PARENT_TAG, NAME_TAG = "mlflow.parentRunId", "mlflow.runName"


def trial_tags(number: int, replicate_of: int | None) -> dict[str, str]:
    """Which trial of its study a run is, and of which it is a replicate."""
    return {TRIAL_TAG: str(number)} | ({} if replicate_of is None else {REPLICATE_TAG: str(replicate_of)})


def provenance_tags(recorded: dict[str, Any] | None) -> dict[str, str]:
    """What a run's tags say of the code, torch and device behind its figures; nothing where it was not recorded."""
    if not recorded:
        return {}
    made = Provenance(**recorded)
    return {DIGEST_TAG: made.digest, "code": made.code, "torch": made.torch, "device": made.device}
