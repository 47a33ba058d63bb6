"""A two-phase model beside its baselines, from the command line of trainables/train.py to a table and MLflow."""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from small import run_config

from trainables import metrics as names
from trainables.baselines import candidate
from trainables.baselines.candidate import TWO_PHASE, ComparedModel, train_and_score
from trainables.baselines.comparison import FURTHER, LEARNING_RATES, best_of_rates, compared
from trainables.cache import ArtifactStore
from trainables.config import RunConfig
from trainables.errors import DivergedError, NoResultError
from trainables.evaluation.evaluate import SplitScores, against, score_splits
from trainables.evaluation.intervals import Interval
from trainables.metrics import split_metric
from trainables.pipeline import Inputs, run
from trainables.records import Records
from trainables.tracking.model_runs import EXPERIMENT
from trainables.tracking.tags import HASH_TAG, REASON_TAG, ROLE_TAG
from trainables.train import main

KINDS = [TWO_PHASE, "gru", "transformer"]


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    """A training sets threads for its whole process."""
    yield
    torch.set_num_threads(1)


def test_all_are_judged_on_the_same_targets_and_none_is_smaller(chat_file: Path, chat_inputs: Inputs) -> None:
    config = run_config(chat_file)
    found = [train_and_score(kind, config, chat_inputs, gpus=0, threads=1) for kind in KINDS]
    two_phase, gru, _ = found
    assert [model.kind for model in found] == KINDS
    for model in found:
        figures = model.metrics
        assert model.test.targets.sum() == len(chat_inputs.corpus.test.tokens) - 1
        assert 1 < figures["test/ppl"] < 280
        assert figures["validation/ppl"] == pytest.approx(figures[names.VAL_PPL], rel=1e-5)
        assert figures["test/accuracy"] <= figures["test/top5"] <= 1
        assert figures["test/bigram_ppl"] == two_phase.metrics["test/bigram_ppl"]
        assert figures[names.TRAINED_PARAMS] >= two_phase.metrics[names.TRAINED_PARAMS]
        assert figures[names.EPOCHS] == 2
        assert [step for name, step, _ in model.points if name == names.EPOCH_VAL_PPL] == [1, 2]
    difference = against(two_phase.test, gru.test)
    assert difference.value == pytest.approx(gru.test.ppl.value / two_phase.test.ppl.value - 1)
    assert difference.low < difference.value < difference.high
    assert against(gru.test, gru.test) == Interval(0.0, 0.0, 0.0)
    states = [[model.metrics[names.state_bytes(length)] for length in names.STATE_LENGTHS] for model in found]
    assert states[0] == [4 * config.context_dim] * len(names.STATE_LENGTHS)
    assert states[1][0] == states[1][-1]
    assert states[2][0] == states[2][-1] > states[1][0]  # a window of 8


