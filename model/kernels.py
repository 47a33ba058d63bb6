"""Triton kernels behind `model.fused`. Sums over rows go through per-program partials: no atomics anywhere.

Common arguments: `rows` n, `width` D (entries of a row that count), `stride` W (entries from row to row). What
lies between D and W is written as zero. Counts are never specialised on, so that a last short batch compiles nothing.
"""

import triton
import triton.language as tl

NORM_EPS = tl.constexpr(1e-5)


@triton.jit
def _gelu(v):
    return 0.5 * v * (1 + tl.erf(v * 0.7071067811865476))


@triton.jit
def _gelu_slope(v):
    return 0.5 * (1 + tl.erf(v * 0.7071067811865476)) + v * 0.3989422804014327 * tl.exp(-0.5 * v * v)


@triton.jit
def _normal_pair(a, b):
    return tl.pair_uniform_to_normal(tl.uint_to_uniform_float(a), tl.uint_to_uniform_float(b))


@triton.jit(do_not_specialize=["rows", "sweep", "start"])
def noisy_previous(
    out, state, carry, seed, std, sweep, start, rows, width, stride, ROWS: tl.constexpr, QUARTER: tl.constexpr
):
    """Row t: the row before t (`carry` before the first) plus noise counted by (seed, sweep, start + t, column)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, QUARTER)[None, :]
    lane = tl.zeros([ROWS, QUARTER], tl.uint32)
    draws = tl.philox(seed, lane + (start + row).to(tl.uint32), lane + column.to(tl.uint32), lane + sweep, lane)
    first, second = _normal_pair(draws[0], draws[1])
    third, fourth = _normal_pair(draws[2], draws[3])
    for quarter in tl.static_range(4):
        noise = first if quarter == 0 else second if quarter == 1 else third if quarter == 2 else fourth
        at = column + quarter * QUARTER
        inside = (row < rows) & (at < stride)
        place = row.to(tl.int64) * stride + at
        before = tl.load(state + place - stride, mask=inside & (row > 0), other=0.0).to(tl.float32)
        before += tl.load(carry + at, mask=inside & (row == 0), other=0.0).to(tl.float32)
        value = tl.where(at < width, before + std * noise, 0.0)
        tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _normed(x, product, term, tokens, row, rows, column, inside, stride, width, GATHER: tl.constexpr):
    """Pre-activation, normalised rows and inverse deviations of a tile."""
    place = row.to(tl.int64) * stride + column
    old = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    active = tl.load(product + place, mask=inside, other=0.0).to(tl.float32)
    if GATHER:
        token = tl.load(tokens + row, mask=row < rows, other=0)
        active += tl.load(term + token.to(tl.int64) * stride + column, mask=inside, other=0.0).to(tl.float32)
    else:
        active += tl.load(term + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.where(inside, old + _gelu(active), 0.0)
    centred = tl.where(inside, total - tl.sum(total, 1)[:, None] / width, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1)[:, None] / width + NORM_EPS)
    return active, centred * rstd, rstd


@triton.jit(do_not_specialize=["rows"])
def residual_norm(
    out, x, product, term, tokens, weight, bias, rows, width, stride,
    GATHER: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """LayerNorm(x + GELU(product + term))."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    _, normed, _ = _normed(x, product, term, tokens, row, rows, column, inside, stride, width, GATHER)
    gain = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    value = tl.where(inside, normed * gain + shift, 0.0)
    place = row.to(tl.int64) * stride + column
    tl.store(out + place, value.to(out.dtype.element_ty), mask=(row < rows) & (column < stride))


