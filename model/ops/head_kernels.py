"""Triton kernels of the frozen head behind `model.ops.fused`: what becomes of logits. No atomics anywhere.

Counts are never specialised on, so that a last short batch compiles nothing.
"""

import triton
import triton.language as tl


@triton.jit
def softmax_gradient(losses, scales, logits, targets, vocab, stride, BLOCK: tl.constexpr):
    """One row: its loss, and its logits overwritten by the gradient times the row's sum of exponentials, in `scales`.

    The first read finds the largest logit, the second one comes from the cache; one exponential per logit.
    """
    row = tl.program_id(0)
    line = logits + row.to(tl.int64) * stride
    target = tl.load(targets + row)
    at_target = tl.load(line + target).to(tl.float32)
    highest = tl.full([BLOCK], -float("inf"), tl.float32)
    for first in range(0, stride, BLOCK):
        column = first + tl.arange(0, BLOCK)
        value = tl.load(line + column, mask=column < vocab, other=-float("inf"))
        highest = tl.maximum(highest, value.to(tl.float32))
    top = tl.max(highest, 0)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, stride, BLOCK):
        column = first + tl.arange(0, BLOCK)
        value = tl.load(line + column, mask=column < vocab, other=-float("inf")).to(tl.float32)
        share = tl.exp(value - top)
        total += share
        tl.store(line + column, share.to(logits.dtype.element_ty), mask=column < stride)
    whole = tl.sum(total, 0)
    tl.store(losses + row, top + tl.log(whole) - at_target)
    tl.store(scales + row, whole)
    tl.debug_barrier()  # the target's entry must be written last
    tl.store(line + target, (tl.exp(at_target - top) - whole).to(logits.dtype.element_ty))


@triton.jit
def row_origins(
    origins,
    at_targets,
    sample,
    hidden,
    weight,
    targets,
    sampled,
    width,
    stride,
    SAMPLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: its target's logit, and the largest of that and of the `sampled` logits at hand (n, stride)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    target = tl.load(targets + row)
    own = tl.load(hidden + row * width + column, mask=column < width, other=0.0).to(tl.float32)
    tied = tl.load(weight + target * width + column, mask=column < width, other=0.0).to(tl.float32)
    at_target = tl.sum(own * tied, 0)
    drawn = tl.arange(0, SAMPLE)
    logits = tl.load(sample + row * stride + drawn, mask=drawn < sampled, other=-float("inf")).to(tl.float32)
    tl.store(at_targets + row, at_target)
    tl.store(origins + row, tl.maximum(tl.max(logits, 0), at_target))


@triton.jit(do_not_specialize=["rows"])
def exponentials(
    shares, sums, hidden, weight, origins, rows, columns, vocab, WIDTH: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """exp(hidden @ weight.T - origin) (rows, columns), zero from `vocab` on, and its sums over each tile's columns.

    `shares`, `hidden` and `weight` are tensor descriptors; sums (tiles, rows). Each program takes tiles in turn,
    neighbours of one GROUP of row tiles first, so that what they read stays in the cache.
    """
    row_tiles = tl.cdiv(rows, BM)
    column_tiles = tl.cdiv(columns, BN)
    for tile in tl.range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0), flatten=True):
        first = tile // (GROUP * column_tiles) * GROUP
        size = tl.minimum(row_tiles - first, GROUP)
        within = tile % (GROUP * column_tiles)
        row_tile = first + within % size
        column_tile = within // size
        logits = tl.zeros([BM, BN], tl.float32)
        for k in range(0, WIDTH, BK):
            logits = tl.dot(hidden.load([row_tile * BM, k]), weight.load([column_tile * BN, k]).T, logits)
        row = row_tile * BM + tl.arange(0, BM)
        origin = tl.load(origins + row, mask=row < rows, other=0.0)[:, None]
        halves = tl.permute(tl.reshape(logits, (BM, 2, BN // 2)), (0, 2, 1))
        left, right = tl.split(halves)  # the tile leaves in two parts: half the memory on its way out
        column = column_tile * BN + tl.arange(0, BN // 2)[None, :]
        left = tl.where(column < vocab, tl.exp(left - origin), 0.0)
        shares.store([row_tile * BM, column_tile * BN], left.to(shares.dtype))
        right = tl.where(column + BN // 2 < vocab, tl.exp(right - origin), 0.0)
        shares.store([row_tile * BM, column_tile * BN + BN // 2], right.to(shares.dtype))
        tl.store(sums + column_tile * rows + row, tl.sum(left, 1) + tl.sum(right, 1), mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def finish_softmax(
    losses, totals, shares, sums, origins, at_targets, targets, rows, tiles, columns,
    ROWS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Each row's loss and sum of exponentials, and that sum taken off its target's share."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    gathered = tl.zeros([TILES, ROWS], tl.float32)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)[:, None]
        gathered += tl.load(sums + tile * rows + row[None, :], mask=(tile < tiles) & inside[None, :], other=0.0)
    total = tl.where(inside, tl.sum(gathered, 0), 1.0)
    origin = tl.load(origins + row, mask=inside, other=0.0)
    at_target = tl.load(at_targets + row, mask=inside, other=0.0)
    tl.store(losses + row, tl.log(total) + origin - at_target, mask=inside)
    tl.store(totals + row, total, mask=inside)
    target = tl.load(targets + row, mask=inside, other=0)
    share = tl.exp(at_target - origin) - total
    tl.store(shares + row.to(tl.int64) * columns + target, share.to(shares.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["factor"])
def divide_rows(rows, by, factor, stride, BLOCK: tl.constexpr):
    """Divide a row by factor * by[row]."""
    row = tl.program_id(0)
    place = rows + row.to(tl.int64) * stride + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < stride
    value = tl.load(place, mask=inside, other=0.0).to(tl.float32) / (factor * tl.load(by + row))
    tl.store(place, value.to(rows.dtype.element_ty), mask=inside)
