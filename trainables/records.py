"""Where everything lies under one records folder (`--mlruns DIR`). Importing this costs nothing."""

import hashlib
import os
import sqlite3
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ROOT = "mlruns"
RECORD = "record"  # attribute of a trial in the ledger: the digest of what it left in its file
SQLITE = ("sqlite:///", "sqlite+pysqlite:///")  # how addresses of SQLite databases begin


def sqlite_uri(database: Path) -> str:
    """The address of an SQLite database for SQLAlchemy, and so for Optuna and MLflow, whatever its path holds."""
    path = str(database.absolute())
    if not set(path) & set("%?#{}"):  # none that SQLAlchemy, or Optuna (braces), would read as something else
        return f"{SQLITE[0]}{path}"
    from sqlalchemy.engine import URL

    # MLflow makes the folder that follows sqlite:/// as it is written, escapes and all; not that of a named driver
    return URL.create("sqlite+pysqlite", database=path).render_as_string()


def sqlite_path(uri: str) -> Path | None:
    """The file of such an address, absolute; None where it is no SQLite database's."""
    if not uri.startswith(SQLITE):
        return None
    from sqlalchemy.engine import make_url

    return Path(make_url(uri).database or "").absolute()


def check_path(path: Path) -> None:
    """Raise ValueError if a path's name is no UTF-8 to this process: MLflow, Ray and databases take no other."""
    try:
        if os.fsencode(path) == str(path).encode():
            return
    except UnicodeEncodeError:  # bytes that Python could not decode
        pass
    remedy = "rename it" if sys.getfilesystemencoding() == "utf-8" else "set PYTHONUTF8=1, or rename it"
    raise ValueError(f"{str(path)!r} is no name in UTF-8 to Python here: {remedy}")


@dataclass(frozen=True)
class Records:
    """The layout of a records folder; nothing is made by looking."""

    root: Path  # absolute

    @classmethod
    def at(cls, folder: Path) -> "Records":
        """The records in `folder`, wherever the process is later.

        Raises:
            ValueError: its path is no UTF-8.
        """
        root = folder.resolve()
        check_path(root)
        return cls(root)

    @property
    def mlflow_database(self) -> Path:
        """MLflow's runs."""
        return self.root / "mlflow.db"

    @property
    def tracking_uri(self) -> str:
        """MLflow's address of `mlflow_database`."""
        return sqlite_uri(self.mlflow_database)

    @property
    def artifacts(self) -> Path:
        """Files logged to MLflow, a folder for each study by its id."""
        return self.root / "artifacts"

    @property
    def optuna_database(self) -> Path:
        """The ledger of every study."""
        return self.root / "optuna.db"

    @property
    def cache(self) -> Path:
        """Content-addressed token ids, embeddings and Phase-1 results."""
        return self.root / "cache"

    def use_write_ahead_logs(self) -> None:
        """Let the UI and a dashboard read the databases while a study writes. Not for network folders."""
        for database in (self.mlflow_database, self.optuna_database):
            if database.exists():
                connection = sqlite3.connect(database, timeout=60)
                connection.execute("PRAGMA journal_mode=WAL")
                connection.close()

    @property
    def studies(self) -> Path:
        """A folder for each study."""
        return self.root / "studies"

    def study(self, name: str) -> Path:
        """A study's results: leaderboard, best configuration, report."""
        return self.studies / name

    def study_record(self, name: str) -> Path:
        """What a study runs on: command, sizes, versions."""
        return self.study(name) / "study.json"

    def inside(self, path: Path) -> str:
        """How a file of this folder is named in what outlasts a move of the folder."""
        return str(path.relative_to(self.root))

    def journal(self, name: str, tracking_uri: str | None) -> Path:
        """What MLflow was not told yet of a study; each store that its runs went to has one of its own."""
        store = f"-{hashlib.sha256(tracking_uri.encode()).hexdigest()[:8]}" if tracking_uri else ""
        return self.study(name) / f"mlflow{store}.journal"

    def trial_record(self, name: str, config_hash: str) -> Path:
        """What a trial left behind: its curves and its losses by document."""
        return self.study(name) / "trials" / f"{config_hash}.json"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file to write in place of `path`, which takes its place at the end: `path` is never seen half written.

    Each writer has a file of its own, so that two processes that write the same (a report, say) do not meet.
    """
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.new")
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half written, and the folder for it if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as scratch:
        # a path that is no text for this machine (bytes of another encoding) is shown by numbers
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")
