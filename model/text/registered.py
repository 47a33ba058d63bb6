"""Where a model lies: a folder, or a version in MLflow's registry."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.text.checkpoint import WEIGHTS

SCHEME = "models:/"


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
        fetched = _fetch(str(where), scratch)
        folders = [weights.parent for weights in fetched.rglob(WEIGHTS)]
        if len(folders) != 1:
            raise ValueError(f"{where} is no model of this project: it has {len(folders)} files {WEIGHTS}")
        yield folders[0]


def _fetch(uri: str, scratch: str) -> Path:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # among the text
    import mlflow
    from mlflow.exceptions import MlflowException

    if not re.search("[@/]|^m-", uri.removeprefix(SCHEME)):
        raise ValueError(f"{uri} names no version: {uri}@champion, say, or {uri}/1")
    if not mlflow.is_tracking_uri_set():
        example = "MLFLOW_TRACKING_URI=sqlite:///mlruns/mlflow.db"
        raise ValueError(f"{uri} lies in an MLflow registry: say in which, for example with {example}")
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch))
    except MlflowException as error:
        reason = str(error).strip().partition("\n")[0].replace("<database_uri>", '"$MLFLOW_TRACKING_URI"')
        raise ValueError(f"{uri} cannot be had: {reason}") from error
