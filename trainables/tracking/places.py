"""Where a records folder lies: MLflow keeps the absolute places of files, which follow the folder when it is opened.

Moved, copied or mounted elsewhere, a folder's artifacts lie where it is now. Whoever is to write to its store opens it
here first; whoever only looks takes a copy of the database. Imports nothing heavy.
"""

import fcntl
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from filelock import FileLock

from model.snapshot import snapshot
from trainables.records import Records

URIS = (  # MLflow's tables and columns of places
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
HOLDS = "holds."  # and an id: tag of the experiment that holds that study, or the models; says its first name
FOLDER_TAG = "model_folder"  # of a run in which a model was trained: a path
KIND_TAG = "mlflow.experimentKind"
LOCK = ".in-use.lock"  # shared by all that write to MLflow's store; held alone while places are rewritten


class InUseElsewhereError(ValueError):
    """Places would have to be rewritten under a process that uses the old ones."""


@contextmanager
def in_use(records: Records) -> Iterator[None]:
    """Around all that writes to a records folder's MLflow store: its places are those of now, and stay so meanwhile.

    Raises:
        InUseElsewhereError: they were others, and another process writes there.
        ValueError: MLflow's database cannot be read.
        OSError: the folder cannot be written to.
    """
    records.root.mkdir(parents=True, exist_ok=True)
    file = os.open(records.root / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # one at a time: two that share the lock already could neither of them have it alone
        with FileLock(records.root / ".mlflow.lock"):
            fcntl.flock(file, fcntl.LOCK_SH)
            if old := _old_places(records.mlflow_database, records.root):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    raise InUseElsewhereError(
                        f"a study or a training is writing to {records.root}/ by another path "
                        f"({', '.join(sorted(old.values()))}): use that one, or wait until it has ended"
                    ) from None
                rewrite(records.mlflow_database, records.root)
                fcntl.flock(file, fcntl.LOCK_SH)
        yield
    finally:
        os.close(file)


def rewrite(database: Path, root: Path) -> None:
    """Make what MLflow's database has of places in its records folder those in `root`; all of it or nothing."""
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            for old_uri, old_path in _old_places_in(connection, root).items():
                for table, column in URIS:
                    _replace(connection, table, column, f"{old_uri}/", f"{root.as_uri()}/")
                _replace(connection, "tags", "value", f"{old_path}/", f"{root}/", f"key = '{FOLDER_TAG}' AND")


def _replace(connection: sqlite3.Connection, table: str, column: str, old: str, new: str, where: str = "") -> None:
    """Begin with `new` what begins with `old`; what does already is left, also where `new` lies in `old`."""
    connection.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
        f"WHERE {where} substr({column}, 1, ?) = ? AND substr({column}, 1, ?) <> ?",
        (new, len(old) + 1, len(old), old, len(new), new),
    )


def _old_places(database: Path, root: Path) -> dict[str, str]:
    """The records folders other than `root` that the database has experiments of this project in: URI → path."""
    if not database.exists():
        return {}
    try:
        with closing(sqlite3.connect(database, timeout=60)) as connection:
            return _old_places_in(connection, root)
    except sqlite3.Error as error:
        raise ValueError(f"{database} cannot be read: {error}") from error


def _old_places_in(connection: sqlite3.Connection, root: Path) -> dict[str, str]:
    if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'experiment_tags'").fetchone():
        return {}
    rows = connection.execute(
        "SELECT artifact_location, name, EXISTS (SELECT 1 FROM experiment_tags AS t "
        "WHERE t.experiment_id = e.experiment_id AND substr(t.key, 1, ?) = ?) FROM experiments AS e "
        "WHERE EXISTS (SELECT 1 FROM experiment_tags AS t WHERE t.experiment_id = e.experiment_id AND t.key = ?)",
        (len(HOLDS), HOLDS, KIND_TAG),
    )
    found = {}
    for location, name, tagged in rows:
        path = Path(url2pathname(urlparse(location or "").path))
        # ROOT/artifacts/ID, or of earlier versions ROOT/artifacts/NAME; all else is someone's own choice
        ours = location and location.startswith("file:") and path.parent.name == "artifacts"
        if ours and (tagged or path.name == name) and path.parent.parent != root:
            found[location.rsplit("/", 2)[0]] = str(path.parent.parent)
    return found


@contextmanager
def snapshots(*databases: Path) -> Iterator[list[Path | None]]:
    """Copies of SQLite databases as they are now, in a folder of their own that is removed afterwards.

    Whoever opens a copy may write to it or migrate it; the database itself is read only. None where there is none.

    Raises:
        ValueError: a database cannot be read.
    """
    with tempfile.TemporaryDirectory() as scratch:
        yield [snapshot(each, Path(scratch)) if each.exists() else None for each in databases]
