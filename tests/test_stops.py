"""Studies that are stopped, or lose a worker, while they run."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState
from studies import command, descendants, made, mlflow_runs, optuna_trials, start, wait_for

from search.ledger.trials import REPEAT_OF
from trainables import metrics as names
from trainables.tracking.tags import HASH_TAG

pytestmark = pytest.mark.slow


def test_a_signal_ends_cleanly_and_the_same_command_continues(chat_file: Path, root: Path) -> None:
    options = ("--epochs", "60", "--trials", "4", "--max-concurrent", "1")
    line = command("search/asym_layers.py", chat_file, root, *options)
    kept: dict[int, float | None] = {}
    for ending, done in ((signal.SIGINT, "1/4"), (signal.SIGTERM, "2/4")):
        # in a group of its own, all of which hears the signal, as from a terminal or `timeout`
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            wait_for(process, done)
            wait_for(process, "started")
            os.killpg(process.pid, ending)
            output, errors = process.communicate(timeout=120)
        assert process.returncode == 128 + ending, output + errors
        assert "the same command continues" in output
        assert "Traceback" not in output + errors
        trials = optuna_trials(root)
        assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.FAIL}
        assert kept.items() < {t.number: t.value for t in made(trials)}.items()
        kept = {t.number: t.value for t in made(trials)}
        _, children, _ = mlflow_runs(root)
        assert {r.info.status for r in children} == {"FINISHED", "KILLED"}
    assert len(kept) < 4
    finished = start("search/asym_layers.py", chat_file, root, *options)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    trials = optuna_trials(root)
    assert kept.items() <= {t.number: t.value for t in made(trials)}.items()
    assert len(made(trials)) == 4
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.FAIL}
    _, children, _ = mlflow_runs(root)
    assert [r.info.status for r in children] == ["FINISHED"] * 4


def test_a_driver_that_is_killed_loses_and_doubles_nothing(chat_file: Path, root: Path) -> None:
    options = ("--epochs", "40", "--trials", "4", "--max-concurrent", "1")
    line = command("search/asym_layers.py", chat_file, root, *options)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        wait_for(process, "1/4")
        wait_for(process, "phase 2")
        process.kill()
    kept, cut_off = optuna_trials(root)
    assert (kept.state, cut_off.state) == (TrialState.COMPLETE, TrialState.RUNNING)
    runs = {run.data.tags[HASH_TAG]: run.info.run_id for run in mlflow_runs(root)[1]}
    done = start("search/asym_layers.py", chat_file, root, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 trials finished, 0 failed in all; 3 ran now" in done.stdout
    trials = optuna_trials(root)
    assert [t.state.name for t in trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert trials[0] == kept
    assert trials[1].params == trials[2].params
    _, children, client = mlflow_runs(root)
    assert [run.info.status for run in children] == ["FINISHED"] * 4
    assert runs.items() <= {run.data.tags[HASH_TAG]: run.info.run_id for run in children}.items()
    for run in children:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, names.EPOCH_VAL_PPL)]
        assert steps == list(range(1, 41))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the worker in /proc")
def test_a_killed_worker_is_replaced_and_its_trial_run_again(chat_file: Path, root: Path) -> None:
    options = ("--epochs", "40", "--trials", "4", "--max-concurrent", "1")
    line = command("search/asym_layers.py", chat_file, root, *options)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_for(process, "started")
        deadline = time.monotonic() + 60
        while not (workers := [p for p, c in descendants(process.pid).items() if c.startswith("ray::ImplicitFunc")]):
            assert time.monotonic() < deadline, "no worker was seen"
            time.sleep(0.05)
        os.kill(workers[0], signal.SIGKILL)
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "4 trials finished, 0 failed" in output
    assert "Traceback" not in output
    states = [t.state for t in optuna_trials(root) if REPEAT_OF not in t.user_attrs]
    assert sorted(states) == sorted([TrialState.FAIL] + [TrialState.COMPLETE] * 4)
    _, children, _ = mlflow_runs(root)
    assert sorted(r.info.status for r in children) == ["FINISHED"] * 4
