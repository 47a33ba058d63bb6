"""The operators of `model.plain` as Triton kernels, for CUDA devices: fp32 or bf16 rows, fp32 sums.

Rows may be padded: of `W` entries the first `D` count (as many as the LayerNorm has), the rest are zero.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from model import kernels
from model.plain import BlockGradient
from model.seeds import seed_of

SUM_PROGRAMS = 1024  # of a kernel that sums over rows: enough to fill a GPU, few enough to add up at once
PIECE = 64  # rows of one token that one program sums
SOFTMAX_BLOCK = 8192  # logits in flight per row


def _tile(stride: int) -> tuple[int, int, int]:
    """Rows and columns of one program's tile, and its warps."""
    block = triton.next_power_of_2(stride)
    return max(1, 2048 // block), block, 4 if block <= 1024 else 8


class Noise:
    """Gaussian noise of all sweeps of one seed, counted by (sweep, position, column): a pass may start anywhere."""

    def __init__(self, seed: int, std: float, size: int, device: torch.device) -> None:
        self.key, self.std, self.size = seed_of(seed, "sweep noise"), std, size

    def on_previous(self, carry: Tensor, state: Tensor, sweep: int, start: int, length: int) -> Tensor:
        """As `model.plain.Noise.on_previous`, in any order of calls; the pad has no noise."""
        rows, stride = state.shape
        out = torch.empty_like(state)
        quarter = triton.next_power_of_2(-(-stride // 4))
        per_program = max(1, 1024 // quarter)
        kernels.noisy_previous[(triton.cdiv(rows, per_program),)](
            out, state, carry, self.key, self.std, sweep, start, rows, self.size, stride,
            ROWS=per_program, QUARTER=quarter,
        )  # fmt: skip
        return out


class Saved(NamedTuple):
    """What `residual_norm_backward` computes the forward from again."""

    x: Tensor
    product: Tensor
    term: Tensor
    tokens: Tensor | None


def residual_norm(
    x: Tensor, product: Tensor, term: Tensor, tokens: Tensor | None, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Saved]:
    """As `model.plain.residual_norm`; `product` is kept as it is."""
    rows, stride = x.shape
    per_program, block, warps = _tile(stride)
    out = torch.empty_like(x)
    kernels.residual_norm[(triton.cdiv(rows, per_program),)](
        out, x, product, term, term if tokens is None else tokens, weight, bias, rows, len(weight), stride,
        GATHER=tokens is not None, ROWS=per_program, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return out, Saved(x, product, term, tokens)


def residual_norm_backward(
    grad: Tensor | BlockGradient, saved: Saved, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `model.plain.residual_norm_backward`."""
    x, product, term, tokens = saved
    rows, stride = x.shape
    per_program, block, warps = _tile(stride)
    programs = min(SUM_PROGRAMS, triton.cdiv(rows, per_program))
    partials = torch.empty(programs, 3, block, device=x.device)
    grad_x, grad_product = torch.empty_like(x), torch.empty_like(x)
    affine = isinstance(grad, BlockGradient)
    if isinstance(grad, BlockGradient):
        dense, scale, shift, length = x, grad.scale, grad.shift, grad.length
    else:
        dense, scale, shift, length = grad, x, x, 1  # the last three are not read
    kernels.residual_norm_backward[(programs,)](
        grad_x, grad_product, partials, dense, scale, shift, length,
        x, product, term, term if tokens is None else tokens, weight, bias, rows, programs, len(weight), stride,
        AFFINE=affine, GATHER=tokens is not None, ROWS=per_program, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    sums = partials.sum(dim=0)[:, : len(weight)]
    return grad_x, grad_product, sums[0], sums[1], sums[2]


def settle(state: Tensor, out: Tensor, threshold: float, size: int) -> Tensor:
    """As `model.plain.settle`."""
    rows, stride = state.shape
    per_program, block, warps = _tile(stride)
    still = torch.empty(rows, dtype=torch.int8, device=state.device)
    kernels.settle[(triton.cdiv(rows, per_program),)](
        still, state, out, threshold * size, rows, size, stride, ROWS=per_program, BLOCK=block, num_warps=warps
    )
    return still.sum(dtype=torch.int64)


def spread(rows: Tensor, num_blocks: int) -> tuple[Tensor, Tensor]:
    """As `model.plain.spread`, from fp32 sums added up in fp64."""
    length, stride = len(rows) // num_blocks, rows.shape[1]
    per_program, block, warps = _tile(stride)
    pieces = max(1, min(length // 64, 2 * SUM_PROGRAMS // num_blocks))
    sums = torch.empty(num_blocks, pieces, block, device=rows.device)
    squares = torch.empty(num_blocks, pieces, device=rows.device)
    kernels.block_moments[(num_blocks, pieces)](
        sums, squares, rows, length, pieces, stride, ROWS=per_program, BLOCK=block, num_warps=warps
    )
    mean = sums.sum(dim=1, dtype=torch.float64)[:, :stride] / length
    deviation = squares.sum(dim=1, dtype=torch.float64) - length * mean.square().sum(dim=1)
    return mean.float(), deviation.clamp(min=0).sqrt().float()


class TokenSums:
    """Sums of rows by token, for one pass of a stream: rows in the order of their tokens, in pieces of `PIECE`."""

    def __init__(self, tokens: Tensor, vocab_size: int) -> None:
        ordered, self.order = tokens.sort(stable=True)
        self.tokens, counts = torch.unique_consecutive(ordered, return_counts=True)
        pieces = (counts + PIECE - 1) // PIECE
        zero = counts.new_zeros(1)
        self.piece_begins = torch.cat([zero, pieces.cumsum(0)])  # of each token, then the end
        within = torch.arange(int(pieces.sum()), device=tokens.device) - self.piece_begins[:-1].repeat_interleave(
            pieces
        )
        first = (counts.cumsum(0) - counts).repeat_interleave(pieces)
        self.row_begins = torch.cat([first + PIECE * within, zero + len(tokens)])  # of each piece, then the end

    def add_to(self, table: Tensor, rows: Tensor) -> None:
        """Add row t to `table[tokens[t]]`, in fp32.  # (V, W), (n, W)"""
        stride = rows.shape[1]
        block = triton.next_power_of_2(stride)
        partial = torch.empty(len(self.row_begins) - 1, block, device=rows.device)
        kernels.sum_pieces[(len(partial),)](partial, rows, self.order, self.row_begins, stride, BLOCK=block)
        kernels.add_pieces[(len(self.tokens),)](table, partial, self.tokens, self.piece_begins, stride, BLOCK=block)


def softmax_gradient_(logits: Tensor, targets: Tensor, vocab_size: int, scale: float) -> Tensor:
    """As `model.plain.softmax_gradient_`."""
    losses = torch.empty(len(logits), device=logits.device)
    block = min(SOFTMAX_BLOCK, triton.next_power_of_2(logits.shape[1]))
    kernels.softmax_gradient[(len(logits),)](
        losses, logits, targets, vocab_size, logits.shape[1], scale, BLOCK=block, num_warps=8
    )
    return losses
