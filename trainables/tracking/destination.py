"""Where runs go: as the command line says, as the study remembers, or as MLflow's own variable says. No MLflow.

A password never leaves this process by way of these: a server's is handed to MLflow's client through the environment,
a database's stays in the address that is used and is taken out of the one that is remembered or shown.
"""

import argparse
import os
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from model.errors import SECRET_KEY, without_passwords
from trainables.records import SQLITE, Records, sqlite_path, sqlite_uri

VARIABLE = "MLFLOW_TRACKING_URI"
OPTION = "--tracking-uri"
USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
SERVERS = ("http://", "https://", "databricks")
DATABASES = ("postgresql", "mysql", "mssql")


@dataclass(frozen=True)
class Destination:
    """A store of runs."""

    uri: str | None  # for MLflow's client; None: the records folder's own database
    remembered: str | None  # without a password, for files and for who looks at the screen
    named_by: str = ""  # what says so: the option, the variable, or empty for the study itself
    not_followed: str | None = None  # another store that the environment names, remembered form
    credentials: dict[str, str] = field(default_factory=dict, repr=False)  # variables of MLflow's client

    def authenticate(self) -> None:
        """Hand a server's user and password to MLflow's client."""
        os.environ.update(self.credentials)

    @property
    def said(self) -> str:
        """Where runs go, if not to the records folder, and what environment is not followed; for the screen."""
        where = f", runs in {self.remembered}" if self.remembered else ""
        by = f" ({VARIABLE})" if where and self.named_by == VARIABLE else ""
        if self.not_followed is None:
            return where + by
        return f"{where or ', runs there too'} as before: {VARIABLE} names {self.not_followed}, {OPTION} goes there"


def as_tracking_uri(text: str) -> str:
    """An address of MLflow's, by its form."""
    user, at, _ = text.partition("://")[2].partition("?")[0].rpartition("@")
    if at and (text.startswith((*SERVERS, *DATABASES))) and re.search(r"[\s/@]", user):
        raise argparse.ArgumentTypeError("must have the characters of a password percent-encoded: %40 for @, %2F for /")
    try:
        known = text.startswith((*SERVERS, *DATABASES, *SQLITE)) and (urlsplit(text).port or True)
    except ValueError:  # a port that is no number
        known = False
    if not known:
        raise argparse.ArgumentTypeError(
            "must be a server (http://host:5000) or a database (sqlite:////path/mlflow.db), not "
            f"{without_passwords(text)!r}; MLflow no longer takes plain folders"
        )
    return text


def destination(typed: str | None, study: str | None, records: Records) -> Destination:
    """Where runs go.

    Args:
        typed: the option's value; it comes first.
        study: where the study's runs went, in remembered form, empty for the records folder's own database;
            it comes second. None of a new study.
        records: whose database is meant where neither says more, nor the environment.

    Raises:
        ValueError: the environment names no place that MLflow takes.
    """
    if typed is not None:
        return _at(typed, records, OPTION)
    named = os.environ.get(VARIABLE)
    try:
        around = _at(as_tracking_uri(named), records, VARIABLE) if named else None
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{VARIABLE} {error}: unset it, or give {OPTION}") from None
    if study is None:
        return around or Destination(None, None)
    if around is not None and (around.remembered or "") == study:  # with the password that only the environment has
        return around
    before = _at(study, records, "") if study else Destination(None, None)
    return Destination(before.uri, before.remembered, "", around.remembered or "this folder" if around else None)


def _at(uri: str, records: Records, named_by: str) -> Destination:
    if (path := sqlite_path(uri)) is not None:
        path = path.resolve()
        if path == records.mlflow_database.resolve():
            return Destination(None, None, named_by)
        return Destination(sqlite_uri(path), sqlite_uri(path), named_by)
    if uri.startswith(DATABASES):
        bare = re.sub(r"(://[^/@:]*):[^/@]*@", r"\1@", uri)
        address, _, query = bare.partition("?")
        kept = [part for part in query.split("&") if not re.match(f"{SECRET_KEY}=", part, re.IGNORECASE)]
        return Destination(uri, "?".join(filter(None, [address, "&".join(kept)])), named_by)
    parts = urlsplit(uri)
    user, at, host = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    credentials = {USER: unquote(name), PASSWORD: unquote(password)} if at else {}
    bare = parts._replace(netloc=host).geturl() if at else uri
    return Destination(bare, bare, named_by, credentials=credentials)