@triton.jit(do_not_specialize=["rows", "length", "programs"])
def residual_norm_backward(
    grad_x, grad_product, partials, grad, scale, shift, length,
    x, product, term, tokens, weight, bias, rows, programs, width, stride,
    AFFINE: tl.constexpr, GATHER: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Both gradients; per program the sums over its rows for weight, bias and term: partials (programs, 3, BLOCK)."""
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)[None, :]
    kept = column < width
    gain = tl.load(weight + column, mask=kept, other=0.0).to(tl.float32)
    offset = tl.load(bias + column, mask=kept, other=0.0).to(tl.float32)
    weight_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    bias_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    term_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(program * ROWS, rows, programs * ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & kept
        active, normed, rstd = _normed(x, product, term, tokens, row, rows, column, inside, stride, width, GATHER)
        place = row.to(tl.int64) * stride + column
        if AFFINE:
            block = row // length
            factor = tl.load(scale + block, mask=row < rows, other=0.0)
            upper = factor * (normed * gain + offset) + tl.load(shift + block * stride + column, mask=inside, other=0.0)
            upper = tl.where(inside, upper, 0.0)
        else:
            upper = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        weight_sum += upper * normed
        bias_sum += upper
        scaled = upper * gain
        along = tl.sum(scaled * normed, 1)[:, None] / width
        level = tl.sum(scaled, 1)[:, None] / width
        through = tl.where(inside, (scaled - level - normed * along) * rstd, 0.0)
        inner = tl.where(inside, through * _gelu_slope(active), 0.0)
        term_sum += inner
        stored = (row < rows) & (column < stride)
        tl.store(grad_x + place, through.to(grad_x.dtype.element_ty), mask=stored)
        tl.store(grad_product + place, inner.to(grad_product.dtype.element_ty), mask=stored)
    lane = tl.arange(0, BLOCK)
    base = partials + program * 3 * BLOCK + lane
    tl.store(base, tl.sum(weight_sum, 0))
    tl.store(base + BLOCK, tl.sum(bias_sum, 0))
    tl.store(base + 2 * BLOCK, tl.sum(term_sum, 0))


@triton.jit(do_not_specialize=["rows"])
def settle(still, state, out, limit, rows, width, stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Overwrite state by out; mark the rows whose summed squared change is under `limit`."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < stride)
    place = row.to(tl.int64) * stride + column
    new = tl.load(out + place, mask=inside, other=0.0)
    change = new.to(tl.float32) - tl.load(state + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(state + place, new, mask=inside)
    line = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tl.store(still + line, (tl.sum(change * change, 1) < limit).to(tl.int8), mask=line < rows)


@triton.jit(do_not_specialize=["length", "pieces"])
def block_moments(sums, squares, rows, length, pieces, stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Column sums and the sum of squares of each piece of each block: sums (B, pieces, BLOCK), squares (B, pieces)."""
    block, piece = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    square = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(piece * ROWS, length, pieces * ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        place = (block * length + row).to(tl.int64) * stride + column
        value = tl.load(rows + place, mask=(row < length) & (column < stride), other=0.0).to(tl.float32)
        total += value
        square += value * value
    at = block * pieces + piece
    tl.store(sums + at * BLOCK + tl.arange(0, BLOCK), tl.sum(total, 0))
    tl.store(squares + at, tl.sum(tl.sum(square, 1), 0))


@triton.jit
def sum_pieces(partial, rows, order, begins, stride, BLOCK: tl.constexpr):
    """Sum the rows `order[begins[i] : begins[i + 1]]` into partial row i (of BLOCK entries)."""
    piece = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for at in range(tl.load(begins + piece), tl.load(begins + piece + 1)):
        row = tl.load(order + at).to(tl.int64)
        total += tl.load(rows + row * stride + column, mask=column < stride, other=0.0).to(tl.float32)
    tl.store(partial + piece * BLOCK + column, total)


@triton.jit
def add_pieces(table, partial, tokens, begins, stride, BLOCK: tl.constexpr):
    """Add the partial rows `begins[i] : begins[i + 1]` to row `tokens[i]` of the table."""
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    place = table + tl.load(tokens + program).to(tl.int64) * stride + column
    total = tl.load(place, mask=column < stride, other=0.0)
    for piece in range(tl.load(begins + program), tl.load(begins + program + 1)):
        total += tl.load(partial + piece * BLOCK + column)
    tl.store(place, total, mask=column < stride)


@triton.jit(do_not_specialize=["scale"])
def softmax_gradient(losses, logits, targets, vocab, stride, scale, BLOCK: tl.constexpr):
    """One row: its loss, and its logits overwritten by scale * (softmax - onehot). The second read hits the cache."""
    row = tl.program_id(0)
    line = logits + row.to(tl.int64) * stride
    target = tl.load(targets + row)
    at_target = tl.load(line + target).to(tl.float32)
    top = -float("inf")
    total = 0.0
    for first in range(0, stride, BLOCK):
        column = first + tl.arange(0, BLOCK)
        value = tl.load(line + column, mask=column < vocab, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(value, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(value - higher), 0)
        top = higher
    level = top + tl.log(total)
    tl.store(losses + row, level - at_target)
    for first in range(0, stride, BLOCK):
        column = first + tl.arange(0, BLOCK)
        value = tl.load(line + column, mask=column < vocab, other=-float("inf")).to(tl.float32)
        share = tl.exp(value - level) - tl.where(column == target, 1.0, 0.0)
        tl.store(line + column, (scale * share).to(logits.dtype.element_ty), mask=column < stride)
