"""Whole studies as a user starts them, through Ray; then what Optuna and MLflow have on record."""

import gzip
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import forked
import mlflow
import pandas as pd
import pytest
import torch
from entries import distinct
from optuna.trial import TrialState
from studies import ROOT, command, made, mlflow_runs, optuna_trials, start

from model import load
from model.ops.compute import Compute
from search.ledger.records import read_trial_record
from search.ledger.trials import CONFIG, HASH, METRICS, REASON, RECORD, REPEAT_OF, REPLICATE_OF
from trainables import metrics as names
from trainables.config import RunConfig
from trainables.host.devices import hardware
from trainables.inputs.sources import split_of
from trainables.phases.convergence import converged
from trainables.records import Records
from trainables.tracking.tags import (
    COMPUTE_TAG,
    DEVICE_TAG,
    HASH_TAG,
    PARENT_TAG,
    PROFILED_TAG,
    PRUNED_TAG,
    REPLICATE_TAG,
    STUDY_TAG,
    TRIAL_TAG,
)
from trainables.train import main as train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(chat_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished study of six trials: its records and what it printed."""
    root = tmp_path_factory.mktemp("records") / "mlruns"
    done = start(
        "search/asym_layers.py", chat_file, root, "--trials", "6", "--epochs", "2", "--profile", "--max-concurrent", "1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return root, done.stdout


def test_optuna_and_mlflow_agree_trial_by_trial(finished: tuple[Path, str]) -> None:
    root, _ = finished
    trials = made(optuna_trials(root))
    parent, children, client = mlflow_runs(root)
    assert len(trials) == len(children) == 6
    assert parent.info.status == "FINISHED"
    by_hash = {run.data.tags[HASH_TAG]: run for run in children}
    for trial in trials:
        run = by_hash.pop(trial.user_attrs[HASH])
        assert run.info.status == "FINISHED"
        assert run.data.tags[PARENT_TAG] == parent.info.run_id
        assert run.data.tags[STUDY_TAG] == "small"
        assert run.data.tags[TRIAL_TAG] == str(trial.number)
        figures = trial.user_attrs[METRICS]
        assert figures[names.VAL_PPL] == trial.value
        assert {name: run.data.metrics[name] for name in figures} == pytest.approx(figures)
        for name in figures:
            assert len(client.get_metric_history(run.info.run_id, name)) == 1
        config = RunConfig.from_flat(trial.user_attrs[CONFIG])
        assert {key: str(value) for key, value in config.flat().items()}.items() <= run.data.params.items()
        assert config.config_hash() == trial.user_attrs[HASH]
        assert run.data.metrics[names.CONVERGED] == float(converged(config, figures))
        sweeps = client.get_metric_history(run.info.run_id, names.SWEEP_CONVERGENCE)
        assert [m.step for m in sweeps] == list(range(2, int(figures[names.SWEEPS]) + 1))
        assert sweeps[-1].value == pytest.approx(figures[names.CONVERGENCE])
        epochs = client.get_metric_history(run.info.run_id, names.EPOCH_VAL_PPL)
        assert min(m.value for m in epochs) == pytest.approx(trial.value)
    assert not by_hash
    assert names.CONVERGED in parent.data.metrics
    assert {"val_overlap", "test_overlap"} <= parent.data.params.keys()


def test_how_trials_compute_is_shown_once_and_recorded(finished: tuple[Path, str]) -> None:
    root, output = finished
    assert output.count(str(Compute.of("cpu"))) == 1
    _, children, _ = mlflow_runs(root)
    assert {run.data.tags[COMPUTE_TAG] for run in children} == {str(Compute.of("cpu"))}
    assert {run.data.tags[DEVICE_TAG] for run in children} == {hardware(0)}


def test_the_first_trial_is_profiled(finished: tuple[Path, str], tmp_path: Path) -> None:
    root, _ = finished
    _, children, client = mlflow_runs(root)
    profiled = {run.data.tags[TRIAL_TAG]: client.list_artifacts(run.info.run_id, "profile") for run in children}
    assert [number for number, files in profiled.items() if files] == ["0"]
    (run,) = (run for run in children if run.data.tags[TRIAL_TAG] == "0")
    expected = {  # a function that each part calls and the others do not
        "phase_1": "normal_",
        "contexts": "nonzero",
        "phase_2": "logsumexp",
    }
    assert {f"profile/{part}.json.gz" for part in expected} == {file.path for file in profiled["0"]}
    for part, operator in expected.items():
        with gzip.open(client.download_artifacts(run.info.run_id, f"profile/{part}.json.gz", str(tmp_path))) as file:
            events = json.load(file)["traceEvents"]
        assert any(operator in event.get("name", "") for event in events), part
    assert not (Records.at(root).study("small") / "profile").exists()


def test_the_four_cells_come_first_and_share_phase1(finished: tuple[Path, str]) -> None:
    configs = [RunConfig.from_flat(t.user_attrs[CONFIG]) for t in made(optuna_trials(finished[0]))]
    assert [(c.context_layers, c.token_layers) for c in configs[:4]] == [(1, 1), (2, 1), (1, 2), (2, 2)]
    assert {(c.context_dim, c.context_mode) for c in configs[:4]} == {(16, "prev_and_current")}
    shared = [t.user_attrs[METRICS][names.PHASE1_SHARED] for t in made(optuna_trials(finished[0]))]
    assert sum(shared[:4]) == 2
    assert len({c.config_hash() for c in configs}) == 6


def test_leaderboard_and_best_configuration_are_written(finished: tuple[Path, str]) -> None:
    root, printed = finished
    folder = Records.at(root).study("small")
    frame = pd.read_csv(folder / "leaderboard.csv")
    best = json.loads((folder / "best.json").read_text())
    trials = made(optuna_trials(root))
    assert frame["val PPL"].is_monotonic_increasing
    assert set(frame["trial"].dropna()) == {t.number for t in trials}
    assert frame["config"].tolist().count("bigram") == 1
    assert best["metrics"][names.VAL_PPL] == min(t.value for t in trials if t.value is not None)
    assert RunConfig.from_flat(best["config"]).flat() == best["config"]
    for word in ("best first", "search/ui.py", "best.json", "6 trials finished, 0 failed"):
        assert word in printed
    parent, _, client = mlflow_runs(root)
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} == {
        "leaderboard.csv",
        "best.json",
        "report.html",
        "report.md",
    }


def test_training_a_trials_configuration_again_gives_its_very_result(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The leader with the study's cache; the second with nothing but the study's files."""
    root, _ = finished
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # its handler would outlive this test
    shutil.copytree(Records.at(root).root / "studies", tmp_path / "studies")
    best = json.loads((Records.at(root).study("small") / "best.json").read_text())
    for rank, records in (("1", root), ("2", tmp_path)):
        options = ["--from-study", "small", "--rank", rank, "--mlruns", str(records), "--out", str(tmp_path / rank)]
        options += ["--register", "small"]
        monkeypatch.setattr(sys, "argv", ["train.py", *options])
        assert train() == 0
        assert "is the trial's, to the last digit" in capsys.readouterr().out
    trial = json.loads((tmp_path / "1" / "run.json").read_text())["trial"]
    assert (trial["number"], trial["hash"]) == (best["trial"], best["config_hash"])
    _, children, _ = mlflow_runs(root)
    assert trial["mlflow_run"] in [run.info.run_id for run in children if run.data.tags[HASH_TAG] == trial["hash"]]
    assert json.loads((tmp_path / "2" / "run.json").read_text())["trial"]["mlflow_run"] is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", Records.at(root).tracking_uri)
    registered, kept = load("models:/small@champion", "cpu"), load(tmp_path / "1", "cpu")
    text = "the cat sleeps under the tree"
    assert torch.equal(registered.logprobs(text), kept.logprobs(text))
    assert "".join(registered.generate(text, max_tokens=5, seed=1)) == "".join(
        kept.generate(text, max_tokens=5, seed=1)
    )


def test_another_store_gets_all_that_the_first_one_has(
    finished: tuple[Path, str], chat_file: Path, tmp_path: Path, earlier_records: Path
) -> None:
    other = f"sqlite:///{shutil.copy(Records.at(earlier_records).mlflow_database, tmp_path / 'other.db')}"
    root = tmp_path / "mlruns"  # a copy, for it remembers where its runs went
    # by another process: to open and close a database's file here drops the locks of this process's connections to it
    subprocess.run(["cp", "-r", finished[0], root], check=True)
    options = ("--trials", "6", "--epochs", "2", "--tracking-uri", other)
    done = start("search/asym_layers.py", chat_file, root, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    told = []
    for uri in (None, other):
        parent, children, client = mlflow_runs(root, uri)
        assert (parent.info.status, parent.data.params["version_mlflow"]) == ("FINISHED", mlflow.__version__)
        assert {run.data.tags[PARENT_TAG] for run in children} == {parent.info.run_id}
        told.append({})
        for run in children:
            curves = {
                name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            }
            assert len(curves[names.EPOCH_VAL_PPL]) == 2
            files = {file.path for file in client.list_artifacts(run.info.run_id)} - {"profile"}
            tags = {name: value for name, value in run.data.tags.items() if name not in (PARENT_TAG, PROFILED_TAG)}
            told[-1][tags[TRIAL_TAG]] = (run.info.status, run.data.params, tags, curves, files)
    assert len(told[0]) == 6
    assert told[1] == told[0]


def test_the_same_command_again_trains_nothing_and_more_trials_extend_it(
    finished: tuple[Path, str], chat_file: Path
) -> None:
    root, _ = finished
    before = {t.number: t.value for t in made(optuna_trials(root))}
    again = start("search/asym_layers.py", chat_file, root, "--trials", "6", "--epochs", "2")
    assert again.returncode == 0
    assert "nothing to run" in again.stdout
    assert {t.number: t.value for t in made(optuna_trials(root))} == before
    line = command("search/asym_layers.py", chat_file, root, "--trials", "6", "--epochs", "2")
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as unread:
        assert unread.stdout is not None
        unread.stdout.readline()
        unread.stdout.close()  # as `| head -1` does: the work goes on
        assert unread.wait(timeout=120) == 0
    assert mlflow_runs(root)[0].info.status == "FINISHED"
    more = start("search/asym_layers.py", chat_file, root, "--trials", "7", "--epochs", "2")
    assert more.returncode == 0, more.stdout + more.stderr
    after = {t.number: t.value for t in made(optuna_trials(root))}
    assert len(after) == 7, more.stdout
    assert before.items() <= after.items()
    assert len(mlflow_runs(root)[1]) == 7


def test_another_definition_under_the_same_name_is_refused(finished: tuple[Path, str], chat_file: Path) -> None:
    other = start("search/asym_layers.py", chat_file, finished[0], "--trials", "6", "--epochs", "3")
    assert other.returncode == 2
    assert "phase2_epochs is 3, was 2" in other.stderr
    assert "Traceback" not in other.stderr


def test_the_grid_runs_each_distinct_mode_once(chat_file: Path, root: Path) -> None:
    done = start("search/context_modes.py", chat_file, root, "--epochs", "1", "--context-dims", "8")
    assert done.returncode == 0, done.stdout + done.stderr
    trials = optuna_trials(root)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * distinct()
    assert len({t.user_attrs[HASH] for t in trials}) == distinct()
    assert sum(t.user_attrs[METRICS][names.PHASE1_SHARED] for t in trials) == distinct() - 1


def test_replicates_follow_the_study_and_are_on_record_everywhere(chat_file: Path, root: Path) -> None:
    options = ("--epochs", "1", "--trials", "4")
    done = start("search/asym_layers.py", chat_file, root, *options, "--replicates", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 trials and 4 replicates finished, 0 failed" in done.stdout
    assert "claims of the earlier reports" in done.stdout
    trials, records = optuna_trials(root), Records.at(root)
    assert [t.user_attrs.get(REPLICATE_OF) for t in trials[:4]] == [None] * 4
    assert sorted(t.user_attrs[REPLICATE_OF] for t in trials[4:]) == [0, 1, 2, 3]
    for t in trials:
        read = read_trial_record(records.trial_record("small", t.user_attrs[HASH]))
        assert read is not None
        record, digest = read
        assert digest == t.user_attrs[RECORD]
        assert t.value is not None
        assert record.unit_losses(t.value) is not None
        assert [step for step, _ in record.series[names.EPOCH_VAL_PPL]] == [1]
    _, children, client = mlflow_runs(root)
    tags = {run.data.tags[TRIAL_TAG]: run.data.tags.get(REPLICATE_TAG) for run in children}
    assert tags == {
        str(t.number): str(r) if (r := t.user_attrs.get(REPLICATE_OF)) is not None else None for t in trials
    }
    for run in children:
        assert f"{run.data.tags[HASH_TAG]}.json" in {a.path for a in client.list_artifacts(run.info.run_id)}
    best = json.loads((records.study("small") / "best.json").read_text())
    assert best["seeds"]["count"] == 2
    about = json.loads(records.study_record("small").read_text())
    assert about["version_mlflow"]
    assert mlflow_runs(root)[0].data.params.keys() == about.keys() - {"history"}


DIVERGING = """
import sys
from search.driver import main
from dataclasses import replace
import search.context_modes as entry

def study(settings):
    return entry.study(replace(settings, base=settings.base.replace(phase2_learning_rate=1e30)))

if __name__ == "__main__":
    sys.exit(main("A study whose every trial diverges.", study, sampled=False))
"""


def test_diverged_trials_are_recorded_as_failed_and_none_succeeding_exits_with_1(
    chat_file: Path, tmp_path: Path, root: Path
) -> None:
    entry = tmp_path / "diverging.py"
    entry.write_text(DIVERGING)
    done = start(entry, chat_file, root, "--epochs", "1", "--context-dims", "8")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"0 trials finished, {distinct()} failed" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert [t.state for t in optuna_trials(root)] == [TrialState.FAIL] * distinct()
    _, children, _ = mlflow_runs(root)
    assert [r.info.status for r in children] == ["FAILED"] * distinct()
    assert all(r.data.tags["reason"].startswith("Phase 2 diverged: loss nan") for r in children)


def test_the_databases_can_be_read_while_a_study_writes(finished: tuple[Path, str]) -> None:
    records = Records.at(finished[0])
    for database in (records.mlflow_database, records.optuna_database):
        connection = sqlite3.connect(database)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.close()


def test_inputs_that_fail_late_are_one_sentence_and_leave_no_run_open(tmp_path: Path, root: Path) -> None:
    texts = {"train": "a line to train on", "test": "test", "validation": "v"}
    for split in ("test", "validation"):  # a validation split of one token
        texts[split] = next(c for c in map(chr, range(97, 400)) if split_of(c) == split)
    texts["train"] = next(f"{n} lines to train on" for n in range(99) if split_of(f"{n} lines to train on") == "train")
    data = tmp_path / "tiny.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts.values()))
    done = start("search/context_modes.py", data, root)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    parent, children, _ = mlflow_runs(root)
    assert parent.info.status == "FAILED"
    assert children == []


def test_pruned_trials_are_on_record_alike_and_the_study_is_resumed_by_name(chat_file: Path, root: Path) -> None:
    done = start(
        "search/asym_layers.py", chat_file, root, "--trials", "10", "--epochs", "6", "--scheduler", "asha",
        "--sampler", "random", "--max-concurrent", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    trials = [t for t in optuna_trials(root) if REPEAT_OF not in t.user_attrs]
    pruned = {t.user_attrs[HASH]: t for t in trials if t.state == TrialState.PRUNED}
    assert pruned
    assert f"{10 - len(pruned)} trials finished, {len(pruned)} pruned, 0 failed in all; 10 ran now" in done.stdout
    assert {t.state for t in trials} == {TrialState.PRUNED, TrialState.COMPLETE}
    _, children, _ = mlflow_runs(root)
    tagged = {r.data.tags[HASH_TAG]: r for r in children if PRUNED_TAG in r.data.tags}
    assert tagged.keys() == pruned.keys()
    for config_hash, run in tagged.items():
        assert run.info.status == "FINISHED"
        assert run.data.tags[PRUNED_TAG] == pruned[config_hash].user_attrs[REASON]
        assert run.data.metrics[names.EPOCH_VAL_PPL] == pytest.approx(pruned[config_hash].value)
    line = [sys.executable, str(ROOT / "search/asym_layers.py"), "--mlruns", str(root), "--resume", "small"]
    again = forked.run(line)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "nothing to run: all trials of this study are finished" in again.stdout
    assert "0 ran now" in again.stdout
