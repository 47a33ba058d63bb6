"""Triton kernels behind `model.fused`. Sums over rows go through per-program partials: no atomics anywhere.

Common arguments: `rows` n, `width` D (entries of a row that count), `stride` W (entries from row to row). What
lies between D and W is zero, is read as such and written as such: a mask at W, a multiple of 16, leaves loads 16 bytes
wide, one at D does not. Counts are never specialised on, so that a last short batch compiles nothing.
"""

import triton
import triton.language as tl

from model import plain

NORM_EPS = tl.constexpr(plain.NORM_EPS)
ROUNDS = tl.constexpr(7)  # of Philox: as many as pass all statistical tests (Salmon et al., 2011)


@triton.jit
def _gelu_parts(v):
    """Phi(v), the standard normal distribution, and v * its density: GELU is v * Phi, its slope the sum of both.

    erf as in Abramowitz & Stegun 7.1.26, within 1.5e-7; its exponential is the density's.
    """
    root = tl.rsqrt(1.0 + 0.23164188 * tl.abs(v))  # squared it is the series' 1 / (1 + p |v| / sqrt 2)
    t = root * root
    bell = tl.exp2(v * v * -0.7213475204444817)  # exp(-v^2 / 2)
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    tail = 0.5 * series * bell
    return tl.where(v < 0, tail, 1.0 - tail), v * bell * 0.3989422804014327


@triton.jit
def _normal_pair(a, b):
    """Two normal numbers from two random words: Box & Muller, with the angle's sine and cosine by double angle."""
    radius = tl.sqrt(-1.3862943611198906 * tl.log2((a.to(tl.float32) + 0.5) * 2.3283064365386963e-10))
    half = b.to(tl.int32, bitcast=True).to(tl.float32) * 2.3283064365386963e-10  # of the angle, in [-1/2, 1/2) pi
    x = half * half
    sine = half * ((((0.0821459 * x - 0.5992645) * x + 2.550164) * x - 5.1677128) * x + 3.1415927)
    cosine = ((((-0.0258069 * x + 0.2353306) * x - 1.3352628) * x + 4.0587121) * x - 4.9348022) * x + 1.0
    return radius * (cosine * cosine - sine * sine), radius * (2.0 * sine * cosine)


@triton.jit(do_not_specialize=["seed", "rows", "start"])
def noisy_previous(
    out, state, carry, seed, std, sweep, start, rows, width, stride, ROWS: tl.constexpr, QUARTER: tl.constexpr
):
    """Row t: the row before t (`carry` before the first) plus noise counted by (seed, sweep, start + t, column).

    `sweep` is read from memory: a recorded launch draws new noise each time.
    """
    number = tl.load(sweep).to(tl.uint32)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, QUARTER)[None, :]
    lane = tl.zeros([ROWS, QUARTER], tl.uint32)
    draws = tl.philox(
        seed, lane + (start + row).to(tl.uint32), lane + column.to(tl.uint32), lane + number, lane, ROUNDS
    )
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
def _add_pairs(a, b, c, d):
    return a + c, b + d


@triton.jit
def _total(x, product, term, tokens, row, column, inside, rows, stride, GATHER: tl.constexpr):
    """x + GELU(product + term) of a tile, and the GELU's slope; a pad gives 0 and a half."""
    place = row.to(tl.int64) * stride + column
    old = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    active = tl.load(product + place, mask=inside, other=0.0).to(tl.float32)
    if GATHER:
        token = tl.load(tokens + row, mask=row < rows, other=0).to(tl.int64)
        active += tl.load(term + token * stride + column, mask=inside, other=0.0).to(tl.float32)
    else:
        active += tl.load(term + column, mask=inside, other=0.0).to(tl.float32)
    share, bell = _gelu_parts(active)
    return old + active * share, share + bell


