"""Whole studies as a user starts them, and what they leave on record."""

import subprocess
import sys
from pathlib import Path

import forked
import optuna
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from optuna.trial import FrozenTrial, TrialState

from search.ledger.trials import REPEAT_OF
from trainables.records import Records
from trainables.tracking.tags import ROLE_TAG

ROOT = Path(__file__).parents[1]
SMALL = ["--vocab-size", "280", "--embedding-dim", "16", "--context-dims", "8,16", "--name", "small"]


def command(entry: str | Path, data: Path, root: Path, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / entry), "--data", str(data), "--mlruns", str(root), *SMALL, *options]


def start(entry: str | Path, data: Path, root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return forked.run(command(entry, data, root, *options))


def optuna_trials(root: Path) -> list[FrozenTrial]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{Records.at(root).optuna_database}")
    return optuna.load_study(study_name="small", storage=storage).trials


def mlflow_runs(root: Path, tracking_uri: str | None = None) -> tuple[Run, list[Run], MlflowClient]:
    """The parent run and its children."""
    client = MlflowClient(tracking_uri or Records.at(root).tracking_uri)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (r for r in runs if r.data.tags.get(ROLE_TAG) == "study")
    return parent, [r for r in runs if r.info.run_id != parent.info.run_id], client


def made(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [t for t in trials if t.state == TrialState.COMPLETE and REPEAT_OF not in t.user_attrs]


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read the process's lines until one holds `text`."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"{text!r} never came; exit code {process.wait()}")


def descendants(pid: int) -> dict[int, str]:
    """Process id → command line of everything below `pid`."""
    parents, lines = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                lines[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, IndexError):
                continue
    found: dict[int, str] = {}
    for candidate in parents:
        ancestor = candidate
        while ancestor in parents and ancestor != pid:
            ancestor = parents[ancestor]
        if ancestor == pid and candidate != pid:
            found[candidate] = lines[candidate]
    return found
