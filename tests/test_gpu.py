"""What differs on a GPU: kernels, precision, recorded steps. Run with `pytest -m gpu` where there is one."""

from pathlib import Path

import pytest
import torch
from conftest import model_config, run_config
from reference import sequential_contexts
from test_contexts import twin

from model.compute import Compute
from model.language_model import LanguageModel
from trainables import metrics as names
from trainables import phase2 as phase2_module
from trainables import pipeline as pipeline_module
from trainables.artifacts import ArtifactStore
from trainables.config import Phase2Config
from trainables.phase2 import Stream, fit_phase2
from trainables.pipeline import Inputs, run
from trainables.two_phase import choose_device

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_a_run_repeats_itself_bit_by_bit(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    device, config = choose_device(1), run_config(chat_file)
    results = [run(config, chat_inputs, ArtifactStore(tmp_path / folder), device) for folder in "ab"]
    timeless = [{k: v for k, v in r.metrics.items() if "seconds" not in k} for r in results]
    assert timeless[0] == timeless[1]
    for mine, theirs in zip(*(r.model.state_dict().values() for r in results), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("compute", [Compute(), Compute(fused=True)])
def test_every_precision_agrees(
    compute: Compute, chat_file: Path, chat_inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, config = choose_device(1), run_config(chat_file)
    fast = run(config, chat_inputs, ArtifactStore(tmp_path / "fast"), device).metrics[names.VAL_PPL]
    monkeypatch.setattr(pipeline_module.Compute, "of", lambda device: compute)
    slow = run(config, chat_inputs, ArtifactStore(tmp_path / "slow"), device).metrics[names.VAL_PPL]
    # torch's generator and the kernels draw different noise, and this run is short
    assert fast == pytest.approx(slow, rel=0.005 if compute.fused else 0.05)


def test_contexts_are_exact_although_training_rounds(tokens: torch.Tensor, table: torch.Tensor) -> None:
    device = choose_device(1)
    model = LanguageModel(model_config(2), table, seed=2)
    expected = sequential_contexts(twin(model), tokens)[-1]
    model.to(device)
    for compute, tolerance in ((Compute(), 1e-4), (Compute(fused=True), 1e-4), (Compute(True, True), 2e-2)):
        found = model.contexts(tokens.to(device), 1e-5, compute)
        assert (found.final.float().cpu() - expected).abs().max() < tolerance


def test_recorded_steps_are_the_same_steps(
    tokens: torch.Tensor, table: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, compute = choose_device(1), Compute(fused=True, bf16=True)
    results = []
    for eager in (3, 10_000):
        monkeypatch.setattr(phase2_module, "EAGER_STEPS", eager)
        model = LanguageModel(model_config(2, 3, "layerwise"), table, seed=2).to(device)
        contexts = model.contexts(tokens.to(device), 1e-5, compute).read(model.config.reads)
        stream = Stream(tokens.to(device), contexts)
        config = Phase2Config(batch_size=32, epochs=3)
        results.append(fit_phase2(model, stream, stream, config, compute=compute).epochs)
    assert results[0] == results[1]
