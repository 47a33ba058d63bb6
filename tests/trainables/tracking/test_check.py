"""Stores of runs are asked through MLflow's own client, and not for long."""

import os
import re
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from servers import OTHER, PASSWORD, USER, answering, free_port, guarded, own_certificate

from trainables.records import Records
from trainables.tracking.check import DEADLINE, check_destination
from trainables.tracking.destination import destination


def ask(uri: str) -> None:
    check_destination(destination(uri, None, Records.at(Path("nowhere"))))


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, no proxy, and none left behind."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)


def test_a_password_of_the_address_lets_in() -> None:
    with guarded() as server:
        ask(server.replace("://", f"://{USER}:{quote(PASSWORD, safe='')}@"))


def test_so_does_one_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    with guarded() as server:
        ask(server)


def test_without_one_the_sentence_says_what_to_set() -> None:
    with guarded() as server, pytest.raises(ValueError, match="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        ask(server)


def test_a_certificate_of_its_own_is_taken_where_mlflow_was_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = own_certificate(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    with guarded(certificate=file) as server:
        with pytest.raises(ValueError, match="no MLflow server answers"):
            ask(server)
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        ask(server)


def test_a_proxy_is_used_as_the_client_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways: asked for directly, and by a name that only the proxy knows."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    with guarded() as server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        ask(server)
        monkeypatch.setenv("http_proxy", server)
        ask("http://nowhere.invalid:5000")


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.0 404 Not Found\r\n\r\n", OTHER])
def test_what_is_no_mlflow_is_refused(answer: bytes) -> None:
    with answering(answer) as server, pytest.raises(ValueError, match=f"no MLflow server answers at {server}"):
        ask(server)


def test_a_silent_server_is_given_up_in_time() -> None:
    import mlflow.tracking  # noqa: F401  # its import is no part of the wait

    with answering(None) as server:
        began = time.monotonic()
        with pytest.raises(ValueError, match="no MLflow server answers"):
            ask(server)
        assert time.monotonic() - began < DEADLINE + 2


def test_the_clients_patience_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with pytest.raises(ValueError, match="no MLflow server answers"):
        ask(f"http://127.0.0.1:{free_port()}")
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


@pytest.mark.parametrize(
    ("uri", "package"),
    [
        ("postgresql://ada:hidden@127.0.0.1/d", "'psycopg[binary]'"),  # which SQLAlchemy takes unless another is named
        ("postgresql+psycopg2://ada:hidden@127.0.0.1/d", "psycopg2-binary"),
        ("mysql://ada:hidden@127.0.0.1/d", "mysqlclient"),
        ("mysql+pymysql://ada:hidden@127.0.0.1/d", "pymysql"),
        ("mssql://ada:hidden@127.0.0.1/d", "pyodbc"),
    ],
)
def test_a_missing_driver_is_one_sentence(uri: str, package: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"pip install {package},")) as refused:
        ask(uri)
    assert "hidden" not in str(refused.value)


def test_a_database_of_ones_own_is_a_file_in_a_folder_that_is_there(tmp_path: Path) -> None:
    ask(f"sqlite:///{tmp_path}/new.db")
    for wrong in (f"sqlite:///{tmp_path}", f"sqlite:///{tmp_path}/nowhere/new.db"):
        with pytest.raises(ValueError, match=r"can be no database: .* is (a folder|in a folder that is not there)"):
            ask(wrong)


def test_the_remedy_is_that_of_who_named_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    dead, nowhere = f"http://127.0.0.1:{free_port()}", Records.at(Path("nowhere"))
    with pytest.raises(ValueError, match=r"or leave --tracking-uri out$"):
        ask(dead)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead)
    with pytest.raises(ValueError, match=r"or unset MLFLOW_TRACKING_URI$"):
        check_destination(destination(None, None, nowhere))
