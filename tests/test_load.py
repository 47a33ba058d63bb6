"""What many trials cost the records, at a scale that takes seconds: tests/load.py has the whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from load import missed

SCRIPT = Path(__file__).with_name("load.py")


@pytest.mark.slow
def test_many_trials_are_cheap_to_keep_to_open_and_to_examine() -> None:
    line = [sys.executable, str(SCRIPT), "--trials", "120", "--runs", "120", "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["runs"] == 120 + 1  # the study's own
    assert found["kb_per_trial"] > 0
    assert found["missed"] == []
    for each in ("doctor_cpu_s", "again_cpu_s"):  # the bounds are no wider than that
        (said,) = missed(found | {each: 5 * found[each]}, 120)
        assert said.startswith(each)


def test_bounds_are_those_of_the_full_size() -> None:
    found = {"kb_per_trial": 50.0, "again_cpu_s": 2.0, "doctor_cpu_s": 30.0, "runs": 5_000.0}
    assert missed(found, 1_000) == []
    for each in ("kb_per_trial", "again_cpu_s", "doctor_cpu_s"):
        assert len(missed(found | {each: 1.01 * found[each]}, 1_000)) == 1
