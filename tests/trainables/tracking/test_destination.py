"""Where runs go, and what is remembered of it."""

import argparse
import json
from pathlib import Path

import pytest

from model.errors import UserError, message_of, user_errors, without_passwords
from trainables.records import Records
from trainables.tracking.destination import PASSWORD, USER, VARIABLE, as_tracking_uri, destination
from trainables.training.studies import OPTIONS, runs_went

SERVER = "http://tracking:5000"


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Records:
    monkeypatch.delenv(VARIABLE, raising=False)
    return Records.at(tmp_path)


def test_the_option_comes_before_the_study_and_that_before_the_environment(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert destination(None, None, records).uri is None
    monkeypatch.setenv(VARIABLE, "http://around:1")
    assert destination(SERVER, "http://before:2", records).uri == SERVER
    assert destination(None, "http://before:2", records).uri == "http://before:2"
    assert destination(None, "", records).uri is None
    assert destination(None, None, records).uri == "http://around:1"


def test_the_screen_says_where_runs_go_and_what_is_not_followed(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert destination(None, None, records).said == ""
    assert destination(SERVER, None, records).said == f", runs in {SERVER}"
    monkeypatch.setenv(VARIABLE, "http://u:hidden@around:1")
    assert destination(None, None, records).said == f", runs in http://around:1 ({VARIABLE})"
    for before, there in (("", ", runs there too"), (SERVER, f", runs in {SERVER}")):
        said = destination(None, before, records).said
        assert said == f"{there} as before: {VARIABLE} names http://around:1, --tracking-uri goes there"
    assert destination(None, "http://around:1", records).said == f", runs in http://around:1 ({VARIABLE})"


@pytest.mark.parametrize("spelled", ["sqlite:///{}/mlflow.db", "sqlite:///mlflow.db"])
def test_the_folders_own_database_is_no_other_place(
    records: Records, monkeypatch: pytest.MonkeyPatch, spelled: str
) -> None:
    monkeypatch.chdir(records.root)
    monkeypatch.setenv(VARIABLE, spelled.format(records.root))
    for study in (None, ""):
        assert destination(None, study, records).uri is None
        assert destination(None, study, records).said == ""


def test_a_relative_database_is_the_same_from_another_folder(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(records.root)
    assert destination("sqlite:///other.db", None, records).remembered == f"sqlite:///{records.root}/other.db"


def test_a_servers_password_goes_to_mlflows_client_only(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USER, "before")
    monkeypatch.setenv(PASSWORD, "before")
    where = destination("https://ada:p%40ss@host:1/path", None, records)
    assert where.uri == where.remembered == "https://host:1/path"
    assert "p@ss" not in repr(where)
    where.authenticate()
    import os

    assert (os.environ[USER], os.environ[PASSWORD]) == ("ada", "p@ss")


def test_a_databases_password_is_used_and_not_remembered(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    where = destination("postgresql+psycopg://ada:pass@host/db", None, records)
    assert where.uri == "postgresql+psycopg://ada:pass@host/db"
    assert where.remembered == "postgresql+psycopg://ada@host/db"
    assert "pass@" not in where.said
    monkeypatch.setenv(VARIABLE, where.uri)  # on a resume the environment has it still
    assert destination(None, where.remembered, records).uri == where.uri


@pytest.mark.parametrize("text", ["mlruns", "file:///a", "ftp://ada:hidden@host"])
def test_what_mlflow_does_not_take_is_refused_without_its_password(
    records: Records, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no longer takes plain folders") as refused:
        as_tracking_uri(text)
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ValueError, match=VARIABLE) as named:
        destination(None, None, records)
    assert "hidden" not in str(refused.value) + str(named.value)
    assert destination(SERVER, None, records).uri == SERVER  # which asks for no variable


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"options": {"tracking_uri": SERVER}}, SERVER),
        ({"options": {"tracking_uri": None}}, ""),
        ({"options": {}}, None),
        ([], None),
        (None, None),
    ],
)
def test_where_a_studys_runs_went(records: Records, content: object, expected: str | None) -> None:
    if content is not None:
        file = records.study("s") / OPTIONS
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content))
    assert runs_went(records, "s") == expected


def test_a_password_in_a_query_is_not_remembered_either(records: Records) -> None:
    where = destination("postgresql://bob@host/db?password=hidden&connect_timeout=3", None, records)
    assert where.remembered == "postgresql://bob@host/db?connect_timeout=3"
    assert where.uri == "postgresql://bob@host/db?password=hidden&connect_timeout=3"
    assert without_passwords(f"at {where.uri}") == "at postgresql://bob@host/db?password=***&connect_timeout=3"
    assert destination("mysql://bob@host/db?sslToken=hidden", None, records).remembered == "mysql://bob@host/db"


@pytest.mark.parametrize("user", ["bob:hid@den", "bob:hid den", "bob:hid/den"])
@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_password_must_be_encoded_and_is_not_shown(scheme: str, user: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        as_tracking_uri(f"{scheme}://{user}@host:1/db")
    assert "%40 for @" in str(refused.value)
    assert "den" not in str(refused.value)


def test_no_sentence_has_a_password() -> None:
    text = "http://ada:one@h/ and postgresql://bob:tw%20o@h:1/d, but not http://h:5000/a@b or mail c:d@e"
    cleaned = "http://ada:***@h/ and postgresql://bob:***@h:1/d, but not http://h:5000/a@b or mail c:d@e"
    assert without_passwords(text) == cleaned
    assert message_of(ValueError(text)) == cleaned
    with pytest.raises(UserError) as raised, user_errors():
        raise ValueError(text)
    assert str(raised.value) == cleaned
