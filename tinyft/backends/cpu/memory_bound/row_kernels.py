"""The kernels of batch_norm.py: sums down each channel, and what is computed from them.

**Two passes, one kernel.** Between the sums and what is computed from them all threads meet, and
each joins the sums of all pieces for itself: with three kernels 2 of 13 ms of Python were spent
between them in a training step of ResNet-18.

**Asking ahead.** Sums go down the columns of a few rows, those of a gradient in two to four arrays
at once: too many paths for a core to guess what comes next. So the kernel asks for the rows that
follow, line after line as they lie in memory. (In the order of the sums, the lines of 1024 channels
are 4 KiB apart: all in one set of L1.) Results too large for the caches are written past them. Two
threads of an idle AMD Zen 5, in ms; before, lines were asked for in the order of the sums, and only
for gradients:

                               (16, 14, 14, 1024)   (16, 56, 56, 256)   (16, 112, 112, 64)
    moments                       0.22 (0.40)          0.94 (1.16)          1.08 (1.04)
    a gradient's two sums         0.52 (2.79)          2.60 (6.67)          2.73 (4.66)

**Moments.** mean(x * x) - mean(x)**2 subtracts large numbers: in float32 a variance of 1.00 beside
a mean of 1000 came out as 1.06. So each piece takes its own rough mean first and then sums
d = x - rough and d * d, the corrected two-pass algorithm (Chan, Golub and LeVeque 1983):

    mean = rough + sum(d) / n        squares about it = sum(d * d) - sum(d)**2 / n

Sums run over a few rows in a register and are then added to the piece's (fewer roundings in a
row); pieces are joined in float64. Which rows form a piece depends on the shape alone, so threads
cannot change a bit.
"""

from __future__ import annotations

import numpy as np

from tinyft.backends.cpu.codegen.cache import helper, kernel
from tinyft.backends.cpu.codegen.simd import LANES
from tinyft.backends.cpu.codegen.vectors import (
    finish_streams,
    prefetch,
    prefetch_to_write,
    vfma,
    vkeep_positive,
    vload,
    vmax,
    vput,
    vset1,
    vstore,
)
from tinyft.backends.cpu.runtime.work_stealing import AGAIN, TAKEN, THREAD, meet, next_start

# Rows that are summed in a register before the sum joins the piece's: 32, or so few that a block of
# them has so many numbers, and what was asked for meanwhile is still in L1 when its turn comes.
# Small blocks are many additions to a piece's sums: with 512 numbers a bias' gradient was 1.2 times
# as wrong. (README.md, Errors, says what such choices do to a recorded run.)
SUMMED_ROWS, MOMENTS_BLOCK, GRADIENTS_BLOCK = 32, 512, 2048
# Gradients in strips of fewer: behind an average pool all pixels bring the same number, and a long
# sum of equal numbers is rounded the same way each time (error 2.3e-7 -> 1.1e-7 of the result).
STRIP = 4

# How a gradient learns which elements a ReLU let pass: from its result, or, where nothing was added
# in between, from x, which is read anyway.
NO_RELU, BY_OUT, BY_X = 0, 1, 2


