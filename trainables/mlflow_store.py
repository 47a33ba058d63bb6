"""MLflow's store: opened or made, and which of its errors pass."""

import logging
from pathlib import Path
from urllib.parse import urlparse

from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    REQUEST_LIMIT_EXCEEDED,
    TEMPORARILY_UNAVAILABLE,
    ErrorCode,
)
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path

from trainables.records import Records
from trainables.surroundings import check_folder

for _noisy in ("mlflow", "alembic"):  # they announce every table of a new database
    logging.getLogger(_noisy).setLevel(logging.ERROR)
# It logs each traceback of a locked or full database before it raises the error; the spool says it in a sentence.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on runs and curves, not on LLM traces

# What a server or a database that is away, locked, full or overloaded answers; all else it refuses for good.
OUTAGES = {ErrorCode.Name(code) for code in (INTERNAL_ERROR, REQUEST_LIMIT_EXCEEDED, TEMPORARILY_UNAVAILABLE)}


def is_outage(error: Exception) -> bool:
    """Whether the same call may go through later."""
    if isinstance(error, MlflowException):
        return error.error_code in OUTAGES
    # an artifact's file that was deleted before MLflow was told of it, a folder of artifacts that is someone else's
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    return isinstance(error, OSError)  # connections, timeouts (requests' errors are OSErrors), a full disk


def reason_of(error: BaseException) -> str:
    """What is behind an error, in a few words: of a database's it is the driver's own message."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:150]


def _initialise(records: Records) -> None:
    """Make the database whole or not at all: one that was cut off half made could never be opened again."""
    if records.mlflow_database.exists():
        return
    scratch = records.mlflow_database.with_name(".mlflow.new.db")
    for left_behind in records.root.glob(f"{scratch.name}*"):
        left_behind.unlink()
    MlflowClient(f"sqlite:///{scratch}").search_experiments(max_results=1)  # makes all tables
    scratch.rename(records.mlflow_database)


def open_experiment(records: Records, name: str, tracking_uri: str | None) -> tuple[MlflowClient, str, bool]:
    """MLflow's store, the id of the experiment `name` there, and whether it was made now.

    Raises:
        ValueError: MLflow refuses the store, a deleted experiment holds the name, or its files cannot be written.
    """
    records.root.mkdir(parents=True, exist_ok=True)
    try:
        # A fresh database that two processes initialise at once fails in most of them.
        with FileLock(records.root / ".mlflow.lock"):
            if tracking_uri is None:
                _initialise(records)
            client = MlflowClient(tracking_uri or records.tracking_uri)
            found = client.get_experiment_by_name(name)
            if found is None:
                # only a server has a place of its own for files; a database would put them into the cwd
                where = None
                if not (tracking_uri or "").startswith("http"):
                    check_folder(records.artifacts / name, "MLflow's artifacts")
                    where = (records.artifacts / name).as_uri()
                return client, client.create_experiment(name, artifact_location=where, tags=KIND), True
    except MlflowException as error:
        raise ValueError(f"MLflow's store cannot be used: {reason_of(error)}") from error
    if found.lifecycle_stage != "active":
        raise ValueError(f"MLflow's experiment {name!r} was deleted: restore it there or give --name")
    if urlparse(found.artifact_location).scheme == "file":
        check_folder(Path(local_file_uri_to_path(found.artifact_location)), "MLflow's artifacts")
    return client, found.experiment_id, False
