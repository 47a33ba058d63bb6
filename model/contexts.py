"""The one definition of a stream's contexts: the recurrence, run from zero, without noise.

It is computed as a block Jacobi iteration. The stream is cut into chunks that are scanned side by side,
each from the last end state of its left neighbour; only chunks whose start moved are scanned again. A
fitted ContextBlock forgets its start within a chunk, so two passes are usual, each as dear as one sweep.
What still moves after `MAX_PASSES` is scanned chunk after chunk, so the result is always the recurrence.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers import ContextBlock
from model.modes import Read, Reads
from model.ops.compute import Compute
from model.ops.passes import ContextPass

CHUNK = 64  # positions scanned one after another; 0.77**64 = 5e-8 of a start survives a C=1 chunk
MAX_PASSES = 50


@dataclass
class StreamContexts:
    """The contexts of one stream of N tokens, from which every mode reads; kept as operands, `width` entries wide."""

    states: Tensor  # (N+1, W) final contexts behind the start's row: [1:] current, [:-1] previous positions
    weights: ContextPass  # in full precision
    tokens: Tensor  # (N,)
    passes: int  # chunked passes taken
    residual: float  # residual at termination: largest change of a chunk's start state
    _layers: dict[int, Tensor] = field(default_factory=dict)

    @property
    def final(self) -> Tensor:
        """The final layer's output at every position."""  # (N, D)
        return self.states[1:, : self.weights.block.context_dim]

    def read(self, reads: Reads) -> list[Tensor | None]:
        """What each token layer reads: views where they can be.  # T times (N, W) or None"""
        return [None if read is None else self._one(read) for read in reads]

    def _one(self, read: Read) -> Tensor:
        if read.layer == len(self.weights.block.layers):
            return self.states[:-1] if read.shift else self.states[1:]
        assert read.shift == 0, "only the final context is read one position back"
        if read.layer not in self._layers:
            self._layers[read.layer] = _layer_outputs(self.weights, self.tokens, self.states[:-1], read.layer)
        return self._layers[read.layer]

    def layer(self, number: int) -> Tensor:
        """The output of context layer `number` (1..C) at every position.  # (N, D)"""
        return self._one(Read(number, 0))[:, : self.weights.block.context_dim]


@contextmanager
def full_products() -> Iterator[None]:
    """Products in full precision whatever the process is set to: rounded to TF32, a state never stands still."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
@full_products()
def _layer_outputs(weights: ContextPass, tokens: Tensor, previous: Tensor, number: int) -> Tensor:
    """Layer `number`'s output where position t starts from the kept `previous[t]`.  # (N, W), kept as that is"""
    outputs = torch.empty_like(previous)
    step = weights.compute.chunks.context_rows
    for start in range(0, len(tokens), step):
        rows = slice(start, start + step)
        outputs[rows] = weights.forward(previous[rows].to(weights.terms[0].dtype), tokens[rows], number)[-1]
    return outputs


