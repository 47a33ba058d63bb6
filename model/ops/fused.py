"""The operators of `model.ops.plain` as Triton kernels, for CUDA devices: fp32 or bf16 rows, fp32 sums.

Rows, terms and LayerNorm parameters may be padded: the first `size` of their `W` entries count, the rest are zero.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from model.ops import head_kernels
from model.ops import triton_kernels as kernels
from model.ops.build_cache import keep_kernels
from model.ops.plain import BlockGradient, Settled, Sums, join, put
from model.seeds import seed_of

__all__ = [
    "Noise", "TokenSums", "head_gradient", "join", "residual_norm", "residual_norm_backward", "settling_norm",
]  # fmt: skip
keep_kernels()  # before the first is compiled

NORM_PROGRAMS = 1 << 14  # of a kernel that goes through rows: enough to fill a GPU, each with several of them
SETTLING_PROGRAMS = 1 << 13  # of one that sums a block's rows besides
SUM_PROGRAMS = 3168  # of one that sums over rows besides: few enough to add up at once
STAGES = 3  # rows whose loads are under way while one is computed
PIECE = 256  # rows of one token that one program sums
SOFTMAX_BLOCK, SOFTMAX_WARPS = 4096, 32  # logits of a row in flight, by how many warps
SAMPLE = 1024  # logits of a row that tell how large its exponentials will be; a BPE's first tokens are its commonest


class _LogitTile(NamedTuple):
    """What one program multiplies at a time, and how; measured on an H200."""

    rows: int
    columns: int
    depth: int
    group: int  # row tiles that share the weight's tiles in the cache
    warps: int
    stages: int


LOGIT_TILE = _LogitTile(128, 256, 64, group=16, warps=8, stages=4)


def _row_warps(block: int) -> int:
    """For sums along a row: one where it fits."""
    return 1 if block <= 512 else 4


class Noise:
    """Gaussian noise of all sweeps of one seed, counted by (sweep, position, column): a pass may start anywhere."""

    def __init__(self, seed: int, std: float, size: int, device: torch.device) -> None:
        self.key, self.std, self.size = seed_of(seed, "sweep noise"), std, size

    def on_previous(self, carry: Tensor, state: Tensor, sweep: Tensor, start: int, length: int) -> Tensor:
        """As `model.ops.plain.Noise.on_previous`, in any order of calls; the pad has no noise."""
        rows, stride = state.shape
        out = torch.empty_like(state)
        quarter = triton.next_power_of_2(-(-stride // 4))
        per_program = max(1, 512 // quarter)
        kernels.noisy_previous[(triton.cdiv(rows, per_program),)](
            out, state, carry, self.key, self.std, sweep, start, rows, self.size, stride,
            ROWS=per_program, QUARTER=quarter, num_warps=2,
        )  # fmt: skip
        return out


class Saved(NamedTuple):
    """What `residual_norm_backward` computes the forward from again."""

    x: Tensor
    product: Tensor
    term: Tensor
    tokens: Tensor | None
    means: Tensor
    rstds: Tensor


def residual_norm(
    x: Tensor, product: Tensor, term: Tensor, tokens: Tensor | None, weight: Tensor, bias: Tensor, size: int
) -> tuple[Tensor, Saved]:
    """As `model.ops.plain.residual_norm`; `product` is kept as it is."""
    out = torch.empty_like(x)
    pieces = _pieces(NORM_PROGRAMS, len(x), x.shape[1])
    means, rstds = _residual_norm(out, x, product, term, tokens, weight, bias, size, len(x), pieces)
    return out, Saved(x, product, term, tokens, means, rstds)


def settling_norm(
    state: Tensor, num_blocks: int, threshold: float,
    x: Tensor, product: Tensor, term: Tensor, tokens: Tensor | None, weight: Tensor, bias: Tensor, size: int,
) -> tuple[Settled, Saved]:  # fmt: skip
    """As `model.ops.plain.settling_norm`; moments from fp32 sums of differences from `bias`, added up in fp64."""
    rows, stride = x.shape
    length = rows // num_blocks
    pieces = _pieces(SETTLING_PROGRAMS // num_blocks, length, stride)
    sums = torch.empty(num_blocks, pieces, triton.next_power_of_2(stride), device=x.device)
    squares = torch.empty(num_blocks, pieces, device=x.device)
    still = torch.empty(num_blocks * pieces, dtype=torch.int32, device=x.device)
    means, rstds = _residual_norm(
        state, x, product, term, tokens, weight, bias, size, length, pieces, (still, sums, squares), threshold * size
    )
    offset = sums.sum(dim=1, dtype=torch.float64)[:, :stride] / length  # of each block's mean from `bias`
    deviation = squares.sum(dim=1, dtype=torch.float64) - length * offset.square().sum(dim=1)
    settled = Settled(still.sum(), (offset + bias).float(), deviation.clamp(min=0).sqrt().float())
    return settled, Saved(x, product, term, tokens, means, rstds)


def _pieces(programs: int, rows: int, stride: int) -> int:
    """How many programs go through `rows` rows."""
    return max(1, min(programs // _row_warps(triton.next_power_of_2(stride)), rows))


def _residual_norm(
    out: Tensor, x: Tensor, product: Tensor, term: Tensor, tokens: Tensor | None, weight: Tensor, bias: Tensor,
    size: int, length: int, pieces: int, moments: tuple[Tensor, Tensor, Tensor] | None = None, limit: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Each row's mean and inverse deviation; `out` and `moments` are written.  # (n,), (n,)"""
    rows, stride = x.shape
    block = triton.next_power_of_2(stride)
    means, rstds = torch.empty(rows, device=x.device), torch.empty(rows, device=x.device)
    kernels.residual_norm[(rows // length * pieces,)](
        out, means, rstds, *(moments or (out, out, out)), limit,
        x, product, term, term if tokens is None else tokens, weight, bias, length, pieces, size, stride,
        GATHER=tokens is not None, SETTLE=moments is not None,
        BLOCK=block, STAGES=STAGES, num_warps=_row_warps(block),
    )  # fmt: skip
    return means, rstds


def residual_norm_backward(
    grad: Tensor | BlockGradient, saved: Saved, weight: Tensor, bias: Tensor, size: int, want_x: bool = True,
    into: Sums | None = None,
) -> tuple[Tensor, Tensor, Sums]:  # fmt: skip
    """As `model.ops.plain.residual_norm_backward`."""
    x, product, term, tokens, means, rstds = saved
    rows, stride = x.shape
    block = triton.next_power_of_2(stride)
    programs = _pieces(SUM_PROGRAMS, rows, stride)
    partials = torch.empty(programs, 3, block, device=x.device)
    grad_product = torch.empty_like(x)
    grad_x = torch.empty_like(x) if want_x else grad_product
    if isinstance(grad, BlockGradient):
        dense, scale, shift, length = x, grad.scale, grad.shift, grad.length
    else:
        dense, scale, shift, length = grad, x, x, 1  # the last three are not read
    kernels.residual_norm_backward[(programs,)](
        grad_x, grad_product, partials, dense, scale, shift, length, means, rstds,
        x, product, term, term if tokens is None else tokens, weight, bias, rows, programs, size, stride,
        AFFINE=isinstance(grad, BlockGradient), GATHER=tokens is not None, WANT_X=want_x,
        BLOCK=block, STAGES=STAGES, num_warps=_row_warps(block),
    )  # fmt: skip
    sums = partials.sum(dim=0)[:, :size]
    return grad_x, grad_product, put((sums[0], sums[1], sums[2]), into)


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


def head_gradient(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, count: int, losses: Tensor, gradient: Tensor
) -> None:
    """As `model.ops.plain.head_gradient`."""
    on_logits, losses[:], sums = logit_gradient(hidden, weight, targets, vocab_size)
    torch.mm(on_logits, weight, out=gradient)
    divide_rows_(gradient, sums, count)


def logit_gradient(hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """`softmax_gradient_` of `hidden @ weight.T`; the logits themselves are never written where the GPU can do without.

    There a row's sum is of exponentials less the largest logit among its target's and the first `SAMPLE` tokens'. A
    loss of more than 88 nats that those do not foresee is infinite: the run has diverged.
    """
    if not _takes_descriptors(hidden, len(weight)):
        logits = hidden @ weight.T
        return logits, *softmax_gradient_(logits, targets, vocab_size)
    (rows, width), columns, tile = hidden.shape, len(weight), LOGIT_TILE
    origins, at_targets, losses, totals = (torch.empty(rows, device=hidden.device) for _ in range(4))
    sampled = min(SAMPLE, vocab_size)
    sample = hidden @ weight[:sampled].T
    head_kernels.row_origins[(rows,)](
        origins, at_targets, sample, hidden, weight, targets, sampled, width, sampled,
        SAMPLE=triton.next_power_of_2(sampled), BLOCK=triton.next_power_of_2(width),
    )  # fmt: skip
    shares = torch.empty(rows, columns, dtype=hidden.dtype, device=hidden.device)
    column_tiles = triton.cdiv(columns, tile.columns)
    sums = torch.empty(column_tiles, rows, device=hidden.device)
    programs = torch.cuda.get_device_properties(hidden.device).multi_processor_count if hidden.is_cuda else 2
    head_kernels.exponentials[(min(programs, triton.cdiv(rows, tile.rows) * column_tiles),)](
        TensorDescriptor.from_tensor(shares, [tile.rows, tile.columns // 2]), sums,
        TensorDescriptor.from_tensor(hidden, [tile.rows, tile.depth]),
        TensorDescriptor.from_tensor(weight, [tile.columns, tile.depth]),
        origins, rows, columns, vocab_size, WIDTH=width,
        BM=tile.rows, BN=tile.columns, BK=tile.depth, GROUP=tile.group, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    head_kernels.finish_softmax[(triton.cdiv(rows, 32),)](
        losses, totals, shares, sums, origins, at_targets, targets, rows, column_tiles, columns, ROWS=32, TILES=32
    )
    return shares, losses, totals


def _takes_descriptors(hidden: Tensor, columns: int) -> bool:
    """Whether tiles can be copied in bulk: by rows of whole 16 bytes, on data-centre GPUs since compute capability 9.0.

    Others have no such copies, or too little shared memory for `LOGIT_TILE`.
    """
    if hidden.shape[1] * hidden.element_size() % 16 or columns * hidden.element_size() % 16:
        return False
    if not hidden.is_cuda:  # interpreted: its products of bf16 are wrong
        return hidden.dtype == torch.float32
    return hidden.dtype == torch.bfloat16 and torch.cuda.get_device_capability(hidden.device)[0] in (9, 10)


def softmax_gradient_(logits: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """As `model.ops.plain.softmax_gradient_`."""
    losses = torch.empty(len(logits), device=logits.device)
    scales = torch.empty_like(losses)  # apart: an odd length must not move it off 16 bytes, or kernels compile anew
    block = min(SOFTMAX_BLOCK, triton.next_power_of_2(logits.shape[1]))
    # The kernel works in place: no more threads than entries, or several would hold, and overwrite, the same one.
    warps = max(1, min(SOFTMAX_WARPS, block // 128))
    head_kernels.softmax_gradient[(len(logits),)](
        losses, scales, logits, targets, vocab_size, logits.shape[1], BLOCK=block, num_warps=warps
    )
    return losses, scales


def divide_rows_(rows: Tensor, by: Tensor, factor: float) -> None:
    """Divide each row by `factor` times its entry of `by`, in place.  # (n, E), (n,)"""
    stride = rows.shape[1]
    head_kernels.divide_rows[(len(rows),)](rows, by, float(factor), stride, BLOCK=triton.next_power_of_2(stride))
