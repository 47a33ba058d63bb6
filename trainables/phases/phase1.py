"""Phase 1: fit the ContextBlock by fixed-point iteration over the whole token stream."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.language_model import LanguageModel
from model.losses import block_dispersion, block_spans
from model.ops.compute import Compute
from model.ops.passes import ContextPass
from model.seeds import seeded
from trainables.config import Phase1Config
from trainables.errors import DivergedError
from trainables.phases.optimizer import FlatAdam

STATE_STD = 0.01  # of the random initial state


@dataclass(frozen=True)
class Sweep:
    """What one sweep gave."""

    number: int  # the initial state is 1, so the first real sweep is 2
    loss: float
    convergence: float  # share of positions that moved less than the threshold


@dataclass
class Phase1Result:
    """How the fit went. The fitted weights are in the model."""

    sweeps: list[Sweep]
    seconds: float
    state: Tensor | None  # (N, W) the last sweep's outputs, noise included, as operands

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


class _Stream:
    """What stays the same from sweep to sweep: tokens in passes of whole loss blocks, and the noise."""

    def __init__(self, tokens: Tensor, model: LanguageModel, config: Phase1Config, seed: int, compute: Compute) -> None:
        self.tokens, self.config, self.compute = tokens, config, compute
        row = compute.width(model.config.context_dim) * compute.operand(model.embedded[:1]).element_size()
        self.passes = _passes(len(tokens), config.block, compute.chunks.activation_bytes // row)
        self.num_blocks = sum(map(len, self.passes))
        vocab_size, size = len(model.embedded), model.config.context_dim
        self.token_sums = [compute.ops.TokenSums(tokens[p[0][0] : p[-1][1]], vocab_size) for p in self.passes]
        self.noise = compute.ops.Noise(seed, config.noise, size, tokens.device)

    def sweep(self, weights: ContextPass, state: Tensor, number: Tensor) -> Tensor:
        """Run all positions from `state` (N, W) and leave their outputs there; fills the gradients.

        Args:
            number: the sweep's, for the noise.  # () int64

        Returns:
            The loss and the share of converged positions.  # (2,) float64
        """
        figures = torch.zeros(2, dtype=torch.float64, device=state.device)
        carry = state[-1].clone()
        weights.begin()
        for spans, sums in zip(self.passes, self.token_sums, strict=True):
            start, stop = spans[0][0], spans[-1][1]
            rows = state[start:stop]
            length = spans[0][1] - spans[0][0]
            previous = self.noise.on_previous(carry, rows, number, start, length)
            carry = rows[-1].clone()
            settled, tape = weights.advance(rows, len(spans), self.config.threshold, previous, self.tokens[start:stop])
            figures[1] += settled.still
            losses, gradient = block_dispersion(settled.mean, settled.deviation, length)
            weights.backward(gradient.times(1 / self.num_blocks), tape, sums)
            figures[0] += losses.sum() / self.num_blocks
        weights.finish()
        figures[1] /= len(self.tokens)
        return figures


class Sweeps:
    """A fit under way: each `advance` is one sweep over the whole stream with its Adam step."""

    def __init__(self, model: LanguageModel, tokens: Tensor, config: Phase1Config, seed: int, compute: Compute) -> None:
        """Draw the initial state. Arguments as in `fit_phase1`."""
        self.block, self.compute = model.context_block, compute
        self.embedded = compute.operand(model.embedded)
        self.stream = _Stream(tokens, model, config, seed, compute)
        size = self.block.context_dim
        shape = len(tokens), compute.width(size)
        self.state = torch.zeros(shape, dtype=self.embedded.dtype, device=tokens.device)  # (N, W)
        self.state[:, :size].normal_(0, STATE_STD, generator=seeded(seed, "initial state", tokens.device))
        self.optimizer = FlatAdam(self.block, config.learning_rate, config.grad_clip, compute)
        self.number = torch.ones(
            (), dtype=torch.int64, device=tokens.device
        )  # of the last sweep; the initial state's 1
        self.graph: torch.cuda.CUDAGraph | None = None
        self.ready = False  # whether a sweep was made, and with it all that is made once

    def advance(self) -> list[float]:
        """Loss and share of converged positions of the next sweep.

        On a GPU all but the first are one CUDA graph: the same kernels, without the gaps between them.
        """
        if not self.ready or not (self.compute.fused and self.state.is_cuda):
            self.figures = self._sweep()
            self.ready = True
        else:
            if self.graph is None:
                torch.cuda.empty_cache()  # the graph has memory of its own
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    self.figures = self._sweep()  # recorded, not run
            self.graph.replay()
        figures: list[float] = self.figures.tolist()
        return figures

    def _sweep(self) -> Tensor:
        self.number += 1
        figures = self.stream.sweep(ContextPass(self.block, self.embedded, self.compute), self.state, self.number)
        self.optimizer.step()
        return figures


def fit_phase1(
    model: LanguageModel,
    tokens: Tensor,
    config: Phase1Config,
    seed: int,
    on_sweep: Callable[[Sweep], None] = lambda sweep: None,
    compute: Compute | None = None,
) -> Phase1Result:
    """Fit `model.context_block` in place.

    Each sweep runs all positions at once from the previous sweep's outputs plus noise, takes one Adam step
    on the dispersion loss, and ends when enough positions stand still.

    Args:
        tokens: the training stream, on the model's device.  # (N,)
        on_sweep: called after every sweep.
        compute: how; torch's operators in the model's own precision if not given.

    Raises:
        DivergedError: the loss is not finite.
    """
    began = time.perf_counter()
    fit = Sweeps(model, tokens, config, seed, compute or Compute())
    sweeps: list[Sweep] = []
    for number in range(2, config.max_sweeps + 1):
        sweep = Sweep(number, *fit.advance())
        if not math.isfinite(sweep.loss):
            raise DivergedError(f"Phase 1 diverged: the loss is {sweep.loss} at sweep {number}")
        sweeps.append(sweep)
        on_sweep(sweep)
        if sweep.convergence >= config.converged_share:
            break
    return Phase1Result(sweeps, time.perf_counter() - began, fit.state)
