"""One driver per study."""

import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest

from model.errors import UserError
from search.ledger.lock import study_lock
from trainables.records import Records

ROOT = Path(__file__).parents[3]


def test_a_second_driver_is_refused_and_told_who_holds_the_study(chat_file: Path, tmp_path: Path) -> None:
    options = ["--data", str(chat_file), "--mlruns", str(tmp_path), "--name", "held"]
    with study_lock(Records.at(tmp_path).study("held")):
        line = [sys.executable, str(ROOT / "search/context_modes.py"), *options]
        done = forked.run(line)
    assert done.returncode == 2
    assert f"study 'held' is being run by process {os.getpid()} on" in " ".join(done.stderr.split())
    assert not Records.at(tmp_path).optuna_database.exists()


def test_a_lock_is_free_again_however_its_holder_ended(tmp_path: Path) -> None:
    killed = (
        "import os, signal; from pathlib import Path; from search.ledger.lock import study_lock; "
        f"study_lock(Path({str(tmp_path)!r})).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", killed], cwd=ROOT, check=False, timeout=60)
    with study_lock(tmp_path), pytest.raises(UserError, match="is being run by process"), study_lock(tmp_path):
        pass
