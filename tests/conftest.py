"""Small real objects that many tests share."""

import os

# Before torch or Ray is imported anywhere: no test may depend on the machine's cores or reach a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():  # before Triton is imported anywhere: its kernels are then interpreted
    os.environ.setdefault("TRITON_INTERPRET", "1")

from costless import layers_study, run_to_the_end
from small import VOCAB, E, N, run_config

from search.ledger.ledger import Ledger
from search.ledger.storage import open_storage
from search.options import build_parser, check
from search.spaces import SAMPLERS
from trainables.cache import ArtifactStore
from trainables.config import RunConfig
from trainables.inputs.sources import resolve_data, resolve_embedding
from trainables.pipeline import Inputs, prepare_inputs
from trainables.records import Records

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def full_precision() -> None:
    """Trials on a GPU let torch round products to TF32, for their whole process."""
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def tokens() -> torch.Tensor:
    """A stream with a skewed vocabulary.  # (N,)"""
    weights = 1 / torch.arange(1, VOCAB + 1, dtype=torch.float64)
    return torch.multinomial(weights, N, replacement=True, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def table() -> torch.Tensor:
    """An embedding table.  # (VOCAB, E)"""
    return torch.randn(VOCAB, E, generator=torch.Generator().manual_seed(6))


@pytest.fixture(scope="session")
def chat_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 120 short conversations with some structure to learn."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "chat.jsonl"
    words = ["red", "green", "blue", "cat", "dog", "runs", "sleeps", "under", "over", "the", "a", "tree", "river"]
    with path.open("w") as file:
        for number in range(120):
            turns = [" ".join(rng.choice(words, size=12)) + f" {number}." for _ in range(2)]
            roles = ("user", "assistant")
            messages = [{"role": r, "content": c} for r, c in zip(roles, turns, strict=True)]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


@pytest.fixture(scope="session")
def chat_inputs(chat_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Token ids and bigram embedding of `chat_file`."""
    config = run_config(chat_file)
    store = ArtifactStore(tmp_path_factory.mktemp("cache"))
    source, embedding = resolve_data(str(chat_file), None), resolve_embedding("bigram")
    return prepare_inputs(config, source, embedding, store, "cpu")


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without a study; Optuna takes most of a second to make one, so tests copy it."""
    folder = tmp_path_factory.mktemp("optuna")
    open_storage(folder / "optuna.db")
    with sqlite3.connect(folder / "optuna.db") as connection:
        connection.execute(f"VACUUM INTO '{folder / 'new.db'}'")
    connection.close()
    return folder / "new.db"


@pytest.fixture
def database(new_database: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(new_database, tmp_path / "optuna.db"))


@pytest.fixture(scope="session", params=SAMPLERS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, list[RunConfig]]:
    """An undisturbed study of each sampler on a fresh database, and what it handed out."""
    database = tmp_path_factory.mktemp("whole") / "optuna.db"
    ledger = Ledger(layers_study(sampler=request.param), "s", database)
    return ledger, run_to_the_end(ledger)


@pytest.fixture(scope="session")
def earlier_records(chat_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A records folder after some study of `chat_file`: databases without a study of their own, and its inputs."""
    from mlflow.tracking import MlflowClient
    from studies import SMALL

    records = Records.at(tmp_path_factory.mktemp("earlier") / "mlruns")
    options = ["--data", str(chat_file), "--mlruns", str(records.root), *SMALL]
    settings = check(build_parser("", sampled=True).parse_args(options), sampled=True)
    open_storage(records.optuna_database)
    MlflowClient(records.tracking_uri).search_experiments(max_results=1)  # makes all tables
    prepare_inputs(settings.base, settings.data, settings.embedding, ArtifactStore(records.cache), "cpu")
    return records.root


@pytest.fixture
def root(earlier_records: Path, tmp_path: Path) -> Path:
    """A records folder of a test's own, in which a study is not the first: that saves it some seconds."""
    return Path(shutil.copytree(earlier_records, tmp_path / "mlruns"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no worker is left with it at the end; the order within a file stays."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
