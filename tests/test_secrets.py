"""No password is in a file, a run, a tag or on the screen: a study and a training on a guarded server are searched."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import forked
import pytest
from servers import PASSWORD, USER, guarded, mlflow_server
from studies import ROOT, command

pytestmark = pytest.mark.slow
SPELLINGS = {PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as behind, guarded(behind) as address:
        yield address


def run(*line: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "PYTHONPATH": str(ROOT)}
    return forked.run(list(line), env=kept | environment)


def leaks(folder: Path) -> list[str]:
    """Files in which the password stands, in whatever spelling."""
    wanted = [spelling.encode() for spelling in SPELLINGS]
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    return [str(file) for file in files if any(text in file.read_bytes() for text in wanted)]


def test_a_password_of_the_address_is_nowhere_afterwards(
    server: str, chat_file: Path, root: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    uri = server.replace("://", f"://{USER}:{quote(PASSWORD, safe='')}@")
    options = ["--trials", "4", "--epochs", "1", "--max-concurrent", "1", "--tracking-uri", uri]
    study = run(*command("search/asym_layers.py", chat_file, root, *options), environment={})
    assert study.returncode == 0, study.stderr
    assert f"runs in {server}" in study.stdout
    train = [sys.executable, str(ROOT / "trainables/train.py"), "--from-study", "small", "--mlruns", str(root)]
    out = ["--out", str(tmp_path / "model"), "--register", "guarded"]
    trained = run(*train, *out, "--tracking-uri", uri, environment={})
    assert trained.returncode == 0, trained.stderr
    assert f"runs in {server}" in trained.stdout

    # a resume has it from nowhere, then from the environment
    resumed = command("search/asym_layers.py", chat_file, root, *options[:-2], "--trials", "5")
    refused = run(*resumed, environment={})
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in refused.stderr
    known = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    around = {"MLFLOW_TRACKING_URI": f"http://bob:{quote(PASSWORD, safe='')}@elsewhere:1"}
    went_on = run(*resumed, environment=known | around)
    assert went_on.returncode == 0, went_on.stderr
    assert f"runs in {server} as before: MLFLOW_TRACKING_URI names http://elsewhere:1" in went_on.stdout

    wrong = run(*command("search/asym_layers.py", chat_file, root, "--tracking-uri", f"{uri}:x"), environment={})
    assert wrong.returncode == 2
    for done in (study, trained, refused, went_on, wrong):
        assert not any(spelling in done.stdout + done.stderr for spelling in SPELLINGS)
    assert leaks(tmp_path) == []  # records, model, whatever else
    assert leaks(Path(tmp_path_factory.getbasetemp())) == []  # the server's own database and files, too
