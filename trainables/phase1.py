"""Phase 1: fit the ContextBlock by fixed-point iteration over the whole token stream."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.language_model import LanguageModel
from model.layers import ContextBlock
from model.losses import block_dispersion, block_spans
from model.seeds import seeded
from trainables.config import Phase1Config

STATE_STD = 0.01  # of the random initial state
# Positions whose activations are held at once: bounded by memory on a GPU, by the cache on a CPU. Changes no number.
ROWS_PER_PASS = {"cuda": 262_144, "cpu": 20_000}


class DivergedError(RuntimeError):
    """A loss became NaN or infinite: the run has no result."""


@dataclass(frozen=True)
class Sweep:
    """What one sweep gave."""

    number: int  # the initial state is 1, so the first real sweep is 2
    loss: float
    convergence: float  # share of positions that moved less than the threshold


@dataclass(frozen=True)
class Phase1Result:
    """How the fit went. The fitted weights are in the model."""

    sweeps: list[Sweep]
    seconds: float
    state: Tensor  # (N, D) the last sweep's outputs, noise included

    @property
    def num_sweeps(self) -> int:
        """Sweeps taken, the initial state included."""
        return self.sweeps[-1].number


def _passes(length: int, block: int, rows: int) -> list[list[tuple[int, int]]]:
    """Loss blocks grouped so that each group's blocks are equally long and fit in memory together."""
    per_pass = max(1, rows // block)
    groups: list[list[tuple[int, int]]] = []
    for span in block_spans(length, block):
        last = groups[-1] if groups else None
        same_length = last is not None and last[0][1] - last[0][0] == span[1] - span[0]
        if last is None or not same_length or len(last) == per_pass:
            groups.append([span])
        else:
            last.append(span)
    return groups


def _sweep(
    block: ContextBlock,
    embedded: Tensor,
    tokens: Tensor,
    state: Tensor,
    config: Phase1Config,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (N, D) at all positions, the loss, and how many positions converged; fills the gradients."""
    outputs = torch.empty_like(state)
    loss, converged = state.new_zeros(()), torch.zeros((), dtype=torch.int64, device=state.device)
    table = block.token_table(embedded)  # (V, C*D)
    leaf = table.detach().requires_grad_()  # its gradient is summed over the passes, then sent on once
    groups = _passes(len(tokens), config.block, ROWS_PER_PASS[tokens.device.type])
    num_blocks = sum(map(len, groups))
    for group in groups:
        start, stop = group[0][0], group[-1][1]
        noise = torch.empty(stop - start, block.context_dim, dtype=state.dtype, device=state.device)
        for first, last in group:  # drawn block by block, so that the pass size changes no number
            noise[first - start : last - start].normal_(0, config.noise, generator=generator)
        before = state[start - 1 : stop - 1] if start else torch.cat([state[-1:], state[: stop - 1]])
        out = block(noise.add_(before), F.embedding(tokens[start:stop], leaf))[-1]  # (n, D)
        part = block_dispersion(out.view(len(group), -1, block.context_dim)).sum() / num_blocks
        part.backward()
        outputs[start:stop] = out.detach()
        change = (outputs[start:stop] - state[start:stop]).square_().mean(dim=1)
        converged += (change < config.threshold).sum()
        loss += part.detach()
    table.backward(leaf.grad)
    return outputs, loss, converged


def fit_phase1(
    model: LanguageModel,
    tokens: Tensor,
    config: Phase1Config,
    seed: int,
    on_sweep: Callable[[Sweep], None] = lambda sweep: None,
) -> Phase1Result:
    """Fit `model.context_block` in place.

    Each sweep runs all positions at once from the previous sweep's outputs plus noise, takes one Adam step
    on the dispersion loss, and ends when enough positions stand still.

    Args:
        tokens: the training stream, on the model's device.  # (N,)
        on_sweep: called after every sweep.

    Raises:
        DivergedError: the loss is not finite.
    """
    began = time.perf_counter()
    block, embedded = model.context_block, model.embedded
    generator = seeded(seed, "sweep noise", tokens.device)
    state = torch.empty(len(tokens), block.context_dim, dtype=embedded.dtype, device=tokens.device)
    state.normal_(0, STATE_STD, generator=seeded(seed, "initial state", tokens.device))
    optimizer = torch.optim.Adam(block.parameters(), lr=config.learning_rate, fused=True)
    sweeps: list[Sweep] = []
    for number in range(2, config.max_sweeps + 1):
        optimizer.zero_grad()
        state, loss, converged = _sweep(block, embedded, tokens, state, config, generator)
        nn.utils.clip_grad_norm_(block.parameters(), config.grad_clip)
        optimizer.step()
        sweep = Sweep(number, float(loss), int(converged) / len(tokens))
        if not math.isfinite(sweep.loss):
            raise DivergedError(f"Phase 1 diverged: the loss is {sweep.loss} at sweep {number}")
        sweeps.append(sweep)
        on_sweep(sweep)
        if sweep.convergence >= config.converged_share:
            break
    return Phase1Result(sweeps, time.perf_counter() - began, state)
