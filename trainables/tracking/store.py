"""MLflow's store: opened or made, looked at as a whole, and which of its errors pass."""

import logging
import re
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import mlflow
from filelock import FileLock
from mlflow.entities import Experiment, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    REQUEST_LIMIT_EXCEEDED,
    TEMPORARILY_UNAVAILABLE,
    ErrorCode,
)
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from sqlalchemy.engine import make_url

from model.errors import first_line
from trainables.errors import AwayError, OtherVersionError
from trainables.host.collection import no_collection
from trainables.host.preflight import check_folder
from trainables.metrics import SERIES
from trainables.records import Records, sqlite_path, sqlite_uri
from trainables.tracking.places import HOLDS, KIND_TAG

for _noisy in ("mlflow", "alembic"):  # they announce every table of a new database
    logging.getLogger(_noisy).setLevel(logging.ERROR)
# It logs each traceback of a locked or full database before it raises the error; the writer says it in a sentence.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

KIND = {KIND_TAG: "custom_model_development"}  # the UI opens on runs and curves, not on LLM traces

# What a server or a database that is away, locked, full or overloaded answers; all else it refuses for good.
OUTAGES = {ErrorCode.Name(code) for code in (INTERNAL_ERROR, REQUEST_LIMIT_EXCEEDED, TEMPORARILY_UNAVAILABLE)}

RUN_FOLDER = f"/{'0' * 32}/artifacts"  # of a run's files, below its experiment's
MAX_URI = 200  # characters that MLflow's tables have for it; SQLite takes any number

OUT_OF_DATE = re.compile(r"out-of-date database schema \(found version (\w+)")
MIGRATIONS = Path(mlflow.__file__).parent / "store/db_migrations/versions"  # one file for each version of the tables


def is_outage(error: Exception) -> bool:
    """Whether the same call may go through later."""
    if isinstance(error, MlflowException):
        return error.error_code in OUTAGES
    # an artifact's file that was deleted before MLflow was told of it, a folder of artifacts that is someone else's
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    return isinstance(error, OSError)  # connections, timeouts (requests' errors are OSErrors), a full disk


@contextmanager
def reached() -> Iterator[None]:
    """Raise AwayError where MLflow is away."""
    try:
        yield
    except Exception as error:
        if not is_outage(error):
            raise
        raise AwayError(f"MLflow cannot be reached: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """What is behind an error, in a few words: of a database's it is the driver's own message."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)[:150]


@contextmanager
def opened(uri: str) -> Iterator[None]:
    """Around what opens the store at `uri`: what MLflow refuses is told in one sentence.

    Raises:
        OtherVersionError: the store is of another version of MLflow.
        ValueError: MLflow refuses it for another reason.
    """
    try:
        yield
    except MlflowException as error:
        if found := OUT_OF_DATE.search(str(error)):
            known = any(MIGRATIONS.glob(f"{found.group(1)}_*.py"))
            upgrade = "mlflow db upgrade" if known or not MIGRATIONS.is_dir() else ""
            raise OtherVersionError(make_url(uri).render_as_string(), "mlflow", upgrade) from error
        raise ValueError(f"MLflow's store cannot be used: {reason_of(error)}") from error


def _initialise(records: Records) -> None:
    """Make the database whole or not at all: one that was cut off half made could never be opened again."""
    if records.mlflow_database.exists():
        return
    scratch = records.mlflow_database.with_name(".mlflow.new.db")
    for left_behind in records.root.glob(f"{scratch.name}*"):
        left_behind.unlink()
    MlflowClient(sqlite_uri(scratch)).search_experiments(max_results=1)  # makes all tables
    scratch.rename(records.mlflow_database)


def find_experiment(client: MlflowClient, name: str, key: str) -> Experiment | None:
    """The experiment that holds `key`, whatever it is called by now; else the one of this name, deleted ones too.

    Args:
        name: which it was made with, and which its tag says; two studies of one id were copied from each other.
        key: of a study of others none.
    """
    tagged = f"tags.`{HOLDS}{key}` = '{name}'"
    found = client.search_experiments(ViewType.ALL, filter_string=tagged, max_results=1) if key else []
    return found[0] if found else client.get_experiment_by_name(name)


def artifact_uri(records: Records, key: str, store: str) -> str | None:
    """Where the files of `key` are to lie in `records`; None where the store has a place of its own for them.

    Raises:
        ValueError: the place's name is longer than the database of this store takes.
    """
    if store.startswith("http"):  # only a server has; a database would put them into the cwd
        return None
    folder = records.artifacts / key
    check_folder(folder, "MLflow's artifacts")
    if len(uri := folder.as_uri()) + len(RUN_FOLDER) > MAX_URI and sqlite_path(store) is None:
        raise ValueError(f"{folder} is too long a path for MLflow's database: give --mlruns another folder")
    return uri


def open_experiment(records: Records, name: str, tracking_uri: str | None, key: str) -> tuple[MlflowClient, str, bool]:
    """MLflow's store, the id of the experiment there that holds `key`, and whether it was made now.

    Args:
        name: of the experiment, if it is made or has no tag of its `key` yet.
        key: an id: it names the experiment in a tag, and the folder of its files.

    Raises:
        ValueError: MLflow refuses the store, the experiment is deleted, or its files cannot be written.
    """
    records.root.mkdir(parents=True, exist_ok=True)
    uri = tracking_uri or records.tracking_uri
    # A fresh database that two processes initialise at once fails in most of them.
    with opened(uri), FileLock(records.root / ".mlflow.lock"):
        if tracking_uri is None:
            _initialise(records)
        client = MlflowClient(uri)
        found = find_experiment(client, name, key)
        tag = f"{HOLDS}{key}"
        if found is None:
            where = artifact_uri(records, key, uri)
            return client, client.create_experiment(name, artifact_location=where, tags={**KIND, tag: name}), True
        if found.lifecycle_stage != "active":
            # the UI does not show it any more
            restore = f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow experiments restore -x {found.experiment_id}"
            raise ValueError(f"MLflow's experiment {found.name!r} was deleted: bring it back with `{restore}`")
        if tag not in found.tags:
            client.set_experiment_tag(found.experiment_id, tag, name)
    if urlparse(found.artifact_location).scheme == "file":
        check_folder(Path(local_file_uri_to_path(found.artifact_location)), "MLflow's artifacts")
    return client, found.experiment_id, False


PAGE = 1_000  # runs per query


def pages(query: Callable[..., Any], *arguments: Any, **page: Any) -> Iterator[Any]:
    """All that a query of MLflow's finds, page by page."""
    token = None
    while token != "":
        with no_collection():  # a page is some hundred thousand objects
            found = query(*arguments, page_token=token, **page)
        yield from found
        token = found.token or ""


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """One run as a store has it."""

    run_id: str
    status: str
    deleted: bool
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]  # last values
    folder: Path | None  # of its files; None: not on this machine

    @classmethod
    def of(cls, run: Run) -> "StoredRun":
        """What is looked at of MLflow's own."""
        return cls(
            run_id=run.info.run_id,
            status=run.info.status,
            deleted=run.info.lifecycle_stage != "active",
            tags=run.data.tags,
            params=run.data.params,
            metrics=run.data.metrics,
            folder=local_folder(run.info.artifact_uri),
        )


