"""Looking at the records folder disturbs nobody who works in it."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from trainables.host.preflight import check_root
from trainables.records import Records

WRITE = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('INSERT INTO t VALUES (1)'); c.commit()"


def test_looking_at_a_database_drops_no_lock_of_this_process(tmp_path: Path) -> None:
    database = Records.at(tmp_path).optuna_database
    connection = sqlite3.connect(database)
    connection.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (n)")
    check_root(tmp_path)
    # The last connection to a database removes its log: another process that finds no lock believes to be that.
    subprocess.run([sys.executable, "-c", WRITE, str(database)], check=True)
    assert database.with_name("optuna.db-wal").exists()
    connection.execute("INSERT INTO t VALUES (2)")
    connection.commit()
    connection.close()
    with sqlite3.connect(database) as again:
        assert again.execute("SELECT n FROM t ORDER BY n").fetchall() == [(1,), (2,)]


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    database = Records.at(tmp_path).mlflow_database
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE t (n)")
    database.write_bytes(database.read_bytes()[:100] + b"\xff" * 4_000)
    with pytest.raises(ValueError, match=f"--mlruns .*{database.name} is no SQLite database"):
        check_root(tmp_path)
