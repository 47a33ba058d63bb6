"""Phase 2: train the TokenBlock on next-token prediction over frozen contexts and a frozen head."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from model.language_model import LanguageModel
from model.ops.compute import Compute
from model.ops.head import FrozenHead
from model.ops.passes import TokenPass
from trainables.config import Phase2Config
from trainables.errors import DivergedError
from trainables.phases.optimizer import FlatAdam

EAGER_STEPS = 3  # of an epoch on a GPU before the step is recorded: libraries must be warm by then


@dataclass(frozen=True)
class Stream:
    """One split's tokens and what each token layer reads, on the model's device."""

    tokens: Tensor  # (N,) int64
    contexts: list[Tensor | None]  # T times (N, W) or None, as operands


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
    val_losses: Tensor  # of the best epoch, nats of each validation target  # (N-1,)
    seconds: float


@dataclass
class Phase2State:
    """A training between two epochs: with it, the model and the streams it goes on as if it had never stopped."""

    epochs: list[Epoch] = field(default_factory=list)
    best: Epoch | None = None  # None before the first epoch, and then nothing below is set
    best_losses: Tensor = field(default_factory=lambda: torch.empty(0))  # as `Phase2Result.val_losses`
    best_weights: Tensor = field(default_factory=lambda: torch.empty(0))  # `FlatAdam.weights`
    optimizer: dict[str, Tensor] = field(default_factory=dict)  # `FlatAdam.state`
    seconds: float = 0.0


class Checkpoints(Protocol):
    """Keeps a training's state from epoch to epoch."""

    def load(self) -> Phase2State | None:
        """The state that was kept last, if any, on the model's device."""

    def save(self, state: Phase2State) -> None:
        """Keep the state after an epoch; its tensors change with the next."""