@triton.jit(do_not_specialize=["length", "pieces"])
def residual_norm(
    out, means, rstds, still, sums, squares, limit, x, product, term, tokens, weight, bias, length, pieces,
    width, stride, GATHER: tl.constexpr, SETTLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """LayerNorm(x + GELU(product + term)), and each row's mean and inverse deviation; `pieces` programs a block.

    SETTLE: out holds older rows. Each piece of a block of `length` rows counts those whose summed squared change is
    under `limit`, and sums its new rows' columns and squares, as differences from `bias`: still (B * pieces),
    sums (B * pieces, BLOCK), squares (B * pieces).
    """
    program = tl.program_id(0)
    begin = program // pieces * length
    end = begin + length
    column = tl.arange(0, BLOCK)[None, :]
    gain = tl.load(weight + column, mask=column < stride, other=0.0)
    shift = tl.load(bias + column, mask=column < stride, other=0.0)
    if SETTLE:
        count = tl.zeros([ROWS], tl.int32)
        column_sum = tl.zeros([ROWS, BLOCK], tl.float32)
        square_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in tl.range(begin + program % pieces * ROWS, end, pieces * ROWS, num_stages=STAGES):
        line = first + tl.arange(0, ROWS)
        row = line[:, None]
        inside = (row < end) & (column < stride)
        total, _ = _total(x, product, term, tokens, row, column, inside, end, stride, GATHER)
        mean = tl.sum(total, 1) / width
        centred = tl.where(column < width, total - mean[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, 1) / width + NORM_EPS)
        tl.store(means + line, mean, mask=line < end)
        tl.store(rstds + line, rstd, mask=line < end)
        value = centred * rstd[:, None] * gain + shift  # a pad has neither gain nor shift
        value = value.to(out.dtype.element_ty)
        place = row.to(tl.int64) * stride + column
        if SETTLE:
            new = value.to(tl.float32)
            change = new - tl.load(out + place, mask=inside, other=0.0).to(tl.float32)
            count += ((tl.sum(change * change, 1) < limit) & (line < end)).to(tl.int32)
            apart = tl.where(inside, new - shift, 0.0)
            column_sum += apart
            square_sum += apart * apart
        tl.store(out + place, value, mask=inside)
    if SETTLE:
        tl.store(still + program, tl.sum(count, 0))
        tl.store(sums + program * BLOCK + tl.arange(0, BLOCK), tl.sum(column_sum, 0))
        tl.store(squares + program, tl.sum(tl.sum(square_sum, 1), 0))


@triton.jit(do_not_specialize=["rows", "length", "programs"])
def residual_norm_backward(
    grad_x, grad_product, partials, grad, scale, shift, length,
    means, rstds, x, product, term, tokens, weight, bias, rows, programs, width, stride,
    AFFINE: tl.constexpr, GATHER: tl.constexpr, WANT_X: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Both gradients; per program the sums over its rows for weight, bias and term: partials (programs, 3, BLOCK)."""
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)[None, :]
    gain = tl.load(weight + column, mask=column < stride, other=0.0)
    offset = tl.load(bias + column, mask=column < stride, other=0.0)
    weight_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    bias_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    term_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in tl.range(program * ROWS, rows, programs * ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (column < stride)
        total, slope = _total(x, product, term, tokens, row, column, inside, rows, stride, GATHER)
        rstd = tl.load(rstds + row, mask=row < rows, other=0.0)
        normed = (total - tl.load(means + row, mask=row < rows, other=0.0)) * rstd
        place = row.to(tl.int64) * stride + column
        if AFFINE:
            block = row // length
            upper = tl.load(scale + block, mask=row < rows, other=0.0) * (normed * gain + offset)
            upper += tl.load(shift + block * stride + column, mask=inside, other=0.0)
        else:
            upper = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        weight_sum += upper * normed
        bias_sum += upper
        scaled = upper * gain
        along, level = tl.reduce((scaled * normed, scaled), 1, _add_pairs)
        through = (scaled - level[:, None] / width - normed * (along[:, None] / width)) * rstd
        through = tl.where((row < rows) & (column < width), through, 0.0)
        inner = through * slope
        term_sum += inner
        if WANT_X:
            tl.store(grad_x + place, through.to(grad_x.dtype.element_ty), mask=inside)
        tl.store(grad_product + place, inner.to(grad_product.dtype.element_ty), mask=inside)
    lane = tl.arange(0, BLOCK)
    base = partials + program * 3 * BLOCK + lane
    tl.store(base, tl.sum(weight_sum, 0))
    tl.store(base + BLOCK, tl.sum(bias_sum, 0))
    tl.store(base + 2 * BLOCK, tl.sum(term_sum, 0))


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
