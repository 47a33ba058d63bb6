from pathlib import Path

import pytest
import torch
from reference import ReferenceModel, num_parameters
from small import model_config

from model.config import ModelConfig
from model.language_model import LanguageModel
from model.modes import CONTEXT_MODES, MAX_LAYERS
from model.text.checkpoint import load_model, save_model
from trainables.config import Phase2Config
from trainables.phases.phase2 import Stream, evaluate, fit_phase2

CELLS = [(c, t) for c in range(1, MAX_LAYERS + 1) for t in range(1, MAX_LAYERS + 1)]


@pytest.mark.parametrize("mode", CONTEXT_MODES)
@pytest.mark.parametrize(("c", "t"), CELLS)
def test_every_configuration_builds_trains_and_evaluates(
    c: int, t: int, mode: str, tokens: torch.Tensor, table: torch.Tensor
) -> None:
    config = model_config(c, t, mode)
    model = LanguageModel(config, table, seed=1)
    assert model.num_parameters() == config.total_params == num_parameters(ReferenceModel(config, table))
    contexts = model.contexts(tokens, 1e-5).read(config.reads)
    for context in contexts:
        assert context is None or context[1:].abs().sum(dim=1).min() > 0  # no context is ever all zero
    stream = Stream(tokens, contexts)
    before = float(evaluate(model, stream)[0].mean())
    fit_phase2(model, stream, stream, Phase2Config(batch_size=100, epochs=2))
    assert float(evaluate(model, stream)[0].mean()) < before


@pytest.mark.parametrize(
    ("c", "t", "mode", "total"),
    [
        (1, 1, "prev_and_current", 40_210_540),
        (2, 1, "prev_and_current", 40_846_040),
        (1, 2, "prev_and_current", 41_186_668),
        (2, 2, "layerwise", 41_822_168),
        (2, 3, "prev_and_current", 41_822_168 + 592_128),  # the layer between reads no context
    ],
)
def test_parameter_counts_of_the_reports(c: int, t: int, mode: str, total: int) -> None:
    config = ModelConfig(
        vocab_size=50_257, embedding_dim=768, context_dim=500, context_layers=c, token_layers=t, context_mode=mode
    )
    assert config.total_params == total
    assert config.phase1_params == 635_500 * c
    with torch.device("meta"):
        assert num_parameters(ReferenceModel(config, torch.empty(50_257, 768))) == total


def test_initial_weights_do_not_depend_on_what_else_is_built(table: torch.Tensor) -> None:
    small, large = (LanguageModel(model_config(2, t), table, seed=3) for t in (1, 4))
    assert torch.equal(small.context_block.layers[1].weight, large.context_block.layers[1].weight)
    assert torch.equal(small.token_block.layers[0].weight, large.token_block.layers[0].weight)
    other = LanguageModel(model_config(2, 1), table, seed=4)
    assert not torch.equal(small.context_block.layers[0].weight, other.context_block.layers[0].weight)
    std = float(LanguageModel(model_config(4, 4), table, seed=0).token_block.layers[0].weight.detach().std())
    assert 0.08 < std < 0.12


def test_a_saved_model_gives_the_same_logits(tmp_path: Path, tokens: torch.Tensor, table: torch.Tensor) -> None:
    model = LanguageModel(model_config(3, 2, "layerwise"), table, seed=1)
    save_model(model, tmp_path / "m", "{}")
    assert torch.equal(load_model(tmp_path / "m").logits(tokens), model.logits(tokens))