def local_folder(uri: str) -> Path | None:
    """The folder of a place on this machine."""
    return Path(local_file_uri_to_path(uri)) if urlparse(uri).scheme in ("", "file") else None


class StoreView:
    """A whole store, read with few queries."""

    def __init__(self, tracking_uri: str) -> None:
        """Open it.

        Raises:
            OtherVersionError: it is of another version of MLflow.
            ValueError: MLflow refuses it.
        """
        with opened(tracking_uri):
            self._client = MlflowClient(tracking_uri)
            self._client.search_experiments(max_results=1)

    def runs(self, study: str, study_id: str) -> list[StoredRun]:
        """All runs of a study's experiment, deleted ones too; none where there is no such experiment."""
        if (known := find_experiment(self._client, study, study_id)) is None:
            return []
        found = pages(self._client.search_runs, [known.experiment_id], run_view_type=ViewType.ALL, max_results=PAGE)
        return list(map(StoredRun.of, found))

    def version_folders(self) -> Iterator[tuple[str, str, dict[str, str], Path | None]]:
        """Every registered version: its name, number and tags, and its files' folder; None: not on this machine.

        A version of which MLflow has lost the place has a folder that cannot be.
        """
        for version in pages(self._client.search_model_versions):
            yield version.name, str(version.version), version.tags, self._folder_of(version.name, version.version)

    def _folder_of(self, name: str, version: str) -> Path | None:
        place = self._client.get_model_version_download_uri(name, version)
        if place.startswith("models:/"):
            try:
                place = self._client.get_logged_model(place.removeprefix("models:/")).artifact_location
            except MlflowException as error:
                if is_outage(error):
                    raise
                return Path(place)
        return local_folder(place)

    def delete(self, run_id: str) -> None:
        """Mark a run as deleted; MLflow keeps it, and can bring it back."""
        self._client.delete_run(run_id)


def curve_ranges(database: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """The lowest and the highest value of every curve of every run in a database, by run and name, in one query."""
    curves = " OR ".join(f"key LIKE '{start}%'" for start in SERIES)
    query = f"SELECT run_uuid, key, MIN(value), MAX(value) FROM metrics WHERE {curves} GROUP BY run_uuid, key"
    with closing(sqlite3.connect(database)) as opened_database:
        return {(run, key): (low, high) for run, key, low, high in opened_database.execute(query)}
