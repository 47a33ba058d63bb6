"""What many trials cost the records, at a scale that takes seconds: tests/load.py has the whole.

Of 1,000 trials in a study the driver may keep 50 KB each, and ledger and reconcile take 2 s; a look at 5,000 runs 30 s.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("load.py")


@pytest.mark.slow
def test_many_trials_are_cheap_to_keep_to_open_and_to_examine() -> None:
    line = [sys.executable, str(SCRIPT), "--trials", "120", "--runs", "120", "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["runs"] == 120 + 1  # the study's own
    assert 0 < found["kb_per_trial"] <= 50
    assert found["ledger_s"] + found["reconcile_s"] < 2
    assert found["doctor_s"] < 30