class _Steps:
    """A model laid out for passes over streams."""

    def __init__(self, model: LanguageModel, compute: Compute) -> None:
        self.weights = TokenPass(model.token_block, compute.operand(model.embedded), compute)
        self.eval_rows = compute.chunks.eval_rows
        self.head = FrozenHead(model.table, compute)
        self.total = torch.zeros((), dtype=torch.float64, device=model.table.device)
        self.recorded: _Recording | None = None

    def evaluate(self, stream: Stream) -> tuple[Tensor, Tensor]:
        losses, correct = self.over(stream, self.head.scores)
        return losses, correct

    def over(self, stream: Stream, score: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What `score` makes of the hidden states (n, E) and targets (n,) of a whole stream, some at a time."""
        found = []
        last = len(stream.tokens) - 1
        for start in range(0, last, self.eval_rows):
            stop = min(start + self.eval_rows, last)
            contexts = [None if c is None else c[start:stop] for c in stream.contexts]
            hidden = self.weights.forward(stream.tokens[start:stop], contexts)
            found.append(score(hidden, stream.tokens[start + 1 : stop + 1]))
        return tuple(map(torch.cat, zip(*found, strict=True)))

    def step(self, tokens: Tensor, contexts: list[Tensor | None], optimizer: FlatAdam) -> None:
        """One optimiser step on consecutive positions; adds the sum of their losses to `self.total`.

        Args:
            tokens: the positions' and the one after the last.  # (n+1,)
            contexts: T times (n, W) or None
        """
        tape: list[Any] = []
        self.weights.reload()
        hidden = self.weights.forward(tokens[:-1], contexts, tape)
        losses, gradient = self.head.gradient(hidden, tokens[1:])
        self.weights.backward(gradient, tape)
        optimizer.step()
        self.total += losses.sum(dtype=torch.float64)

    def train(self, stream: Stream, optimizer: FlatAdam, batch_size: int) -> float:
        """One pass over the stream, always the same one, in order; the mean loss over its positions."""
        self.total.zero_()
        last = len(stream.tokens) - 1
        for number, start in enumerate(range(0, last, batch_size)):
            stop = min(start + batch_size, last)
            whole = stop - start == batch_size
            if number == EAGER_STEPS and whole and self.total.is_cuda and self.recorded is None:
                self.recorded = _Recording(self, stream, optimizer, batch_size)
            if self.recorded is not None and whole:
                self.recorded.replay(start)
            else:
                contexts = [None if c is None else c[start:stop] for c in stream.contexts]
                self.step(stream.tokens[start : stop + 1], contexts, optimizer)
        self.weights.reload()
        return float(self.total) / last


class _Recording:
    """A step on a GPU as one CUDA graph: the same kernels, without the gaps between them."""

    def __init__(self, steps: _Steps, stream: Stream, optimizer: FlatAdam, batch_size: int) -> None:
        """Record a step of `batch_size` positions of `stream`; nothing is computed yet."""
        self.stream, self.batch_size = stream, batch_size
        self.tokens = stream.tokens[: batch_size + 1].clone()
        read = {c.data_ptr(): c for c in stream.contexts if c is not None}  # layers that read the same share a copy
        self.copies = {where: (c, c[:batch_size].clone()) for where, c in read.items()}
        contexts = [None if c is None else self.copies[c.data_ptr()][1] for c in stream.contexts]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            steps.step(self.tokens, contexts, optimizer)

    def replay(self, start: int) -> None:
        """Run the step on the positions from `start` on."""
        stop = start + self.batch_size
        self.tokens.copy_(self.stream.tokens[start : stop + 1])
        for source, copy in self.copies.values():
            copy.copy_(source[start:stop])
        self.graph.replay()


def evaluate(model: LanguageModel, stream: Stream, compute: Compute | None = None) -> tuple[Tensor, Tensor]:
    """Every next token of a stream, scored.

    Returns:
        Losses in nats and hits of the N-1 targets `tokens[1:]`.  # (N-1,) float, (N-1,) bool
    """
    return _Steps(model, compute or Compute()).evaluate(stream)


def ranks(model: LanguageModel, stream: Stream, compute: Compute | None = None) -> Tensor:
    """How many tokens are more likely than the target, for each of the N-1 targets `tokens[1:]`.  # (N-1,) int64"""
    steps = _Steps(model, compute or Compute())
    (found,) = steps.over(stream, lambda hidden, targets: (steps.head.ranks(hidden, targets),))
    return found


def fit_phase2(
    model: LanguageModel,
    train: Stream,
    validation: Stream,
    config: Phase2Config,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    compute: Compute | None = None,
    checkpoints: Checkpoints | None = None,
) -> Phase2Result:
    """Train `model.token_block` in place and leave the best epoch's weights in it.

    Args:
        train: in batches of consecutive positions, in order.
        validation: scored whole after each epoch.
        on_epoch: called after every epoch.
        compute: how, the streams' contexts included; torch's operators in the model's own precision if not given.
        checkpoints: as in `fit_epochs`.

    Raises:
        DivergedError: a loss is not finite.
    """
    compute = compute or Compute()
    optimizer = FlatAdam(model.token_block, config.learning_rate, config.grad_clip, compute)
    steps = _Steps(model, compute)
    return fit_epochs(
        lambda: steps.train(train, optimizer, config.batch_size),
        lambda: steps.evaluate(validation),
        optimizer,
        config,
        on_epoch,
        checkpoints,
    )


def fit_epochs(
    train: Callable[[], float],
    evaluate: Callable[[], tuple[Tensor, Tensor]],
    optimizer: FlatAdam,
    config: Phase2Config,
    on_epoch: Callable[[Epoch], None],
    checkpoints: Checkpoints | None = None,
) -> Phase2Result:
    """Epochs until one too many does not improve; the best one's weights are left in `optimizer`'s module.

    Args:
        train: one epoch; returns its mean loss.
        evaluate: losses and hits of the validation's targets, as `evaluate` of a model returns them.
        checkpoints: where to go on from, and where each epoch's end is kept.

    Raises:
        DivergedError: a loss is not finite.
    """
    began = time.perf_counter()
    state = checkpoints.load() if checkpoints else None
    if state is None:
        state = Phase2State()
    else:
        optimizer.load_state(state.optimizer)
        began -= state.seconds
        for epoch in state.epochs:
            on_epoch(epoch)
    best_loss = math.inf if state.best is None else float(state.best_losses.double().mean())
    for number in range(len(state.epochs) + 1, config.epochs + 1):
        if state.best is not None and len(state.epochs) - state.best.number >= config.patience:
            break
        train_loss = train()
        losses, correct = evaluate()
        val_loss = float(losses.double().mean())
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise DivergedError(
                f"Phase 2 diverged: loss {train_loss} in training, {val_loss} in validation, epoch {number}"
            )
        epoch = Epoch(number, _ppl(train_loss), _ppl(val_loss), float(correct.double().mean()))
        state.epochs.append(epoch)
        if val_loss < best_loss:
            best_loss = val_loss
            state.best, state.best_losses, state.best_weights = epoch, losses, optimizer.weights()
        if checkpoints:
            state.optimizer, state.seconds = optimizer.state(), time.perf_counter() - began
            checkpoints.save(state)
        on_epoch(epoch)
    assert state.best is not None
    optimizer.load(state.best_weights)
    return Phase2Result(state.epochs, state.best, state.best_losses, time.perf_counter() - began)


def _ppl(loss: float) -> float:
    """exp(loss); a finite loss beyond fp64's exponent is a divergence, not a perplexity."""
    try:
        return math.exp(loss)
    except OverflowError:
        raise DivergedError(f"Phase 2 diverged: a mean loss of {loss:.3g} nats") from None
