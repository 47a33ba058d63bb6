"""Databases of other versions of Optuna and MLflow: the remedy that is printed is followed to the letter, and helps."""

import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import alembic.command
import forked
import pytest
from costless import layers_study, run_to_the_end
from optuna.storages import RDBStorage

from search.doctor import examine
from search.ledger.ledger import Ledger
from search.ledger.storage import open_storage
from search.ui import __file__ as ui
from trainables.errors import OtherVersionError
from trainables.records import Records
from trainables.tracking.store import StoreView, open_experiment

REMEDY = r"run `([^`]*)`"


def follow(sentence: str) -> None:
    """Run the command that a sentence names, as a shell does."""
    found = re.search(REMEDY, sentence)
    assert found, sentence
    program, *arguments = shlex.split(found.group(1))
    installed = shutil.which(program, path=Path(sys.executable).parent)
    assert installed
    subprocess.run([installed, *arguments], check=True, capture_output=True)


def stamp(database: Path, version: str) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    connection.close()


def earlier_optuna(database: Path) -> None:
    """As Optuna 3.0 left it: without the index that 3.2 adds, which a database made anew does not have either."""
    stamp(database, "v3.0.0.d")


def earlier_mlflow(database: Path) -> str:
    """As the MLflow before this one left it; that version."""
    from mlflow.store.db.utils import _get_alembic_config

    alembic.command.downgrade(_get_alembic_config(f"sqlite:///{database}"), "-1")
    return version(database)


def version(database: Path) -> str:
    with sqlite3.connect(database) as connection:
        (found,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    connection.close()
    return str(found)


def test_optunas_database_of_an_earlier_version(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_to_the_end(Ledger(layers_study(trials=4), "s", database))
    earlier_optuna(database)
    with pytest.raises(OtherVersionError) as refused:
        Ledger(layers_study(trials=4), "s", database)
    url = f"sqlite:///{database}"
    assert str(refused.value) == (
        f"{url} is of an earlier version of optuna than the one installed: keep a copy of it, run "
        f"`optuna storage upgrade --storage {url}`, then the same command again"
    )
    follow(str(refused.value))
    assert version(database) == RDBStorage(url)._version_manager.get_head_version()
    assert len(Ledger(layers_study(trials=4), "s", database).finished()) == 4


def test_an_address_that_a_shell_would_take_apart_is_quoted(database: Path, tmp_path: Path) -> None:
    (tmp_path / "my records").mkdir()
    moved = Path(shutil.move(database, tmp_path / "my records"))
    earlier_optuna(moved)
    with pytest.raises(OtherVersionError) as refused:
        open_storage(moved)
    follow(str(refused.value))
    open_storage(moved)


@pytest.fixture
def store(root: Path) -> Records:
    return Records.at(root)


@pytest.fixture
def earlier(store: Records, tmp_path: Path) -> str:
    """The version of MLflow's tables before the installed one's."""
    return earlier_mlflow(Path(shutil.copy(store.mlflow_database, tmp_path / "earlier.db")))


def test_mlflows_database_of_an_earlier_version(store: Records, earlier: str) -> None:
    database, head = store.mlflow_database, version(store.mlflow_database)
    stamp(database, earlier)
    with pytest.raises(OtherVersionError) as refused:
        open_experiment(store, "s", None, "id")
    url = f"sqlite:///{database}"
    assert str(refused.value) == (
        f"{url} is of an earlier version of mlflow than the one installed: keep a copy of it, run "
        f"`mlflow db upgrade {url}`, then the same command again"
    )
    stamp(database, head)
    assert earlier_mlflow(database) == earlier  # as it would really be
    follow(str(refused.value))
    assert version(database) == head
    assert open_experiment(store, "s", None, "id")[2]


def test_a_database_that_mlflow_brings_up_to_date_itself(store: Records) -> None:
    """It does so where whole tables are missing."""
    head = version(store.mlflow_database)
    assert earlier_mlflow(store.mlflow_database) != head
    assert open_experiment(store, "s", None, "id")[2]
    assert version(store.mlflow_database) == head


@pytest.mark.parametrize(
    ("library", "open_it"),
    [
        ("optuna", lambda records: open_storage(records.optuna_database)),
        ("mlflow", lambda records: open_experiment(records, "s", None, "id")),
        ("mlflow", lambda records: StoreView(records.tracking_uri)),
    ],
)
def test_a_database_of_a_later_version_asks_for_that_version(
    store: Records, library: str, open_it: Callable[[Records], object]
) -> None:
    """To upgrade it is none of its remedies: its version is known to later libraries only."""
    stamp(store.root / f"{library}.db", "0123456789ab")
    with pytest.raises(OtherVersionError, match=f"a later version of {library} .*: run `pip install -U {library}`$"):
        open_it(store)


def test_every_command_says_so_in_one_sentence(store: Records, earlier: str) -> None:
    earlier_optuna(store.optuna_database)
    stamp(store.mlflow_database, earlier)
    report = Path(ui).with_name("report.py")
    for line, library in (([report, "s", "--mlruns", store.root], "optuna"), ([ui, "--mlruns", store.root], "mlflow")):
        done = forked.run([sys.executable, *map(str, line)])
        assert done.returncode == 2
        (said,) = done.stderr.splitlines()
        assert said.startswith(f"error: sqlite:///{store.root}/{library}.db is of an earlier version of {library} than")


def test_the_doctor_names_the_database_and_not_the_copy_that_it_looks_at(store: Records, earlier: str) -> None:
    earlier_optuna(store.optuna_database)
    (found,) = examine(store).findings
    assert (found.kind, found.where) == ("database", str(store.optuna_database))
    follow(found.remedy)
    stamp(store.mlflow_database, earlier)
    (found,) = examine(store).findings
    assert found.where == str(store.mlflow_database)
    assert f"`mlflow db upgrade sqlite:///{store.mlflow_database}`" in found.remedy
