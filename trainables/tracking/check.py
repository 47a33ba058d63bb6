"""Whether a store of runs can be reached, asked through MLflow's own client: what it reaches is reached."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from model.errors import first_line, without_passwords
from trainables.records import sqlite_path
from trainables.tracking.destination import DATABASES, OPTION, PASSWORD, USER, VARIABLE, Destination

DEADLINE = 6.0  # seconds in all, and half of it for each step of a request
DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}  # module: package


def check_destination(where: Destination) -> None:
    """Raise ValueError if runs cannot go there: nothing answers within `DEADLINE`, or it lets nobody in.

    MLflow is imported where there is something to ask; the records folder's own database is not asked.
    """
    if where.uri is None:
        return
    if (file := sqlite_path(where.uri)) is not None:
        if file.is_dir() or not file.parent.is_dir():
            wrong = "a folder" if file.is_dir() else "in a folder that is not there"
            raise ValueError(f"{where.remembered} can be no database: {file} is {wrong}{_instead(where)}")
        return
    where.authenticate()
    database = where.uri.startswith(DATABASES)
    error = _within(DEADLINE, _asks_database(where.uri) if database else _asks_server(where.uri))
    if error is None:
        return
    raise ValueError(f"{_refused(where, error, database)}{_instead(where)}")


def _instead(where: Destination) -> str:
    """What else the user may do, by what named the place."""
    others = {VARIABLE: f"unset {VARIABLE}", OPTION: f"leave {OPTION} out"}
    return f", or {others.get(where.named_by, f'give another {OPTION}')}"


def _refused(where: Destination, error: Exception, database: bool) -> str:
    said = without_passwords(first_line(error))[:300]
    if isinstance(error, ImportError):
        package = DRIVERS.get(error.name or "", error.name or "its driver")
        return f"the database {where.remembered} needs a driver ({said}): pip install {package}"
    if database:
        return f"no database can be used at {where.remembered} ({said}): give its password in {OPTION}, start it"
    if re.search(r"\b40[13]\b", said):
        return f"the MLflow server at {where.remembered} lets nobody in ({said}): set {USER} and {PASSWORD}"
    return f"no MLflow server answers at {where.remembered} ({said}): start it"


def _asks_server(uri: str) -> Callable[[], object]:
    from mlflow.tracking import MlflowClient

    return lambda: MlflowClient(uri).search_experiments(max_results=1)


def _asks_database(uri: str) -> Callable[[], object]:
    """Through the library that MLflow's client uses, which itself would try for minutes."""
    from sqlalchemy import create_engine

    return lambda: create_engine(uri).connect().close()


def _within(seconds: float, ask: Callable[[], object]) -> Exception | None:
    """What became of a call: None if it went through; a request that hangs is left behind."""
    ended: list[Exception | None] = []

    def call() -> None:
        try:
            ask()
            ended.append(None)
        except Exception as error:
            ended.append(error)

    with _impatient(seconds / 2):
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(seconds)
    return ended[0] if ended else TimeoutError(f"silent for {seconds:g} s")


@contextmanager
def _impatient(seconds: float) -> Iterator[None]:
    """MLflow's client neither waits long nor tries again; afterwards it is as the user has it."""
    hasty = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(seconds))), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    before = {name: os.environ.get(name) for name in hasty}
    os.environ.update(hasty)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
