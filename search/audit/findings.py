"""What is wrong with a records folder, in plain words, and a look at its databases that changes nothing in them."""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

WAL = b"\x02\x02"  # bytes 18 and 19 of a database that keeps a write-ahead log


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    kind: str  # trial file, mlflow, leaderboard, cache, registry or database
    where: str  # the study and trial, or the file
    what: str
    remedy: str
    repairable: bool  # by `--repair`


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """What was not checked or not mended, and why."""

    where: str
    why: str


@contextmanager
def snapshots(*databases: Path) -> Iterator[list[Path | None]]:
    """Copies of SQLite databases as they are now, in a folder of their own that is removed afterwards.

    Whoever opens a copy may write to it or migrate it; the database itself is read only. None where there is none.

    Raises:
        ValueError: a database cannot be read.
    """
    with tempfile.TemporaryDirectory() as scratch:
        yield [_copied(database, Path(scratch)) for database in databases]


def _copied(database: Path, folder: Path) -> Path | None:
    if not database.exists():
        return None
    copy = folder / database.name
    try:
        with database.open("rb") as file:
            header = file.read(20)
        # A reader of a database with a log makes the log's files where there are none, but not of one that is still.
        still = header[18:20] == WAL and not database.with_name(f"{database.name}-wal").exists()
        uri = f"{database.as_uri()}?{'immutable=1' if still else 'mode=ro'}"
        with closing(sqlite3.connect(uri, uri=True, timeout=60)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    except (OSError, sqlite3.Error) as error:
        raise ValueError(f"{database} cannot be read: {error}") from error
    return copy