def test_the_two_phase_model_is_judged_as_ever(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    config = run_config(chat_file)
    found = train_and_score(TWO_PHASE, config, chat_inputs, gpus=0, threads=1)
    result = run(config, chat_inputs, ArtifactStore(tmp_path))
    assert found.metrics[names.VAL_PPL] == result.metrics[names.VAL_PPL]
    expected = score_splits(chat_inputs.corpus, "cpu", result.evaluate)
    for split, scores in expected.items():
        assert found.metrics[split_metric(split, "ppl")] == pytest.approx(scores.ppl.value)


def test_every_training_is_timed_behind_an_untimed_one_of_one_epoch(
    chat_file: Path, chat_inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, calls = candidate._train, []

    def watched(kind: str, config: RunConfig, *rest: Any) -> Any:
        began = time.perf_counter()
        found = trained(kind, config, *rest)
        calls.append((config.phase2.epochs, time.perf_counter() - began))
        return found

    monkeypatch.setattr(candidate, "_train", watched)
    for kind in KINDS:
        calls.clear()
        found = train_and_score(kind, run_config(chat_file), chat_inputs, gpus=0, threads=1)
        assert [epochs for epochs, _ in calls] == [1, 2]
        assert found.metrics[names.TOTAL_SECONDS] == pytest.approx(calls[1][1], abs=0.01)
        assert {step for _, step, _ in found.points if step > 1}  # none of the first one's
        assert len({(name, step) for name, step, _ in found.points}) == len(found.points)


def made_up(rate: float, ppl: float) -> ComparedModel:
    one = torch.ones(1).numpy()
    nothing = SplitScores(*[Interval(1.0, 1.0, 1.0)] * 4, nats=one, targets=one, units=one)
    return ComparedModel("gru", "H8", rate, (rate,), {names.VAL_PPL: ppl}, nothing, [])


@pytest.mark.parametrize(
    ("best_at", "expected", "lowest", "highest"),
    [
        (0.001, 0.001, 0.0005, 0.004),  # within
        (0.0005, 0.0005, 0.00025, 0.004),  # at the lower end: once beyond it
        (0.0001, 0.000125, 0.0000625, 0.004),
        (0.004, 0.004, 0.0005, 0.008),
        (0.016, 0.016, 0.0005, 0.032),
        (1e-9, 0.0005 / 2**FURTHER, 0.0005 / 2**FURTHER, 0.004),  # bounded
    ],
)
def test_learning_rates_are_tried_until_the_best_is_at_no_end(
    best_at: float, expected: float, lowest: float, highest: float
) -> None:
    asked: list[float] = []

    def attempt(rate: float) -> ComparedModel:
        asked.append(rate)
        return made_up(rate, 10 + max(rate / best_at, best_at / rate))

    found = best_of_rates(attempt)
    assert found.rate == pytest.approx(expected)
    assert sorted(asked) == list(found.rates)
    assert len(set(asked)) == len(asked)
    assert (found.rates[0], found.rates[-1]) == pytest.approx((lowest, highest))


def test_a_rate_that_diverges_is_no_fault_as_long_as_another_does_not() -> None:
    def attempt(rate: float) -> ComparedModel:
        if rate >= 0.0005:
            raise DivergedError("loss nan")
        return made_up(rate, 10 + rate)

    assert best_of_rates(attempt).rate == LEARNING_RATES[0] / 2**FURTHER

    def none(rate: float) -> ComparedModel:
        raise DivergedError("loss nan")

    with pytest.raises(DivergedError, match=r"diverged with each learning rate from 7.8125e-06 to 0.004"):
        best_of_rates(none)


def test_a_process_that_dies_is_an_error(chat_file: Path, chat_inputs: Inputs) -> None:
    with pytest.raises(NoResultError, match="gru: its process ended with exit code 1"):
        next(compared(run_config(chat_file), chat_inputs, ["gru"], gpus=0, threads=-1))


def compare(monkeypatch: pytest.MonkeyPatch, config: Path, *options: str) -> int:
    root = config.parent / "mlruns"
    fixed = ["--config", str(config), "--mlruns", str(root), "--device", "cpu", "--threads", "1", "--baseline", "gru"]
    monkeypatch.setattr(sys, "argv", ["train.py", *fixed, *options])
    return main()


@pytest.fixture
def config_file(chat_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(run_config(chat_file).flat()))
    return path


def test_a_configuration_beside_a_baseline(
    monkeypatch: pytest.MonkeyPatch, config_file: Path, chat_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainables.baselines.comparison.LEARNING_RATES", (0.002,))
    monkeypatch.setattr("trainables.baselines.comparison.FURTHER", 1)
    assert compare(monkeypatch, config_file, "--epochs", "1") == 0
    shown = capfd.readouterr().out
    assert "| test PPL [95 %]" in shown
    assert "(best of 2" in shown
    root = config_file.parent / "mlruns"
    assert not (root / "models").exists()  # no model is kept
    client = MlflowClient(Records.at(root).tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id], order_by=["start_time"])
    assert [run.data.tags[ROLE_TAG] for run in runs] == ["compared: two-phase", "compared: gru"]
    for each in runs:
        figures, params = each.data.metrics, each.data.params
        assert each.info.status == "FINISHED"
        assert each.data.tags[HASH_TAG] == run_config(chat_file, phase2_epochs=1).config_hash()
        assert params["device_name"]
        assert params["context_dim"] == "8"
        assert f"{figures['test/ppl']:.2f} [{figures['test/ppl_low']:.2f}, {figures['test/ppl_high']:.2f}]" in shown
        assert f"{figures[names.TRAINED_PARAMS]:,.0f}" in shown
        for name in (
            "validation/top5",
            "test/bits_per_byte",
            "test/unigram_ppl",
            names.TOTAL_SECONDS,
            names.BEST_EPOCH,
        ):
            assert name in figures
        if Path("/proc/self/status").exists():  # weighed in a process of its own
            assert 0 < figures[names.PEAK_BYTES] < 1e9
        assert f"{figures[names.state_bytes(1_000)]:,.0f}" in shown
        assert len(client.get_metric_history(each.info.run_id, names.EPOCH_VAL_PPL)) == 1
    assert runs[0].data.metrics[names.CONVERGED] == 0.0  # 6 sweeps are its cap
    assert re.search(r"\| Phase 1 converged +\| +no \| +– \|", shown)
    assert runs[1].data.params["learning_rates_tried"].count(",") == 1


def test_a_model_without_a_result_is_a_sentence_and_a_failed_run(
    monkeypatch: pytest.MonkeyPatch, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(monkeypatch, config_file, "--contexts-min-rank", "100") == 1
    assert capsys.readouterr().err.startswith("error: two-phase: Phase 1 collapsed")
    client = MlflowClient(Records.at(config_file.parent / "mlruns").tracking_uri)
    (run_of_it,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert run_of_it.info.status == "FAILED"
    assert "collapsed" in run_of_it.data.tags[REASON_TAG]
