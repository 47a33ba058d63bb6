"""Phase 2: train the TokenBlock on next-token prediction over frozen contexts and a frozen head."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.language_model import LanguageModel
from model.losses import frozen_head_cross_entropy, head_scores
from trainables.config import Phase2Config
from trainables.phase1 import DivergedError

EVAL_ROWS = 8_192  # positions evaluated at once; changes no number


@dataclass(frozen=True)
class Stream:
    """One split's tokens and what each token layer reads, on the model's device."""

    tokens: Tensor  # (N,) int64
    contexts: list[Tensor | None]  # T times (N, D) or None


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave."""

    number: int  # from 1
    train_ppl: float  # exp of the running mean loss during the epoch
    val_ppl: float  # exp of the mean loss over the validation positions, after the epoch
    val_acc: float  # share of validation positions whose most likely token is the right one


@dataclass(frozen=True)
class Phase2Result:
    """How the training went. The best epoch's weights are in the model."""

    epochs: list[Epoch]
    best: Epoch
    seconds: float


def _hidden(model: LanguageModel, stream: Stream, start: int, stop: int) -> Tensor:
    contexts = [None if c is None else c[start:stop] for c in stream.contexts]
    hidden: Tensor = model.token_block(F.embedding(stream.tokens[start:stop], model.embedded), contexts)
    return hidden  # (stop-start, E)


@torch.no_grad()
def evaluate(model: LanguageModel, stream: Stream, rows: int = EVAL_ROWS) -> tuple[Tensor, Tensor]:
    """Every next token of a stream, judged.

    Returns:
        Losses in nats and hits of the N-1 targets `tokens[1:]`.  # (N-1,) float, (N-1,) bool
    """
    losses, correct = [], []
    last = len(stream.tokens) - 1
    for start in range(0, last, rows):
        stop = min(start + rows, last)
        scores = head_scores(_hidden(model, stream, start, stop), model.table, stream.tokens[start + 1 : stop + 1])
        losses.append(scores[0])
        correct.append(scores[1])
    return torch.cat(losses), torch.cat(correct)


def _train_epoch(model: LanguageModel, stream: Stream, optimizer: torch.optim.Adam, config: Phase2Config) -> float:
    """One pass over the stream in order; the mean loss over its positions."""
    total = torch.zeros((), dtype=torch.float64, device=stream.tokens.device)
    last = len(stream.tokens) - 1
    for start in range(0, last, config.batch_size):
        stop = min(start + config.batch_size, last)
        hidden = _hidden(model, stream, start, stop)
        loss = frozen_head_cross_entropy(hidden, model.table, stream.tokens[start + 1 : stop + 1])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.token_block.parameters(), config.grad_clip)
        optimizer.step()
        total += loss.detach().double() * (stop - start)
    return float(total) / last


def fit_phase2(
    model: LanguageModel,
    train: Stream,
    validation: Stream,
    config: Phase2Config,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Phase2Result:
    """Train `model.token_block` in place and leave the best epoch's weights in it.

    Args:
        train: in batches of consecutive positions, in order.
        validation: judged whole after each epoch.
        on_epoch: called after every epoch.

    Raises:
        DivergedError: a loss is not finite.
    """
    began = time.perf_counter()
    optimizer = torch.optim.Adam(model.token_block.parameters(), lr=config.learning_rate, fused=True)
    epochs: list[Epoch] = []
    best, best_loss, best_weights = None, math.inf, None
    for number in range(1, config.epochs + 1):
        train_loss = _train_epoch(model, train, optimizer, config)
        losses, correct = evaluate(model, validation)
        val_loss = float(losses.double().mean())
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise DivergedError(
                f"Phase 2 diverged: loss {train_loss} in training, {val_loss} in validation, epoch {number}"
            )
        epoch = Epoch(number, _ppl(train_loss), _ppl(val_loss), float(correct.double().mean()))
        epochs.append(epoch)
        on_epoch(epoch)
        if val_loss < best_loss:
            best, best_loss, best_weights = epoch, val_loss, copy.deepcopy(model.token_block.state_dict())
        elif number - best.number >= config.patience:  # type: ignore[union-attr]
            break
    assert best is not None
    assert best_weights is not None
    model.token_block.load_state_dict(best_weights)
    return Phase2Result(epochs, best, time.perf_counter() - began)


def _ppl(loss: float) -> float:
    """exp(loss); a finite loss beyond fp64's exponent is a divergence, not a perplexity."""
    try:
        return math.exp(loss)
    except OverflowError:
        raise DivergedError(f"Phase 2 diverged: a mean loss of {loss:.3g} nats") from None
