"""Triton kernels behind `model.ops.fused`, but for those of the head. Sums over rows go through partials: no atomics.

Common arguments: `rows` n, `width` D (entries of a row that count), `stride` W (entries from row to row). What
lies between D and W is zero, is read as such and written as such: a mask at W, a multiple of 16, leaves loads 16 bytes
wide, one at D does not. Counts are never specialised on, so that a last short batch compiles nothing.

These kernels are held up by the instructions they issue as much as by memory: masks that are always true are left out,
and logarithm, sine and cosine of the noise are the hardware's.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from model.ops import plain

NORM_EPS = tl.constexpr(plain.NORM_EPS)
ROUNDS = tl.constexpr(7)  # of Philox: as many as pass all statistical tests (Salmon et al., 2011)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # without a GPU: torch's functions for the hardware's


@triton.jit
def _exp2(v):
    """2^v; what is too small for a normal number is 0."""
    return tl.exp2(v) if INTERPRETED else libdevice.exp2(v)


@triton.jit
def _gelu_parts(v):
    """Phi(v), the standard normal distribution, and v * its density: GELU is v * Phi, its slope the sum of both.

    erf as in Abramowitz & Stegun 7.1.26, within 1.5e-7, its coefficients halved; its exponential is the density's.
    """
    root = tl.rsqrt(1.0 + 0.23164188 * tl.abs(v))  # squared it is the series' 1 / (1 + p |v| / sqrt 2)
    t = root * root
    bell = _exp2(v * v * -0.7213475204444817)  # exp(-v^2 / 2)
    series = ((((0.5307027145 * t - 0.7265760135) * t + 0.7107068705) * t - 0.142248368) * t + 0.127414796) * t
    tail = series * bell
    return tl.where(v < 0, tail, 1.0 - tail), v * bell * 0.3989422804014327


@triton.jit
def _philox(seed, first, second, third):
    """Four random words for each counter (first, second, third, 0): Philox 4x32 (Salmon et al., 2011).

    As `tl.philox`, but with products of 64 bits, which are one instruction where their halves are two.
    """
    wide = tl.cast(seed, tl.uint64)
    key, other_key = wide.to(tl.uint32), (wide >> 32).to(tl.uint32)
    fourth = tl.zeros_like(first)
    for _ in tl.static_range(ROUNDS):
        left = first.to(tl.uint64) * 0xD2511F53
        right = third.to(tl.uint64) * 0xCD9E8D57
        first = (right >> 32).to(tl.uint32) ^ second ^ key
        third = (left >> 32).to(tl.uint32) ^ fourth ^ other_key
        second = right.to(tl.uint32)
        fourth = left.to(tl.uint32)
        key += 0x9E3779B9
        other_key += 0xBB67AE85
    return first, second, third, fourth


@triton.jit
def _normal_pair(a, b):
    """Two normal numbers from two random words (Box & Muller)."""
    uniform = (a.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    angle = b.to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09  # in [-pi, pi)
    bits = tl.log2(uniform) if INTERPRETED else libdevice.fast_log2f(uniform)
    cosine = tl.cos(angle) if INTERPRETED else libdevice.fast_cosf(angle)
    sine = tl.sin(angle) if INTERPRETED else libdevice.fast_sinf(angle)
    radius = tl.sqrt(-1.3862943611198906 * bits)  # -2 ln 2
    return radius * cosine, radius * sine


@triton.jit(do_not_specialize=["seed", "rows", "start"])
def noisy_previous(
    out, state, carry, seed, std, sweep, start, rows, width, stride: tl.constexpr, ROWS: tl.constexpr,
    QUARTER: tl.constexpr,
):  # fmt: skip
    """Row t: the row before t (`carry` before the first) plus noise counted by (seed, sweep, start + t, column).

    `sweep` is read from memory: a recorded launch draws new noise each time.
    """
    number = tl.load(sweep).to(tl.uint32)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, QUARTER)[None, :]
    lane = tl.zeros([ROWS, QUARTER], tl.uint32)
    draws = _philox(seed, lane + (start + row).to(tl.uint32), lane + column.to(tl.uint32), lane + number)
    first, second = _normal_pair(draws[0], draws[1])
    third, fourth = _normal_pair(draws[2], draws[3])
    for quarter in tl.static_range(4):
        noise = first if quarter == 0 else second if quarter == 1 else third if quarter == 2 else fourth
        at = column + quarter * QUARTER
        inside = row < rows
        if stride < 4 * QUARTER:
            inside &= at < stride
        place = row.to(tl.int64) * stride + at
        before = tl.load(tl.where(row > 0, state + place - stride, carry + at), mask=inside, other=0.0)
        scale = tl.where(at < width, std, 0.0)
        tl.store(out + place, (before.to(tl.float32) + scale * noise).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _add_pairs(a, b, c, d):
    return a + c, b + d


@triton.jit
def _load(pointer, inside, whole: tl.constexpr):
    """A row's entries in fp32, 0 outside; a mask that is always true costs a select for each."""
    value = tl.load(pointer) if whole else tl.load(pointer, mask=inside, other=0.0)
    return value.to(tl.float32)


