"""The textbook method, without tricks: the oracle for correctness and the baseline for speed.

Symbols: V vocabulary, E embedding dim, D context dim, C context layers, T token layers, N tokens of a
stream, B positions of a batch. Tokens are int64; all else has the embedding table's dtype and device.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from model.config import ModelConfig
from model.language_model import LanguageModel
from model.modes import Reads

Contexts = Sequence[Tensor | None]  # per token layer: what each position reads (N, D), or nothing
LayerWeights = tuple[Any, Any, Any, Any]  # W (out, in), b, gamma, beta (out,): tensors or numpy arrays


class ResidualLayer(nn.Module):
    """`LayerNorm(x + GELU(W inputs + b))`."""

    def __init__(self, width: int, num_inputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_inputs, width)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        nn.init.normal_(self.linear.weight, std=0.1)
        nn.init.normal_(self.linear.bias, std=0.01)

    def forward(self, x: Tensor, inputs: Tensor) -> Tensor:
        """x (..., width), inputs (..., num_inputs) -> (..., width)."""
        return self.norm(x + F.gelu(self.linear(inputs)))


class ReferenceModel(nn.Module):
    """Frozen tied table and input LayerNorm, C context and T token layers, drawn by the global generator."""

    def __init__(self, config: ModelConfig, table: Tensor) -> None:  # table (V, E)
        super().__init__()
        d, e = config.context_dim, config.embedding_dim
        assert table.shape == (config.vocab_size, e), table.shape
        self.config = config
        self.table = nn.Parameter(table, requires_grad=False)
        self.input_norm = nn.LayerNorm(e, eps=1e-5).requires_grad_(False)
        self.context_layers = nn.ModuleList(ResidualLayer(d, d + e) for _ in range(config.context_layers))
        self.token_layers = nn.ModuleList(ResidualLayer(e, d + e if read else e) for read in config.reads)
        self.to(table)  # its dtype and device

    def load_weights(self, context: Sequence[LayerWeights], token: Sequence[LayerWeights]) -> None:
        """Copies every layer's (W, b, gamma, beta); in W the context's columns come first."""
        for layers, arrays in ((self.context_layers, context), (self.token_layers, token)):
            for layer, (w, b, gamma, beta) in zip(layers, arrays, strict=True):
                layer.linear.load_state_dict({"weight": torch.as_tensor(w), "bias": torch.as_tensor(b)})
                layer.norm.load_state_dict({"weight": torch.as_tensor(gamma), "bias": torch.as_tensor(beta)})

    def embed(self, tokens: Tensor) -> Tensor:
        """e_t of every position: tokens (N,) -> (N, E)."""
        return self.input_norm(F.embedding(tokens, self.table))

    def context_block(self, h: Tensor, e: Tensor) -> list[Tensor]:
        """Outputs of the C context layers, each (..., D), from h (..., D) and e (..., E)."""
        outputs = []
        for layer in self.context_layers:
            h = layer(h, torch.cat([h, e], dim=-1))
            outputs.append(h)
        return outputs


def num_parameters(model: nn.Module) -> int:
    """All parameters of the module, the frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def sequential_contexts(model: ReferenceModel, tokens: Tensor) -> Tensor:
    """The recurrence, one position after the other: tokens (N,) -> (C, N, D)."""
    embedded = model.embed(tokens)  # (N, E)
    h = embedded.new_zeros(model.config.context_dim)  # (D,)
    positions = []
    for e in embedded:
        outputs = model.context_block(h, e)
        positions.append(torch.stack(outputs))  # (C, D)
        h = outputs[-1]
    return torch.stack(positions, dim=1)


def read_contexts(contexts: Tensor, reads: Reads) -> list[Tensor | None]:
    """What each token layer reads of the whole stream: (C, N, D) -> T times (N, D) or None."""
    previous = torch.cat([torch.zeros_like(contexts[:, :1]), contexts[:, :-1]], dim=1)  # zeros at t = 0
    return [None if r is None else (previous if r.shift else contexts)[r.layer - 1] for r in reads]


def effective_rank(rows: Tensor) -> float:
    """exp(entropy of the normalised singular values) / D of rows (n, D), not centred."""
    s = torch.linalg.svdvals(rows)
    p = s / s.sum()
    return math.exp(-torch.special.xlogy(p, p).sum().item()) / rows.shape[1]


def dispersion_loss(outputs: Tensor, block: int) -> Tensor:
    """`-|X - mean|_F / n + 0.1 |mean|^2` of each block of rows, averaged: (N, D) -> ()."""
    blocks = list(outputs.split(block))
    if len(blocks) > 1 and len(blocks[-1]) == 1:
        blocks[-2:] = [torch.cat(blocks[-2:])]
    losses = []
    for x in blocks:
        mean = x.mean(dim=0)  # (D,)
        losses.append(-(x - mean).norm() / len(x) + 0.1 * mean.square().sum())
    return torch.stack(losses).mean()


def context_sweep(model: ReferenceModel, tokens: Tensor, previous: Tensor, noise: Tensor) -> Tensor:
    """Position t reads previous[t - 1] + noise[t], t = 0 previous[N - 1]: tokens (N,), (N, D) -> (N, D)."""
    return model.context_block(previous.roll(1, dims=0) + noise, model.embed(tokens))[-1]


