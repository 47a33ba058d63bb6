"""Training of the baselines: as Phase 2 where that is possible.

They see the same stream and table, as many positions a step, the same Adam, clip, epochs and patience, and are scored
on every next token.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.language_model import LanguageModel
from model.ops.compute import Compute
from model.ops.head import FrozenHead
from model.seeds import seed_of, seeded
from trainables.baselines.networks import MODELS, Baseline, State, smallest_hidden
from trainables.config import Phase2Config
from trainables.phases.optimizer import FlatAdam
from trainables.phases.phase2 import Epoch, Phase2Result, fit_epochs

# cuDNN lays weights out in its own way and copies those of `FlatAdam` at each call: little beside the rest of a step.
warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")


@dataclass(frozen=True)
class FittedBaseline:
    """A baseline with its best epoch's weights."""

    model: Baseline
    head: FrozenHead
    result: Phase2Result

    def evaluate(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses in nats, hits and ranks of the N-1 targets `tokens[1:]`.  # (N-1,) float, bool, int64"""
        losses, correct = _over(self.model, tokens, self.head, self.head.scores)
        (ranks,) = _over(self.model, tokens, self.head, lambda *rows: (self.head.ranks(*rows),))
        return losses, correct, ranks

    @torch.no_grad()
    def state_bytes(self, tokens: Tensor, lengths: tuple[int, ...]) -> list[int]:
        """What one sequence holds in memory behind its first so many tokens, in generation."""
        found = []
        with _precision(self.head, tokens):
            for length in lengths:
                state = self.model.state_of(tokens[:length])
                found.append(sum(tensor.numel() * tensor.element_size() for tensor in state))
        return found


def _precision(head: FrozenHead, tokens: Tensor) -> torch.autocast:
    """bf16 where Phase 2's operands are."""
    return torch.autocast(tokens.device.type, torch.bfloat16, enabled=head.compute.bf16)


@torch.no_grad()
def _over(
    model: Baseline, tokens: Tensor, head: FrozenHead, score: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """What `score` makes of hidden states (n, E) and targets (n,), for every target of a stream."""
    found, start = [], 0
    with _precision(head, tokens):
        for hidden in model.over(tokens[:-1], head.compute.chunks.eval_rows):
            stop = start + len(hidden)
            found.append(score(head.compute.operand(hidden), tokens[start + 1 : stop + 1]))
            start = stop
    assert start == len(tokens) - 1
    return tuple(map(torch.cat, zip(*found, strict=True)))


class _Training:
    """A fresh model and all that its epochs need."""

    def __init__(self, model: Baseline, head: FrozenHead, config: Phase2Config, order: torch.Generator):
        self.model, self.head, self.config, self.order = model, head, config, order
        self.optimizer = FlatAdam(model, config.learning_rate, config.grad_clip, head.compute)

    def epoch(self, tokens: Tensor) -> float:
        """One pass over a stream; the mean loss over the positions seen."""
        total, seen = torch.zeros((), dtype=torch.float64, device=tokens.device), 0
        state: State = []
        for positions, goes_on in self.model.batches(len(tokens) - 1, self.order):
            where = positions.to(tokens.device)
            self.optimizer.grad.zero_()
            with _precision(self.head, tokens):
                hidden, state = self.model(tokens[where], [kept.detach() for kept in state] if goes_on else None)
            rows = self.head.compute.operand(hidden.detach().flatten(0, 1))
            losses, gradient = self.head.gradient(rows, tokens[where + 1].flatten())
            hidden.backward(gradient.view_as(hidden).to(hidden.dtype))
            self.optimizer.step()
            total += losses.sum(dtype=torch.float64)
            seen += len(losses)
        return float(total) / seen

    def fit(self, train: Tensor, validation: Tensor, on_epoch: Callable[[Epoch], None]) -> Phase2Result:
        """Epochs as Phase 2's; the best one's weights are left in the model."""

        def evaluate() -> tuple[Tensor, Tensor]:
            losses, correct = _over(self.model, validation, self.head, self.head.scores)
            return losses, correct

        return fit_epochs(lambda: self.epoch(train), evaluate, self.optimizer, self.config, on_epoch)


def fit_baseline(
    kind: str,
    like: LanguageModel,
    train: Tensor,
    validation: Tensor,
    config: Phase2Config,
    seed: int,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    compute: Compute | None = None,
) -> FittedBaseline:
    """Train a baseline with as many parameters as `like` trains in both phases, or a few more.

    Args:
        kind: one of `MODELS`.
        like: on the device that is to be used; its table is taken, nothing of it is changed.
        train: token ids.  # (N,) int64
        validation: scored whole after each epoch.
        config: as of Phase 2.
        seed: of the initial weights and of the order of windows.
        on_epoch: called after every epoch.

    Raises:
        DivergedError: a loss is not finite.
    """
    head = FrozenHead(like.table, compute or Compute())
    trained = like.config.phase1_params + like.config.phase2_params
    hidden = smallest_hidden(kind, like.config.embedding_dim, config.batch_size, trained)
    with torch.random.fork_rng(devices=[]):  # weights are made on the CPU
        torch.manual_seed(seed_of(seed, f"{kind} init"))
        model = MODELS[kind](like.embedded, hidden, config.batch_size).to(train.device)
    training = _Training(model, head, config, seeded(seed, f"{kind} order"))
    return FittedBaseline(model, head, training.fit(train, validation, on_epoch))