@triton.jit
def _store(pointer, value, inside, whole: tl.constexpr):
    value = value.to(pointer.dtype.element_ty)
    if whole:
        tl.store(pointer, value)
    else:
        tl.store(pointer, value, mask=inside)


@triton.jit
def _total(
    x, product, term, tokens, row, column, inside, stride: tl.constexpr, GATHER: tl.constexpr, whole: tl.constexpr
):
    """x + GELU(product + term) of a row, and the GELU's slope; a pad gives 0 and a half."""
    place = tl.cast(row, tl.int64) * stride + column
    old = _load(x + place, inside, whole)
    active = _load(product + place, inside, whole)
    if GATHER:
        active += _load(term + tl.load(tokens + row).to(tl.int64) * stride + column, inside, whole)
    else:
        active += _load(term + column, inside, whole)
    share, bell = _gelu_parts(active)
    return old + active * share, share + bell


@triton.jit(do_not_specialize=["length", "pieces"])
def residual_norm(
    out, means, rstds, still, sums, squares, limit, x, product, term, tokens, weight, bias, length, pieces,
    width, stride: tl.constexpr, GATHER: tl.constexpr, SETTLE: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """LayerNorm(x + GELU(product + term)), and each row's mean and inverse deviation; `pieces` programs a block.

    SETTLE: out holds older rows. Each piece of a block of `length` rows counts those whose summed squared change is
    under `limit`, and sums its new rows' columns and squares, unrounded, less `bias`: still (B * pieces),
    sums (B * pieces, BLOCK), squares (B * pieces).
    """
    whole: tl.constexpr = stride == BLOCK
    program = tl.program_id(0)
    begin = program // pieces * length
    column = tl.arange(0, BLOCK)
    inside = column < stride
    gain = _load(weight + column, inside, whole)
    shift = _load(bias + column, inside, whole)
    if SETTLE:
        count = 0
        column_sum = tl.zeros([BLOCK], tl.float32)
        square_sum = tl.zeros([BLOCK], tl.float32)
    for row in tl.range(begin + program % pieces, begin + length, pieces, num_stages=STAGES):
        total, _ = _total(x, product, term, tokens, row, column, inside, stride, GATHER, whole)
        mean = tl.sum(total, 0) / width
        centred = tl.where(column < width, total - mean, 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, 0) / width + NORM_EPS)
        tl.store(means + row, mean)
        tl.store(rstds + row, rstd)
        apart = centred * rstd * gain  # a pad has neither gain nor shift
        place = tl.cast(row, tl.int64) * stride + column
        if SETTLE:
            change = apart + shift - _load(out + place, inside, whole)
            count += (tl.sum(change * change, 0) < limit).to(tl.int32)
            column_sum += apart
            square_sum += apart * apart
        _store(out + place, apart + shift, inside, whole)
    if SETTLE:
        tl.store(still + program, count)
        tl.store(sums + program * BLOCK + column, column_sum)
        tl.store(squares + program, tl.sum(square_sum, 0))


@triton.jit(do_not_specialize=["rows", "length", "programs"])
def residual_norm_backward(
    grad_x, grad_product, partials, grad, scale, shift, length,
    means, rstds, x, product, term, tokens, weight, bias, rows, programs, width, stride: tl.constexpr,
    AFFINE: tl.constexpr, GATHER: tl.constexpr, WANT_X: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Both gradients; per program the sums over its rows for weight, bias and term: partials (programs, 3, BLOCK)."""
    whole: tl.constexpr = stride == BLOCK
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < stride
    gain = _load(weight + column, inside, whole)
    offset = _load(bias + column, inside, whole)
    weight_sum = tl.zeros([BLOCK], tl.float32)
    bias_sum = tl.zeros([BLOCK], tl.float32)
    term_sum = tl.zeros([BLOCK], tl.float32)
    for row in tl.range(program, rows, programs, num_stages=STAGES):
        total, slope = _total(x, product, term, tokens, row, column, inside, stride, GATHER, whole)
        rstd = tl.load(rstds + row)
        normed = (total - tl.load(means + row)) * rstd
        place = tl.cast(row, tl.int64) * stride + column
        if AFFINE:
            block = row // length
            upper = tl.load(scale + block) * (normed * gain + offset)
            upper += _load(shift + block * stride + column, inside, whole)
        else:
            upper = _load(grad + place, inside, whole)
        weight_sum += upper * normed
        bias_sum += upper
        scaled = upper * gain
        along, level = tl.reduce((scaled * normed, scaled), 0, _add_pairs)
        through = scaled * rstd - level * (rstd / width) - normed * (along * (rstd / width))
        through = tl.where(column < width, through, 0.0)
        inner = through * slope
        term_sum += inner
        if WANT_X:
            _store(grad_x + place, through, inside, whole)
        _store(grad_product + place, inner, inside, whole)
    base = partials + program * 3 * BLOCK + column
    tl.store(base, weight_sum)
    tl.store(base + BLOCK, bias_sum)
    tl.store(base + 2 * BLOCK, term_sum)


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