@helper
def rows_of_block(numbers, C):
    """Rows of C numbers each that are summed in a register, whole strips."""
    return max(STRIP, min(SUMMED_ROWS, numbers // C // STRIP * STRIP))


@helper
def sum_moments(share, x, M, C, rows, parts):
    """Per piece of `rows` rows and channel: rough mean, sum of d = x - rough, sum of d * d.

    x (M * C,), parts (pieces * 3 * C,)
    """
    zero = vset1(np.float32(0))
    block_rows = rows_of_block(MOMENTS_BLOCK, C)
    begin = next_start(share, rows, M)
    while begin < M:
        piece, end = begin // rows, min(M, begin + rows)
        rough, first, second = piece * 3 * C, (piece * 3 + 1) * C, (piece * 3 + 2) * C
        for c in range(0, 3 * C, LANES):
            vstore(parts, rough + c, zero)
        for block in range(begin, end, block_rows):
            for c in range(0, C, LANES):
                total = zero
                for row in range(block, min(end, block + block_rows)):
                    total = total + vload(x, row * C + c)
                vstore(parts, rough + c, vload(parts, rough + c) + total)
        now, begin = begin, next_start(share, rows, M)
        until_next = begin - now
        weight = vset1(np.float32(1.0 / (end - now)))
        for c in range(0, C, LANES):
            vstore(parts, rough + c, vload(parts, rough + c) * weight)
        for block in range(now, end, block_rows):
            for c in range(0, C, LANES):
                mean, total, squares = vload(parts, rough + c), zero, zero
                following = (block + until_next) * C + c * block_rows
                for row in range(block, min(end, block + block_rows)):
                    prefetch(x, following + (row - block) * LANES)
                    d = vload(x, row * C + c) - mean
                    total = total + d
                    squares = vfma(d, d, squares)
                vstore(parts, first + c, vload(parts, first + c) + total)
                vstore(parts, second + c, vload(parts, second + c) + squares)


@helper
def join_moments(parts, M, rows, mean, variance):
    """All pieces' moments -> mean and variance of each channel (C,), in float64.

    A channel after the other: sums of all at once would be arrays, which take 0.2 s to compile.
    """
    C, pieces = mean.size, (M + rows - 1) // rows
    for c in range(C):
        total = centred = 0.0
        for piece in range(pieces):
            n, rough = min(rows, M - piece * rows), piece * 3 * C + c
            total += n * np.float64(parts[rough])
            if not np.isnan(parts[rough + C]):  # infinity - infinity: the rough mean says it all
                total += parts[rough + C]
        total /= M
        for piece in range(pieces):
            n, rough = min(rows, M - piece * rows), piece * 3 * C + c
            d = np.float64(parts[rough + C])
            away = parts[rough] + d / n - total
            centred += parts[rough + 2 * C] - d * d / n + n * away * away
        mean[c], variance[c] = total, centred / M


@helper
def find_gain(weight, variance, eps, gain):
    """gain = weight / std in float32: the same bits in both directions, so a ReLU decides as it
    did.
    """
    for c in range(weight.size):
        gain[c] = weight[c] / np.sqrt(variance[c] + eps)


@helper
def normalise(share, taken, x, M, C, rows, mean, gain, bias, residual, added, low, out, large):
    """out = max((x - mean) * gain + bias + residual, low); residual only where `added`.

    x out residual (M * C,), mean gain bias (C,). Subtracting first, as the reference does, keeps
    the digits where the mean is large; low is 0 for ReLU, else -infinity.
    """
    lowest = vset1(low)
    while True:
        begin = next_start(share, rows, M, taken)
        if begin >= M:
            break
        for row in range(begin, min(M, begin + rows)):
            for c in range(0, C, LANES):
                i = row * C + c
                value = vfma(vload(x, i) - vload(mean, c), vload(gain, c), vload(bias, c))
                if added:
                    value = value + vload(residual, i)
                vput(out, i, vmax(value, lowest), large)
    finish_streams()


@kernel
def normalise_by_batch(
    share, work, x, M, C, rows, parts, eps, weight, bias, residual, added, low, mean, variance,
    out, large,
):  # fmt: skip
    """Moments of x, which are returned in mean and variance (C,), and what they make of x.

    parts (pieces * 3 * C,), work: scratch memory for 3 * C numbers
    """
    sum_moments(share, x, M, C, rows, parts)
    meet(share)
    own_mean, own_variance, gain = work[:C], work[C : 2 * C], work[2 * C : 3 * C]
    join_moments(parts, M, rows, own_mean, own_variance)
    if share[THREAD] == 0:
        for c in range(C):  # one by one: to compile `mean[:] =` takes ten times as long
            mean[c], variance[c] = own_mean[c], own_variance[c]
    find_gain(weight, own_variance, eps, gain)
    normalise(share, AGAIN, x, M, C, rows, own_mean, gain, bias, residual, added, low, out, large)


@kernel
def normalise_as_given(
    share, work, x, M, C, rows, eps, weight, bias, residual, added, low, mean, variance, out, large
):
    """The same by a mean and a variance that are given; work: scratch memory for C numbers."""
    gain = work[:C]
    find_gain(weight, variance, eps, gain)
    normalise(share, TAKEN, x, M, C, rows, mean, gain, bias, residual, added, low, out, large)


@helper
def sum_gradients(
    share, dout, x, out, M, C, rows, mean, gain, bias, relu, scale, fixed, parts, dresidual, dx,
    large,
):  # fmt: skip
    """Per piece and channel: sum of dout and of dout * (x - mean), dout being 0 where a ReLU was.

    dout x out dresidual dx (M * C,), mean gain bias scale (C,), parts (pieces * 2 * C,). With
    BY_OUT the dout that is left is stored as dresidual; with `fixed` statistics dx = dout * scale
    is stored too.
    """
    zero = vset1(np.float32(0))
    block_rows = rows_of_block(GRADIENTS_BLOCK, C)
    while True:
        begin = next_start(share, rows, M)
        if begin >= M:
            break
        piece, end = begin // rows, min(M, begin + rows)
        first, second = piece * 2 * C, (piece * 2 + 1) * C
        for c in range(0, 2 * C, LANES):
            vstore(parts, first + c, zero)
        for block in range(begin, end, block_rows):
            for c in range(0, C, LANES):
                total, products = zero, zero
                center, factor = vload(mean, c), vload(scale, c)
                slope, shift = vload(gain, c), vload(bias, c)
                following = (block + block_rows) * C + c * block_rows
                for strip in range(block, min(end, block + block_rows), STRIP):
                    few, few_products = zero, zero
                    for row in range(strip, min(end, strip + STRIP)):
                        i = row * C + c
                        ahead = following + (row - block) * LANES
                        prefetch(dout, ahead)
                        prefetch(x, ahead)
                        d, away = vload(dout, i), vload(x, i) - center
                        if relu == BY_OUT:
                            prefetch(out, ahead)
                            d = vkeep_positive(vload(out, i), d)
                            if not large:
                                prefetch_to_write(dresidual, ahead)
                            vput(dresidual, i, d, large)
                        elif relu == BY_X:
                            d = vkeep_positive(vfma(away, slope, shift), d)
                        if fixed:
                            if not large:
                                prefetch_to_write(dx, ahead)
                            vput(dx, i, d * factor, large)
                        few = few + d
                        few_products = vfma(d, away, few_products)
                    total = total + few
                    products = products + few_products
                vstore(parts, first + c, vload(parts, first + c) + total)
                vstore(parts, second + c, vload(parts, second + c) + products)
    finish_streams()


@helper
def join_gradients(parts, M, rows, weight, variance, eps, dweight, dbias, factors):
    """All pieces' sums -> dweight, dbias (C,), and three factors of dx = scale * dout + slope * (x
    - mean) + offset, in float64; factors (3 * C,)

    dx = scale * (dout - dbias / M - normalised * dweight / M), scale = weight / std
    """
    C, pieces = weight.size, (M + rows - 1) // rows
    for c in range(C):
        total = products = 0.0
        for piece in range(pieces):
            total += parts[piece * 2 * C + c]
            products += parts[(piece * 2 + 1) * C + c]
        inverse_std = 1 / np.sqrt(variance[c] + eps)
        scale = weight[c] * inverse_std
        dweight[c], dbias[c] = products * inverse_std, total
        factors[c] = scale
        factors[C + c] = -scale * (inverse_std * inverse_std) * products / M
        factors[2 * C + c] = -scale * total / M


@helper
def differentiate(share, dout, x, M, C, rows, mean, gain, bias, relu, factors, dx, large):
    """dx = scale * dout + slope * (x - mean) + offset, in a second pass: arrays (M * C,), factors
    (3 * C,), all else (C,). With BY_X dout is 0 where the ReLU was.
    """
    while True:
        begin = next_start(share, rows, M, AGAIN)
        if begin >= M:
            break
        for row in range(begin, min(M, begin + rows)):
            for c in range(0, C, LANES):
                i = row * C + c
                d, away = vload(dout, i), vload(x, i) - vload(mean, c)
                if relu == BY_X:
                    d = vkeep_positive(vfma(away, vload(gain, c), vload(bias, c)), d)
                moved = vfma(away, vload(factors, C + c), vload(factors, 2 * C + c))
                vput(dx, i, vfma(d, vload(factors, c), moved), large)
    finish_streams()


@kernel
def differentiate_by_batch(
    share, work, dout, x, out, M, C, rows, parts, mean, variance, eps, weight, bias, relu,
    dresidual, dweight, dbias, dx, large,
):  # fmt: skip
    """All gradients where the batch's own moments normalised; work: scratch memory for 6 * C
    numbers.
    """
    gain, factors, own = work[:C], work[C : 4 * C], work[4 * C : 6 * C]
    find_gain(weight, variance, np.float32(eps), gain)
    sum_gradients(  # without a factor for dx yet: `factors` is not looked at
        share, dout, x, out, M, C, rows, mean, gain, bias, relu, factors, False, parts, dresidual,
        dx, large,
    )  # fmt: skip
    meet(share)
    join_gradients(parts, M, rows, weight, variance, eps, own[:C], own[C:], factors)
    if share[THREAD] == 0:
        for c in range(C):
            dweight[c], dbias[c] = own[c], own[C + c]
    left = dresidual if relu == BY_OUT else dout
    differentiate(share, left, x, M, C, rows, mean, gain, bias, relu, factors, dx, large)


@kernel
def differentiate_as_given(
    share, work, dout, x, out, M, C, rows, parts, mean, variance, eps, weight, bias, relu,
    dresidual, dweight, dbias, dx, large,
):  # fmt: skip
    """The same where given statistics normalised: dx = dout * weight / std, and no more."""
    gain, factors = work[:C], work[C : 4 * C]
    find_gain(weight, variance, np.float32(eps), gain)
    for c in range(C):
        factors[c] = weight[c] * (1 / np.sqrt(variance[c] + eps))  # in float64
    sum_gradients(
        share, dout, x, out, M, C, rows, mean, gain, bias, relu, factors, True, parts, dresidual,
        dx, large,
    )  # fmt: skip
    meet(share)
    if share[THREAD] == 0:
        join_gradients(parts, M, rows, weight, variance, eps, dweight, dbias, factors)
