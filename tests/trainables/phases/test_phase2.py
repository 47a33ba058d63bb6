import copy
import math

import pytest
import reference
import torch
from reference import twin
from small import model_config

from model.language_model import LanguageModel
from model.modes import CONTEXT_MODES
from model.ops.chunks import Chunks
from model.ops.compute import Compute
from trainables.config import Phase2Config
from trainables.errors import DivergedError
from trainables.phases.phase2 import Epoch, Phase2State, Stream, evaluate, fit_phase2, ranks

CONFIG = Phase2Config(batch_size=64, epochs=4)


def streams(model: LanguageModel, tokens: torch.Tensor) -> tuple[Stream, Stream]:
    """The first two thirds to train on, the rest to validate on."""
    cut = 2 * len(tokens) // 3
    parts = (tokens[:cut], tokens[cut:])
    train, validation = (Stream(part, model.contexts(part, 1e-5).read(model.config.reads)) for part in parts)
    return train, validation


@pytest.mark.parametrize("mode", CONTEXT_MODES)
@pytest.mark.parametrize("token_layers", [1, 3])
def test_fit_equals_the_textbook(tokens: torch.Tensor, table: torch.Tensor, token_layers: int, mode: str) -> None:
    model = LanguageModel(model_config(2, token_layers, mode), table.double(), 1)
    book = twin(model)
    train, validation = streams(model, tokens)
    expected = reference.phase2(
        book,
        train.tokens,
        validation.tokens,
        train.contexts,
        validation.contexts,
        lr=CONFIG.learning_rate,
        clip=CONFIG.grad_clip,
        batch_size=CONFIG.batch_size,
        epochs=CONFIG.epochs,
        patience=CONFIG.patience,
    )
    found = fit_phase2(model, train, validation, CONFIG)
    assert [e.train_ppl for e in found.epochs] == pytest.approx(expected.train_ppl, rel=1e-9)
    assert [e.val_ppl for e in found.epochs] == pytest.approx(expected.val_ppl, rel=1e-9)
    assert [e.val_acc for e in found.epochs] == pytest.approx(expected.val_accuracy)
    assert found.best.number == expected.best_epoch
    for ours, theirs in zip(model.token_block.layers, book.token_layers, strict=True):
        assert torch.allclose(ours.weight, theirs.linear.weight, atol=1e-9)  # type: ignore[union-attr]


def test_validation_loss_does_not_depend_on_the_batch(tokens: torch.Tensor, table: torch.Tensor) -> None:
    model = LanguageModel(model_config(2, 3, "prev_and_current"), table, 1)
    stream = Stream(tokens, model.contexts(tokens, 1e-5).read(model.config.reads))
    whole, hits = evaluate(model, stream)
    assert len(whole) == len(tokens) - 1
    for rows in (1, 7, 128):
        losses, correct = evaluate(model, stream, Compute(chunks=Chunks(eval_rows=rows)))
        assert torch.allclose(losses, whole, atol=1e-5)
        assert torch.equal(correct, hits)
        assert torch.equal(ranks(model, stream, Compute(chunks=Chunks(eval_rows=rows))) == 0, hits)


def test_it_stops_at_the_first_epoch_that_is_no_better_and_keeps_the_best(
    tokens: torch.Tensor, table: torch.Tensor
) -> None:
    model = LanguageModel(model_config(), table, 1)
    train, validation = streams(model, tokens)
    config = Phase2Config(batch_size=8, epochs=60, learning_rate=0.01)  # overfits soon
    result = fit_phase2(model, train, validation, config)
    values = [e.val_ppl for e in result.epochs]
    assert len(values) < config.epochs
    assert values[-1] >= values[-2] == min(values) == result.best.val_ppl
    assert result.best.number == len(values) - 1
    loss = float(evaluate(model, validation)[0].double().mean())
    assert math.exp(loss) == pytest.approx(result.best.val_ppl, rel=1e-6)


def test_only_the_token_block_moves(tokens: torch.Tensor, table: torch.Tensor) -> None:
    model = LanguageModel(model_config(), table.clone(), 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit_phase2(model, *streams(model, tokens), CONFIG)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith("token_block.")}


def test_divergence_is_an_error_of_its_own(tokens: torch.Tensor, table: torch.Tensor) -> None:
    model = LanguageModel(model_config(), table, 1)
    with pytest.raises(DivergedError, match="Phase 2 diverged: loss nan in training"):
        fit_phase2(model, *streams(model, tokens), Phase2Config(batch_size=64, learning_rate=1e30))


class Kept:
    """Checkpoints in memory."""

    def __init__(self) -> None:
        self.state: Phase2State | None = None

    def load(self) -> Phase2State | None:
        return self.state

    def save(self, state: Phase2State) -> None:
        self.state = copy.deepcopy(state)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 3, 4, 20])
def test_a_training_goes_on_from_any_epoch_as_if_never_stopped(
    tokens: torch.Tensor, table: torch.Tensor, stop_after: int
) -> None:
    config = Phase2Config(batch_size=8, epochs=20, learning_rate=0.01, patience=2)  # ends by patience
    whole_model, model = (LanguageModel(model_config(), table.clone(), 1) for _ in range(2))
    whole = fit_phase2(whole_model, *streams(whole_model, tokens), config)
    assert 4 < len(whole.epochs) < 20

    def stop(epoch: Epoch) -> None:
        if epoch.number == min(stop_after, len(whole.epochs)):
            raise StoppedError

    kept = Kept()
    with pytest.raises(StoppedError):
        fit_phase2(model, *streams(model, tokens), config, stop, checkpoints=kept)
    model, seen = LanguageModel(model_config(), table.clone(), 1), []
    resumed = fit_phase2(model, *streams(model, tokens), config, seen.append, checkpoints=kept)
    assert seen == resumed.epochs == whole.epochs
    assert resumed.best == whole.best
    assert torch.equal(resumed.val_losses, whole.val_losses)
    ours, theirs = model.state_dict(), whole_model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
