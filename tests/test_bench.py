"""The benchmark runs and says what it is asked to; no test asserts a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from model.compute import Compute

pytestmark = pytest.mark.slow


def test_benchmark_writes_every_unit(tmp_path: Path) -> None:
    script, report = Path(__file__).with_name("bench.py"), tmp_path / "bench.json"
    command = [sys.executable, str(script), "--device", "cpu", "--tokens", "6000", "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(report.read_text())
    assert str(Compute.of("cpu")) in written["machine"]
    assert written["sizes"]["N"] == 6000
    units = {unit["unit"]: unit for unit in written["units"]}
    for word in ("sweep", "epoch", "contexts", "trial"):
        assert any(word in name for name in units), word
    for name, unit in units.items():
        if "extra" not in name:
            assert unit["fast_s"] > 0
            assert unit["ratio"] == pytest.approx(unit["textbook_s"] / unit["fast_s"])
        assert name in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--tokens", "5"], "--tokens must be at least 1000"),
        (["--threads", "1025"], "--threads: must be at most 1024"),
        (["--json", "nowhere/bench.json"], "nowhere/bench.json"),
        (["--json", "."], "Is a directory"),
        (["--tokens", str(10**18)], "fit a machine"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_timed(options: list[str], said: str) -> None:
    command = [sys.executable, str(Path(__file__).with_name("bench.py")), "--device", "cpu", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
