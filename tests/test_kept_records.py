"""Records of an earlier version, made before modules lay in folders: they open, go on, and their models load.

`data/records.tar.xz` holds a data file, a records folder (a study `kept` of four cells with two seeds each, and a model
registered as `kept`) and a trained model; its reports were left out.
"""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from studies import ROOT

from trainables.host.digests import device_model

pytestmark = pytest.mark.slow
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


def test_a_study_goes_on_with_the_same_results(kept: Path) -> None:
    study = str(ROOT / "search/asym_layers.py"), "--resume", "kept", "--data", "ok.jsonl"
    before = json.loads((kept / "mlruns/studies/kept/best.json").read_text())
    opened = run(kept, *study)
    assert opened.returncode == 0, opened.stdout + opened.stderr
    assert "nothing to run" in opened.stdout
    refused = run(kept, *study, "--trials", "5")
    assert refused.returncode == 2
    assert "code was" in refused.stderr
    went_on = run(kept, *study, "--trials", "5", "--accept-code")
    assert went_on.returncode == 0, went_on.stdout + went_on.stderr
    assert "5 trials" in went_on.stdout
    assert (
        "2 ran now" in went_on.stdout or "3 ran now" in went_on.stdout
    )  # with its second seed; none of the four again
    record = json.loads((kept / "mlruns/studies/kept/study.json").read_text())
    if record["history"][0]["device"] == device_model("cpu"):  # moved modules give the same figures to the last digit
        assert "counted as one, since a trial trained again gave the same figures" in " ".join(went_on.stdout.split())
    assert before["study"] == "kept"


def test_its_models_load(kept: Path) -> None:
    store = {"MLFLOW_TRACKING_URI": "sqlite:///mlruns/mlflow.db"}
    for where in ("trained", "models:/kept@champion"):
        said = run(kept, str(ROOT / "model/generate.py"), where, "the cat", "--max-tokens", "4", **store)
        assert said.returncode == 0, said.stderr
        assert "4 tokens" in said.stderr
    served = run(kept, "-c", PYFUNC, **store)
    assert served.stdout.strip() == "['logprobs', 'next_logprobs', 'next_tokens']", served.stderr
