"""A look at an SQLite database that changes nothing in it: no log file beside it, no lock, no migration."""

import sqlite3
from contextlib import closing
from pathlib import Path

WAL = b"\x02\x02"  # bytes 18 and 19 of a database that keeps a write-ahead log


def snapshot(database: Path, folder: Path) -> Path:
    """A copy of `database` as it is now, in `folder`; whoever opens it may write to it or migrate it.

    Raises:
        ValueError: the database cannot be read.
    """
    database = database.absolute()
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
