"""This machine and the records folder: looked at before anything starts. Imports nothing heavy."""

import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

from trainables.records import Records

NOT_A_DATABASE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def check_root(root: Path) -> None:
    """Raise ValueError if the records folder, or one of those in it, cannot be made or written to."""
    records = Records.at(root)
    for folder in (records.root, records.studies, records.artifacts, records.cache):
        check_folder(folder, f"--mlruns {root}")
    for database in (records.optuna_database, records.mlflow_database):
        check_database(database, f"--mlruns {root}")


def may_be_written(records: Records) -> bool:
    """Whether this process may write to a records folder, all that it has for everybody included."""
    places = (records.root, records.studies, records.artifacts, records.cache)
    databases = (records.optuna_database, records.mlflow_database)
    return all(map(_takes_files, places)) and all(os.access(path, os.W_OK) for path in databases if path.exists())


def _takes_files(folder: Path) -> bool:
    """Whether files can be made in a folder, or it itself can be made."""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def check_database(database: Path, named: str) -> None:
    """Raise ValueError if a file that should be an SQLite database is something else, damaged, or not to be written to.

    SQLite itself looks: a plain `open` and `close` of the file would drop every lock that this process holds on it
    (POSIX locks go with any descriptor), and another process would take the log away under its connections.
    """
    if not database.exists():
        return
    if not os.access(database, os.W_OK):
        raise ValueError(f"{named}: {database} is not a file that can be written to")
    connection = sqlite3.connect(database, timeout=0)
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema")
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode in NOT_A_DATABASE:  # others pass, as one that is locked just now does
            raise ValueError(f"{named}: {database} is no SQLite database ({error})") from None
    finally:
        connection.close()


def check_folder(folder: Path, named: str) -> None:
    """Raise ValueError if a folder cannot be made or written to; `named` says which one it is."""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if not _takes_files(folder):
        raise ValueError(f"{named}: {existing} is not a folder that can be written to")


def count_gpus() -> int:
    """NVIDIA GPUs that this process may use, without importing torch."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    present = sum(line.startswith("GPU ") for line in listed.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, sum(name.strip() not in ("", "-1") for name in visible.split(",")))
