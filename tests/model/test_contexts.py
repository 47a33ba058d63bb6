import pytest
import torch
from reference import read_contexts, sequential_contexts, twin
from small import model_config

from model import contexts as contexts_module
from model.contexts import exact_contexts, last_sweep_contexts
from model.language_model import LanguageModel
from model.modes import CONTEXT_MODES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("context_layers", [1, 2, 4])
@pytest.mark.parametrize("chunk", [7, 64, 1000])
def test_contexts_equal_the_sequential_scan(
    tokens: torch.Tensor, table: torch.Tensor, context_layers: int, chunk: int, dtype: torch.dtype
) -> None:
    model = LanguageModel(model_config(context_layers), table.to(dtype), seed=2)
    expected = sequential_contexts(twin(model), tokens)  # (C, N, D)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    found = exact_contexts(model.context_block, model.embedded, tokens, tolerance, chunk=chunk)
    for layer in range(context_layers):
        assert (found.layer(layer + 1) - expected[layer]).abs().max() < 10 * tolerance
    assert found.residual <= tolerance
    assert found.passes < contexts_module.MAX_PASSES


@pytest.mark.parametrize("mode", CONTEXT_MODES)
def test_every_mode_reads_what_the_textbook_reads(tokens: torch.Tensor, table: torch.Tensor, mode: str) -> None:
    model = LanguageModel(model_config(3, 3, mode), table, seed=2)
    expected = read_contexts(sequential_contexts(twin(model), tokens), model.config.reads)
    for ours, theirs in zip(model.contexts(tokens, 1e-5).read(model.config.reads), expected, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or theirs is None or (ours - theirs).abs().max() < 1e-4


def test_a_block_that_never_forgets_is_still_scanned_exactly(
    tokens: torch.Tensor, table: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts_module, "MAX_PASSES", 2)
    model = LanguageModel(model_config(1), table.double(), seed=2)
    with torch.no_grad():
        model.context_block.layers[0].weight.mul_(12)  # far from a contraction
    expected = sequential_contexts(twin(model), tokens[:60])
    found = exact_contexts(model.context_block, model.embedded, tokens[:60], 1e-12, chunk=5)
    assert found.passes == 2
    assert (found.final - expected[-1]).abs().max() < 1e-6
    assert found.residual <= 1e-12


def test_one_token_and_the_previous_position_of_the_first(table: torch.Tensor) -> None:
    model = LanguageModel(model_config(2, 1, "previous_only"), table, seed=2)
    (context,) = model.contexts(torch.tensor([3]), 1e-5).read(model.config.reads)
    assert context is not None
    assert context.shape == (1, model.config.context_dim)
    assert context.abs().max() == 0


def test_last_sweep_contexts_are_one_noiseless_sweep(tokens: torch.Tensor, table: torch.Tensor) -> None:
    model = LanguageModel(model_config(2), table, seed=2)
    state = torch.randn(len(tokens), model.config.context_dim, generator=torch.Generator().manual_seed(1))
    book = twin(model)
    previous = torch.cat([torch.zeros_like(state[:1]), state[:-1]])
    expected = book.context_block(previous, book.embed(tokens))
    found = last_sweep_contexts(model.context_block, model.embedded, tokens, state)
    for layer in (1, 2):
        assert (found.layer(layer) - expected[layer - 1]).abs().max() < 1e-5