class _Scan:
    """Chunks of one stream, scanned side by side one position at a time."""

    def __init__(
        self, weights: ContextPass, tokens: Tensor, chunk: int, kept: torch.dtype, start: Tensor | None
    ) -> None:
        self.weights = weights
        self.num_chunks = -(-len(tokens) // chunk)
        grid = F.pad(tokens, (0, self.num_chunks * chunk - len(tokens))).view(self.num_chunks, chunk)
        self.columns = grid.T.contiguous()  # (L, K), the tail padded
        width, like = weights.width, weights.terms[0]
        self.states = like.new_zeros(1 + self.num_chunks * chunk, width, dtype=kept)  # row 0: the start
        self.outputs = self.states[1:].view(self.num_chunks, chunk, width)
        self.starts = like.new_zeros(self.num_chunks, width)
        if start is not None:
            self.states[0, : len(start)] = start
            self.starts[0, : len(start)] = start
        self.ends = torch.zeros_like(self.starts)

    def run(self, chunks: Tensor | slice) -> None:
        """Scan some chunks from their starts."""
        hidden = self.starts[chunks]
        for position, tokens in enumerate(self.columns):
            hidden = self.weights.forward(hidden, tokens[chunks])[-1]
            self.outputs[chunks, position] = hidden.to(self.outputs.dtype)
        self.ends[chunks] = hidden

    def moved(self) -> Tensor:
        """By how much each chunk's start differs from its left neighbour's end.  # (K,)"""
        change = torch.zeros_like(self.starts)  # the first chunk's start is given
        change[1:] = self.starts[1:] - self.ends[:-1]
        return change.abs_().amax(dim=1)

    def again(self, chunks: Tensor) -> None:
        """Scan some chunks, never the first one, from where their left neighbours ended."""
        if len(chunks) == self.num_chunks - 1:  # usual in the second pass: slices are views
            self.starts[1:] = self.ends[:-1]
            self.run(slice(1, None))
        else:
            self.starts[chunks] = self.ends[chunks - 1]
            self.run(chunks)


@torch.no_grad()
@full_products()
def exact_contexts(
    block: ContextBlock,
    embedded: Tensor,
    tokens: Tensor,
    tolerance: float,
    compute: Compute | None = None,
    chunk: int = CHUNK,
    start: Tensor | None = None,
) -> StreamContexts:
    """The recurrence of `block` over one stream, from zeros unless it goes on from another stream's end.

    Args:
        embedded: normalised embedding rows, as the parameters.  # (V, E)
        tokens: the stream.  # (N,) int
        tolerance: a chunk whose start changed by no more than this (largest entry) is not run again.
        compute: how the contexts will be used: they are computed in full precision, and kept as its operands.
        chunk: positions per chunk.
        start: the final context before the first token.  # (D,)

    Returns:
        The contexts, the number of passes, and the residual at termination.
    """
    assert tokens.ndim == 1
    assert len(tokens) > 0
    compute = compute or Compute()
    weights = ContextPass(block, embedded, compute.full())
    scan = _Scan(weights, tokens, chunk, compute.operand(embedded[:1]).dtype, start)
    passes, residual = _iterate(scan, tolerance)
    return StreamContexts(scan.states[: len(tokens) + 1], weights, tokens, passes, residual)


def _iterate(scan: _Scan, tolerance: float) -> tuple[int, float]:
    """Run `scan` until it stands still; passes taken, and the residual at termination."""
    scan.run(slice(None))
    for passes in range(1, MAX_PASSES + 1):
        change = scan.moved()
        # a NaN compares false with everything: count it as settled, the caller refuses it
        active = (change > tolerance).nonzero().flatten()
        if len(active) == 0:
            return passes, float(change.max())
        if passes < MAX_PASSES:
            scan.again(active)
    for index in range(int(active[0]), scan.num_chunks):
        if (scan.ends[index - 1] - scan.starts[index]).abs().max() > tolerance:
            scan.again(active.new_tensor([index]))
    return passes, float(scan.moved().max())


@torch.no_grad()
@full_products()
def last_sweep_contexts(
    block: ContextBlock, embedded: Tensor, tokens: Tensor, state: Tensor, compute: Compute | None = None
) -> StreamContexts:
    """One noiseless sweep from Phase 1's last state, position 0 from zeros: the reports' training contexts.

    Args:
        state: the final contexts after Phase 1's last sweep.  # (N, W)
    """
    weights = ContextPass(block, embedded, (compute or Compute()).full())
    previous = F.pad(state[:-1], (0, 0, 1, 0))  # (N, W)
    layers = range(1, len(block.layers) + 1)
    *inner, final = (_layer_outputs(weights, tokens, previous, number) for number in layers)
    residual = float((final - state).abs().max())
    return StreamContexts(
        F.pad(final, (0, 0, 1, 0)), weights, tokens, 1, residual, {i + 1: o for i, o in enumerate(inner)}
    )
