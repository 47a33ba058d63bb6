"""Records of an earlier version, made before modules lay in folders: they open, go on, and their models load.

`data/records.tar.xz` holds a data file, a records folder (a study `kept` of four cells with two seeds each, and a model
registered as `kept`) and a trained model; its reports were left out.
"""

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from studies import ROOT

from search.ledger.results import load_results
from search.ledger.trials import HASH, METRICS
from trainables.host.digests import device_model

pytestmark = pytest.mark.slow
STORE = {"MLFLOW_TRACKING_URI": "sqlite:///mlruns/mlflow.db"}
PYFUNC = """
import model, mlflow  # this project's package is imported before MLflow looks for the model's own
print(sorted(mlflow.pyfunc.load_model("models:/kept@champion").predict(["the cat"])[0]))
"""


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    with tarfile.open(ROOT / "tests" / "data" / "records.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def run(folder: Path, *line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    around = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [sys.executable, *line], cwd=folder, env=around, capture_output=True, text=True, timeout=300, check=False
    )


def results(kept: Path) -> dict[str, dict[str, float]]:
    """All figures of all seeds that have finished, by configuration."""
    study = load_results("kept", kept / "mlruns/optuna.db")
    return {
        trial.user_attrs[HASH]: trial.user_attrs[METRICS] for found in study.configurations() for trial in found.trials
    }


def test_a_study_goes_on_with_the_same_results(kept: Path) -> None:
    study = str(ROOT / "search/asym_layers.py"), "--resume", "kept", "--data", "ok.jsonl"
    before = results(kept)
    assert len(before) == 8
    opened = run(kept, *study)
    assert opened.returncode == 0, opened.stdout + opened.stderr
    assert "nothing to run" in opened.stdout
    refused = run(kept, *study, "--trials", "5")
    assert refused.returncode == 2
    assert "code was" in refused.stderr
    went_on = run(kept, *study, "--trials", "5", "--accept-code")
    assert went_on.returncode == 0, went_on.stdout + went_on.stderr
    assert "5 trials" in went_on.stdout
    assert re.search("[23] ran now", went_on.stdout)  # with its second seed; none of the four again
    after = results(kept)
    assert {key: after[key] for key in before} == before
    assert len(after) > len(before)
    record = json.loads((kept / "mlruns/studies/kept/study.json").read_text())
    if record["history"][0]["device"] == device_model("cpu"):  # moved modules give the same figures to the last digit
        assert "counted as one, since a trial trained again gave the same figures" in " ".join(went_on.stdout.split())
    served = run(kept, "-c", PYFUNC, **STORE)  # by MLflow alone, since a study has opened the folder where it lies now
    assert served.stdout.strip() == "['logprobs', 'next_logprobs', 'next_tokens']", served.stderr


@pytest.mark.parametrize("where", ["trained", "models:/kept@champion"])
def test_its_models_load(kept: Path, where: str) -> None:
    said = run(kept, str(ROOT / "model/generate.py"), where, "the cat", "--max-tokens", "4", **STORE)
    assert said.returncode == 0, said.stderr
    assert "4 tokens" in said.stderr
