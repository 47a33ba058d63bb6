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


def check_database(database: Path, named: str) -> None:
    """Raise ValueError if a file that should be an SQLite database is something else, or damaged.

    SQLite itself looks: a plain `open` and `close` of the file would drop every lock that this process holds on it
    (POSIX locks go with any descriptor), and another process would take the log away under its connections.
    """
    if not database.exists():
        return
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
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
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
