"""Where a model lies: a folder, or a version in MLflow's registry."""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from model.snapshot import snapshot
from model.text.checkpoint import CONFIG, DIGEST, MODEL_DIGEST, WEIGHTS

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SCHEME = "models:/"
DATABASES = ("postgresql", "mysql", "mssql")  # and SQLite
ARTIFACTS = "artifacts"  # beside the database of a records folder
DEPTH = 5  # of a model there, at least: artifacts/EXPERIMENT/models/ID/artifacts; the last is that of its files


@contextmanager
def model_folder(where: str | Path) -> Iterator[Path]:
    """The folder of a model, to be read while this lasts; one from the registry is fetched for that time.

    Raises:
        ValueError: the registry does not have it, or no registry was named.
    """
    if not str(where).startswith(SCHEME):
        if re.match(r"\w+:/", str(where)):
            raise ValueError(f"{where} is neither a folder nor of the form {SCHEME}NAME@ALIAS")
        yield Path(where).expanduser()
        return
    with tempfile.TemporaryDirectory() as scratch:
        fetched, registered = _fetch(str(where), Path(scratch))
        folders = [weights.parent for weights in fetched.rglob(WEIGHTS)]
        if len(folders) != 1:
            raise ValueError(f"{where} is no model of this project: it has {len(folders)} files {WEIGHTS}")
        if registered and registered != _digest(folders[0]):
            raise ValueError(f"{where} has other files than those that were registered: they were changed or exchanged")
        yield folders[0]


def _digest(folder: Path) -> str:
    """What a model's `config.json` says of its files; loading it holds them against that."""
    try:
        return str(json.loads((folder / CONFIG).read_text(encoding="utf-8"))[DIGEST])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _registered(client: "MlflowClient", uri: str) -> str:
    """The digest of the model that was registered as a version; empty where none is known."""
    if at := re.fullmatch(r"([^@]+)@([^/]+)", uri.removeprefix(SCHEME)):
        return str(client.get_model_version_by_alias(*at.groups()).tags.get(MODEL_DIGEST, ""))
    if numbered := re.fullmatch(r"(.+)/(\d+)", uri.removeprefix(SCHEME)):
        return str(client.get_model_version(*numbered.groups()).tags.get(MODEL_DIGEST, ""))
    return ""  # a model that is asked for by its own id


def _fetch(uri: str, scratch: Path) -> tuple[Path, str]:
    """A version's files, and the digest of the model that was registered as it; empty where none is known."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # among the text
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.engine import URL, make_url

    if not re.search("[@/]|^m-", uri.removeprefix(SCHEME)):
        raise ValueError(f"{uri} names no version: {uri}@champion, say, or {uri}/1")
    if not mlflow.is_tracking_uri_set():
        example = "MLFLOW_TRACKING_URI=sqlite:///mlruns/mlflow.db"
        raise ValueError(f"{uri} lies in an MLflow registry: say in which, for example with {example}")
    store = mlflow.get_tracking_uri()
    _check_database(store)
    try:
        if store.startswith("sqlite") and (database := Path(make_url(store).database or "")).is_file():
            if not all(os.access(path, os.W_OK) for path in (database, database.parent)):
                store = URL.create("sqlite+pysqlite", database=str(snapshot(database, scratch))).render_as_string()
            client = MlflowClient(store)
            if (found := _beside(database, uri, client)) is not None:
                return found, _registered(client, uri)
        with _impatient():
            registered = _registered(MlflowClient(store), uri)
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(scratch))), registered
    except MlflowException as error:
        reason = str(error).strip().partition("\n")[0].replace("<database_uri>", '"$MLFLOW_TRACKING_URI"')
        raise ValueError(f"{uri} cannot be had: {reason}") from error


def _check_database(store: str) -> None:
    """Raise ValueError if a database cannot be used; MLflow itself would try again and again, for minutes."""
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    if store.startswith("sqlite"):
        if not (database := Path(make_url(store).database or "")).is_file():
            raise ValueError(f"MLFLOW_TRACKING_URI names {database}, and there is no such database")
    elif store.startswith(DATABASES):
        try:
            create_engine(store).connect().close()
        except (ImportError, SQLAlchemyError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"MLFLOW_TRACKING_URI names a database that cannot be used: {reason}") from error


@contextmanager
def _impatient() -> Iterator[None]:
    """Meanwhile MLflow's client neither waits long nor tries again, unless the user has said how it is to."""
    hasty = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "6", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    own = {name: value for name, value in hasty.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]


def _beside(database: Path, uri: str, client: "MlflowClient") -> Path | None:
    """A model's folder among the artifacts beside its database, where both have been moved or copied together.

    What MLflow says is where the files were before, until something that writes there opens the database.
    """
    from mlflow.store.artifact.utils.models import get_model_name_and_version
    from mlflow.utils.file_utils import local_file_uri_to_path

    found = get_model_name_and_version(client, uri)
    place = f"{SCHEME}{found[0]}" if len(found) == 1 else client.get_model_version_download_uri(*found)
    if place.startswith(SCHEME):  # a model of MLflow's own, by its id
        place = client.get_logged_model(place.removeprefix(SCHEME)).artifact_location
    if not place.startswith("file:"):
        return None
    parts = Path(local_file_uri_to_path(place)).parts
    for start in range(len(parts) - DEPTH + 1):
        folder = database.parent.joinpath(*parts[start:])
        if parts[start] == ARTIFACTS and folder.is_dir():
            return folder
    return None