@dataclass(kw_only=True)
class Phase1Result:
    """What Phase 1 did; the fitted weights are in the model."""

    state: Tensor  # (N, D), the last sweep's outputs
    sweeps: int = 1  # the initial state counts as one
    losses: list[float] = field(default_factory=list)  # of sweeps 2, 3, ..., before each one's Adam step
    rates: list[float] = field(default_factory=list)  # share of converged positions, of sweeps 2, 3, ...


def phase1(
    model: ReferenceModel, tokens: Tensor, state: Tensor, noises: Callable[[int], Tensor], *, lr: float,
    clip: float, block: int, threshold: float, converged_share: float, max_sweeps: int,
) -> Phase1Result:  # fmt: skip
    """Fits the context layers to tokens (N,) from the initial state (N, D), in place.

    `noises(sweep)` is the noise (N, D) of sweep 2, 3, ..., its standard deviation already applied.
    """
    parameters = list(model.context_layers.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr)
    result = Phase1Result(state=state)
    for sweep in range(2, max_sweeps + 1):
        outputs = context_sweep(model, tokens, result.state, noises(sweep))
        loss = dispersion_loss(outputs, block)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(parameters, clip)
        optimizer.step()

        change = (outputs.detach() - result.state).square().mean(dim=1)  # (N,)
        result.state, result.sweeps = outputs.detach(), sweep
        result.losses.append(loss.item())
        result.rates.append((change < threshold).sum().item() / len(tokens))
        if result.rates[-1] >= converged_share:
            break
    return result


def token_forward(model: ReferenceModel, tokens: Tensor, contexts: Contexts) -> Tensor:
    """Output of the last token layer: tokens (N,), contexts as read by each layer -> (N, E)."""
    x = model.embed(tokens)
    for layer, context in zip(model.token_layers, contexts, strict=True):
        x = layer(x, x if context is None else torch.cat([context, x], dim=-1))
    return x


def full_logits(model: ReferenceModel, tokens: Tensor, contexts: Contexts) -> Tensor:
    """Logits for the token after each position: tokens (N,) -> (N, V)."""
    return token_forward(model, tokens, contexts) @ model.table.T


def batches(tokens: Tensor, contexts: Contexts, size: int) -> Iterator[tuple[Tensor, Contexts, Tensor]]:
    """Consecutive positions in order, with a target each: tokens (B,), contexts (B, D), targets (B,)."""
    num_targets = len(tokens) - 1
    for start in range(0, num_targets, size):
        stop = min(start + size, num_targets)
        rows = [None if context is None else context[start:stop] for context in contexts]
        yield tokens[start:stop], rows, tokens[start + 1 : stop + 1]


@torch.no_grad()
def evaluate(model: ReferenceModel, tokens: Tensor, contexts: Contexts, batch_size: int = 8_192) -> tuple[float, float]:
    """Mean negative log-likelihood (nats) and top-1 accuracy of the N - 1 next tokens."""
    nll, correct = 0.0, 0
    for inputs, rows, targets in batches(tokens, contexts, batch_size):
        logits = full_logits(model, inputs, rows)  # (B, V)
        nll += F.cross_entropy(logits, targets, reduction="sum").item()
        correct += int((logits.argmax(dim=1) == targets).sum())
    return nll / (len(tokens) - 1), correct / (len(tokens) - 1)


@dataclass(kw_only=True)
class Phase2Result:
    """What Phase 2 did; the best epoch's weights are in the model."""

    train_ppl: list[float] = field(default_factory=list)  # exp(mean loss per position during the epoch)
    val_ppl: list[float] = field(default_factory=list)  # after each epoch
    val_accuracy: list[float] = field(default_factory=list)
    best_epoch: int = 0  # from 1; 0: no epoch had a finite validation loss


def phase2(
    model: ReferenceModel, tokens: Tensor, val_tokens: Tensor, train_contexts: Contexts,
    val_contexts: Contexts, *, lr: float, clip: float, batch_size: int, epochs: int, patience: int,
) -> Phase2Result:  # fmt: skip
    """Fits the token layers to tokens (N,), in place, and leaves the best epoch's weights in the model."""
    parameters = list(model.token_layers.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr)
    best_nll, best_weights = math.inf, copy.deepcopy(model.token_layers.state_dict())
    result = Phase2Result()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for inputs, rows, targets in batches(tokens, train_contexts, batch_size):
            loss = F.cross_entropy(full_logits(model, inputs, rows), targets)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(parameters, clip)
            optimizer.step()
            total += loss.item() * len(targets)

        val_nll, val_accuracy = evaluate(model, val_tokens, val_contexts, batch_size)
        result.train_ppl.append(math.exp(total / (len(tokens) - 1)))
        result.val_ppl.append(math.exp(val_nll))
        result.val_accuracy.append(val_accuracy)
        if val_nll < best_nll:
            best_nll, result.best_epoch = val_nll, epoch
            best_weights = copy.deepcopy(model.token_layers.state_dict())
        elif epoch - result.best_epoch >= patience:
            break
    model.token_layers.load_state_dict(best_weights)
    return result


def twin(model: LanguageModel) -> ReferenceModel:
    """The textbook model with the same weights."""
    copy = ReferenceModel(model.config, model.table)

    def weights(block: torch.nn.Module) -> list[tuple[torch.Tensor, ...]]:
        return [(x.weight, x.bias, x.norm.weight, x.norm.bias) for x in block.layers]  # type: ignore[union-attr]

    copy.load_weights(weights(model.context_block), weights(model.token_block))
    return copy
