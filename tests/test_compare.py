"""trainables/compare.py from a command line to a table and runs in MLflow."""

import json
import sys
from pathlib import Path

import pytest
from conftest import run_config
from mlflow.tracking import MlflowClient

from model.baselines import MODELS
from trainables import metrics as names
from trainables.compare import BASELINES, main
from trainables.model_runs import EXPERIMENT
from trainables.records import Records
from trainables.tracking import ROLE_TAG


def compare(monkeypatch: pytest.MonkeyPatch, config: Path, *options: str) -> int:
    root = config.parent / "mlruns"
    fixed = ["--config", str(config), "--mlruns", str(root), "--device", "cpu", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["compare.py", *fixed, *options])
    return main()


@pytest.fixture
def config_file(chat_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(run_config(chat_file).flat()))
    return path


def test_its_yardsticks_are_all_there_are() -> None:
    assert list(BASELINES) == list(MODELS)


def test_a_configuration_beside_a_yardstick(
    monkeypatch: pytest.MonkeyPatch, config_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert compare(monkeypatch, config_file, "--baseline", "gru", "--epochs", "1") == 0
    shown = capfd.readouterr().out
    assert "| test PPL [95 %]" in shown
    client = MlflowClient(Records.at(config_file.parent / "mlruns").tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id], order_by=["start_time"])
    assert [run.data.tags[ROLE_TAG] for run in runs] == ["compared: two-phase", "compared: gru"]
    for run in runs:
        assert run.info.status == "FINISHED"
        assert f"{run.data.metrics['test/ppl']:.2f} [" in shown
        assert f"{run.data.metrics[names.TRAINED_PARAMS]:,.0f}" in shown
        assert len(client.get_metric_history(run.info.run_id, names.EPOCH_VAL_PPL)) == 1


def test_what_cannot_work_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(monkeypatch, config_file, "--data", str(config_file.parent / "none.jsonl")) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit):
        compare(monkeypatch, config_file, "--out", "folder")  # no model is kept


def test_a_model_without_a_result_is_no_table(
    monkeypatch: pytest.MonkeyPatch, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(monkeypatch, config_file, "--contexts-min-rank", "100") == 1
    assert capsys.readouterr().err.startswith("error: two-phase: Phase 1 collapsed")
