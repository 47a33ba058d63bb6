"""What differs on a GPU: generators, precision, larger passes. Run with `pytest -m gpu` where there is one."""

from pathlib import Path

import pytest
import torch
from conftest import model_config, run_config
from reference import sequential_contexts
from test_contexts import twin

from model.language_model import LanguageModel
from trainables import metrics as names
from trainables.artifacts import ArtifactStore
from trainables.pipeline import Inputs, run
from trainables.two_phase import choose_device

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_a_run_repeats_itself_and_agrees_with_the_cpu(chat_file: Path, chat_inputs: Inputs, tmp_path: Path) -> None:
    device = choose_device(1)
    config = run_config(chat_file)
    ppl = [
        run(config, chat_inputs, ArtifactStore(tmp_path / folder), where).metrics[names.VAL_PPL]
        for folder, where in (("a", device), ("b", device), ("c", "cpu"))
    ]
    assert ppl[0] == ppl[1]
    assert ppl[0] == pytest.approx(ppl[2], rel=0.05)  # the noise of Phase 1 is drawn by another generator


def test_contexts_are_exact_although_training_uses_tf32(tokens: torch.Tensor, table: torch.Tensor) -> None:
    device = choose_device(1)
    model = LanguageModel(model_config(2), table, seed=2)
    expected = sequential_contexts(twin(model), tokens)[-1]
    found = model.to(device).contexts(tokens.to(device), 1e-5)
    assert (found.final.cpu() - expected).abs().max() < 1e-4
