"""The one definition of a stream's contexts: the recurrence, run from zero, without noise.

It is computed as a block Jacobi iteration. The stream is cut into chunks that are scanned side by side,
each from the last end state of its left neighbour; only chunks whose start moved are scanned again. A
fitted ContextBlock forgets its start within a chunk, so two passes are usual, each as dear as one sweep.
What still moves after `MAX_PASSES` is scanned chunk after chunk, so the result is always the recurrence.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers import ContextBlock
from model.modes import Read, Reads

CHUNK = 64  # positions scanned one after another; 0.77**64 = 5e-8 of a start survives a C=1 chunk
MAX_PASSES = 50
ROWS_PER_PASS = 262_144  # positions whose intermediate layers are computed at once; bounds memory only


@dataclass
class StreamContexts:
    """The contexts of one stream of N tokens, from which every mode reads."""

    states: Tensor  # (N+1, D) final contexts behind a zero row: [1:] current, [:-1] previous positions
    block: ContextBlock
    table: Tensor  # (V, C*D) the block's token table
    tokens: Tensor  # (N,)
    passes: int  # chunked passes taken
    residual: float  # largest change of a chunk's start that was let stand
    _layers: dict[int, Tensor] = field(default_factory=dict)

    @property
    def final(self) -> Tensor:
        """The final layer's output at every position."""  # (N, D)
        return self.states[1:]

    def read(self, reads: Reads) -> list[Tensor | None]:
        """What each token layer reads: views where they can be.  # T times (N, D) or None"""
        return [None if read is None else self._one(read) for read in reads]

    def _one(self, read: Read) -> Tensor:
        if read.layer == len(self.block.layers):
            return self.states[:-1] if read.shift else self.final
        assert read.shift == 0, "only the final context is read one position back"
        return self.layer(read.layer)

    def layer(self, number: int) -> Tensor:
        """The output of context layer `number` (1..C) at every position.  # (N, D)"""
        if number == len(self.block.layers):
            return self.final
        if number not in self._layers:
            self._layers[number] = _layer_outputs(self.block, self.table, self.tokens, self.states[:-1], number)
        return self._layers[number]


@torch.no_grad()
def _layer_outputs(block: ContextBlock, table: Tensor, tokens: Tensor, previous: Tensor, number: int) -> Tensor:
    """Layer `number`'s output where position t starts from `previous[t]`.  # (N, D)"""
    outputs = torch.empty_like(previous)
    for start in range(0, len(tokens), ROWS_PER_PASS):
        rows = slice(start, start + ROWS_PER_PASS)
        outputs[rows] = block(previous[rows], F.embedding(tokens[rows], table))[number - 1]
    return outputs


def _scan(block: ContextBlock, table: Tensor, tokens: Tensor, starts: Tensor) -> Tensor:
    """Run K chunks of L tokens side by side, one position at a time.  # (K, L), (K, D) -> (K, L, D)"""
    outputs = starts.new_empty(tokens.shape[0], tokens.shape[1], starts.shape[1])
    hidden = starts
    for position in range(tokens.shape[1]):
        hidden = block(hidden, F.embedding(tokens[:, position], table))[-1]
        outputs[:, position] = hidden
    return outputs


@torch.no_grad()
def exact_contexts(
    block: ContextBlock, embedded: Tensor, tokens: Tensor, tolerance: float, chunk: int = CHUNK
) -> StreamContexts:
    """The recurrence of `block` over one stream, from zeros.

    Args:
        embedded: normalised embedding rows.  # (V, E)
        tokens: the stream.  # (N,) int
        tolerance: a chunk whose start changed by no more than this (largest entry) is not run again.
        chunk: positions per chunk.

    Returns:
        The contexts, the number of passes, and the largest start change that was let stand.

    Products are in full precision whatever the process is set to: rounded to TF32, a state never stands still.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return _iterate(block, embedded, tokens, tolerance, chunk)
    finally:
        torch.set_float32_matmul_precision(before)


def _iterate(block: ContextBlock, embedded: Tensor, tokens: Tensor, tolerance: float, chunk: int) -> StreamContexts:
    assert tokens.ndim == 1
    assert len(tokens) > 0
    table = block.token_table(embedded)
    num_chunks = -(-len(tokens) // chunk)
    grid = F.pad(tokens, (0, num_chunks * chunk - len(tokens))).view(num_chunks, chunk)  # (K, L), tail padded
    states = table.new_zeros(1 + num_chunks * chunk, block.context_dim)  # row 0: the zero start
    outputs = states[1:].view(num_chunks, chunk, -1)  # (K, L, D)
    starts = table.new_zeros(num_chunks, block.context_dim)
    wanted = torch.zeros_like(starts)

    def moved() -> tuple[Tensor, Tensor]:
        wanted[1:] = outputs[:-1, -1]
        change = (wanted - starts).abs().amax(dim=1)  # (K,)
        # a NaN compares false with everything: count it as settled, the caller refuses it
        return (change > tolerance).nonzero().flatten(), change

    passes = 0
    active = torch.arange(num_chunks, device=tokens.device)
    while len(active) > 0 and passes < MAX_PASSES:
        starts[active] = wanted[active]
        outputs[active] = _scan(block, table, grid[active], starts[active])
        passes += 1
        active, change = moved()
    if len(active) > 0:
        for index in range(int(active[0]), num_chunks):
            start = outputs[index - 1, -1][None]  # (1, D); chunk 0 has settled in the first pass
            if (start - starts[index]).abs().max() > tolerance:
                starts[index] = start[0]
                outputs[index] = _scan(block, table, grid[index][None], start)[0]
        active, change = moved()
    residual = float(change.max())
    return StreamContexts(states[: len(tokens) + 1], block, table, tokens, passes, residual)


@torch.no_grad()
def last_sweep_contexts(block: ContextBlock, embedded: Tensor, tokens: Tensor, state: Tensor) -> StreamContexts:
    """One noiseless sweep from Phase 1's last state, position 0 from zeros: the reports' training contexts.

    Args:
        state: the final contexts after Phase 1's last sweep.  # (N, D)
    """
    table = block.token_table(embedded)
    previous = F.pad(state[:-1], (0, 0, 1, 0))  # (N, D)
    outputs = [_layer_outputs(block, table, tokens, previous, i + 1) for i in range(len(block.layers))]
    residual = float((outputs[-1] - state).abs().max())
    states = F.pad(outputs[-1], (0, 0, 1, 0))
    return StreamContexts(states, block, table, tokens, 1, residual, {i + 1: o for i, o in enumerate(outputs[:-1])})
