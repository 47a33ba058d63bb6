import pytest
import reference
import torch
from reference import twin
from small import model_config

from model.language_model import LanguageModel
from model.losses import block_spans
from model.ops.chunks import Chunks
from model.ops.compute import Compute
from model.seeds import seeded
from trainables.config import Phase1Config
from trainables.errors import DivergedError
from trainables.phases.phase1 import STATE_STD, fit_phase1

CONFIG = Phase1Config(block=50, max_sweeps=7, converged_share=0.999)


@pytest.mark.parametrize("context_layers", [1, 2, 3])
@pytest.mark.parametrize("length", [301, 300, 130])  # a last block of one row, no short block, a short one
def test_fit_equals_the_textbook(tokens: torch.Tensor, table: torch.Tensor, context_layers: int, length: int) -> None:
    compute = Compute(chunks=Chunks(activation_bytes=100 * 8 * 8))  # several passes a sweep
    tokens, seed = tokens[:length], 4
    model = LanguageModel(model_config(context_layers), table.double(), seed)
    book = twin(model)
    state = torch.empty(length, model.config.context_dim, dtype=torch.float64)
    state.normal_(0, STATE_STD, generator=seeded(seed, "initial state"))
    noise = seeded(seed, "sweep noise")

    def draw(sweep: int) -> torch.Tensor:
        drawn = torch.empty_like(state)
        for start, stop in block_spans(length, CONFIG.block):
            drawn[start:stop].normal_(0, CONFIG.noise, generator=noise)
        return drawn

    expected = reference.phase1(
        book,
        tokens,
        state,
        draw,
        lr=CONFIG.learning_rate,
        clip=CONFIG.grad_clip,
        block=CONFIG.block,
        threshold=CONFIG.threshold,
        converged_share=CONFIG.converged_share,
        max_sweeps=CONFIG.max_sweeps,
    )
    found = fit_phase1(model, tokens, CONFIG, seed, compute=compute)
    assert found.num_sweeps == expected.sweeps
    assert [s.loss for s in found.sweeps] == pytest.approx(expected.losses, rel=1e-9)
    assert [s.convergence for s in found.sweeps] == expected.rates
    assert torch.allclose(found.state, expected.state, atol=1e-9)
    for ours, theirs in zip(model.context_block.layers, book.context_layers, strict=True):
        assert torch.allclose(ours.weight, theirs.linear.weight, atol=1e-9)  # type: ignore[union-attr]
        assert torch.allclose(ours.norm.bias, theirs.norm.bias, atol=1e-9)  # type: ignore[union-attr]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tokens: torch.Tensor, table: torch.Tensor) -> None:
    weights = []
    for seed in (0, 0, 1):
        model = LanguageModel(model_config(), table, seed)
        fit_phase1(model, tokens, CONFIG, seed)
        weights.append(model.context_block.layers[0].weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_it_stops_when_enough_positions_stand_still(tokens: torch.Tensor, table: torch.Tensor) -> None:
    seen = []
    config = Phase1Config(block=50, threshold=1e9)
    result = fit_phase1(LanguageModel(model_config(), table, 0), tokens, config, 0, seen.append)
    assert result.num_sweeps == 2
    assert [s.convergence for s in seen] == [1.0]


def test_the_initial_state_counts_as_a_sweep(tokens: torch.Tensor, table: torch.Tensor) -> None:
    config = Phase1Config(block=50, threshold=1e-9, max_sweeps=5)
    result = fit_phase1(LanguageModel(model_config(), table, 0), tokens, config, 0)
    assert [s.number for s in result.sweeps] == [2, 3, 4, 5]


def test_divergence_is_an_error_of_its_own(tokens: torch.Tensor, table: torch.Tensor) -> None:
    config = Phase1Config(block=50, learning_rate=1e30)
    with pytest.raises(DivergedError, match="Phase 1 diverged: the loss is nan at sweep"):
        fit_phase1(LanguageModel(model_config(), table, 0), tokens, config, 0)
