"""Batch normalisation with residual and ReLU, in as few passes over memory as it can be done.

Definition: `batch_norm_train`, `batch_norm_eval` and their gradients in `backends/reference.py`.

Memory decides: NumPy writes some ten temporaries as large as x. Here a piece of rows (128 KiB)
stays in a core's L2 cache, and

    forward    reads x once for the moments (a piece is read twice, the second time from cache),
               once more to normalise, adds the residual, rectifies and stores
    backward   one pass for the two sums, one for dx. With fixed statistics dx needs no sums: one
               pass does both.

What a ReLU let pass is read off its result, and the rest of dout stored for the second pass and for
the residual. Where no residual was added, x says it: normalised again, with the same bits. Nothing
is stored then, and two arrays are read instead of three: (16, 112, 112, 64) takes 8.5 instead of
14.7 ms (two threads of an idle Intel Xeon).

Milliseconds: this / the NumPy reference / PyTorch 2.14.1 (channels last; its kernels one after the
other), float32, one thread of an idle AMD Zen 5, minimum of 9:

                                       (16, 112, 112, 64)   (16, 56, 56, 64)   (16, 14, 14, 256)
    training, residual and ReLU          4.5 /  59 / 29     0.9 / 9.7 / 1.8    0.19 / 1.3 / 0.31
    its gradient                         7.8 / 130 / 49     1.7 /  28 / 2.5    0.30 / 4.7 / 0.39
    the same without residual, ReLU      6.2 /  -  / 27     1.3 /  -  / 1.5    0.22 /  -  / 0.29
    evaluation and ReLU                  2.2 /  31 / 23     0.4 / 3.7 / 0.8    0.08 / 0.7 / 0.16
    its gradient                         4.7 /  89 / 47     0.9 /  19 / 2.2    0.26 / 3.9 / 0.31

**Two passes, one kernel.** Between the sums and what is computed from them all threads wait, and
each joins the sums of all pieces for itself: with three kernels 2 of 13 ms of Python were spent
between them in a training step of ResNet-18.

**Prefetching.** Sums go down the columns of a few rows, those of a gradient in two to four arrays
at once: too many streams for the core's prefetcher. So the kernel asks for the rows that follow,
line after line as they lie in memory. (In the order of the sums, the lines of 1024 channels are 4
KiB apart: all in one set of L1.) Results too large for the caches are written past them. Two
threads of an idle AMD Zen 5, in ms; in brackets asked for in the order of the sums, and only for
gradients:

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

import functools
import math

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
from tinyft.backends.cpu.memory_bound.arrays import (
    LOWEST,
    ZERO,
    flat,
    large,
    rows_per_piece,
    run_pieces,
    suitable_channels,
)
from tinyft.backends.cpu.runtime import workspace
from tinyft.backends.cpu.runtime.work_stealing import AGAIN, TAKEN, THREAD, barrier, next_start
from tinyft.backends.reference import Backend

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
def sum_moments(share, x, extent, parts):
    """Per piece of `rows` rows and channel: rough mean, sum of d = x - rough, sum of d * d.

    x (M * C,), parts (pieces * 3 * C,)
    """
    M, C, rows = extent
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
def normalise(share, taken, x, extent, mean, gain, epilogue, out, large):
    """out = max((x - mean) * gain + bias + residual, floor); residual only where `added`.

    x out residual (M * C,), mean gain bias (C,). Subtracting first, as the reference does, keeps
    the digits where the mean is large; floor is 0 for ReLU, else -infinity.
    """
    M, C, rows = extent
    bias, residual, added, floor = epilogue
    lowest = vset1(floor)
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
    share, work, x, extent, parts, eps, weight, epilogue, mean, variance, out, large
):
    """Moments of x, which are returned in mean and variance (C,), and x normalised by them.

    parts (pieces * 3 * C,), work: scratch memory for 3 * C numbers
    """
    M, C, rows = extent
    sum_moments(share, x, extent, parts)
    barrier(share)
    own_mean, own_variance, gain = work[:C], work[C : 2 * C], work[2 * C : 3 * C]
    join_moments(parts, M, rows, own_mean, own_variance)
    if share[THREAD] == 0:
        for c in range(C):  # one by one: to compile `mean[:] =` takes ten times as long
            mean[c], variance[c] = own_mean[c], own_variance[c]
    find_gain(weight, own_variance, eps, gain)
    normalise(share, AGAIN, x, extent, own_mean, gain, epilogue, out, large)


@kernel
def normalise_as_given(share, work, x, extent, eps, weight, epilogue, mean, variance, out, large):
    """Normalise by a mean and a variance that are given; work: scratch memory for C numbers."""
    gain = work[: extent[1]]
    find_gain(weight, variance, eps, gain)
    normalise(share, TAKEN, x, extent, mean, gain, epilogue, out, large)


@helper
def sum_gradients(share, arrays, extent, forward, relu, scale, fixed, parts, dresidual, dx, large):
    """Per piece and channel: sum of dout and of dout * (x - mean), dout being 0 where a ReLU was.

    arrays: dout, x, out, as dresidual and dx (M * C,); forward: mean, gain, bias, as scale (C,);
    parts (pieces * 2 * C,). With BY_OUT the dout that is left is stored as dresidual; with `fixed`
    statistics dx = dout * scale is stored too.
    """
    dout, x, out = arrays
    M, C, rows = extent
    mean, gain, bias = forward
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
    """All pieces' sums -> dweight, dbias (C,), and three factors of dx, in float64; (3 * C,)

    forward was: out = normalised * weight + bias, normalised = (x - mean) / std; so:
    dweight = sum(dout * normalised), dbias = sum(dout), and, as mean and std depend on x,
    dx = weight / std * (dout - dbias / M - normalised * dweight / M)
       = scale * dout + slope * (x - mean) + offset
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
def differentiate(share, dout, x, extent, forward, relu, factors, dx, large):
    """dx = scale * dout + slope * (x - mean) + offset, in a second pass: arrays (M * C,), factors
    (3 * C,), forward: mean, gain, bias (C,). With BY_X dout is 0 where the ReLU was.
    """
    M, C, rows = extent
    mean, gain, bias = forward
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
    share, work, arrays, extent, parts, statistics, affine, relu, dresidual, dparameters, dx, large
):
    """All gradients where the batch's own moments normalised.

    arrays: dout, x, out; statistics: mean, variance, eps; affine: weight, bias; dparameters:
    dweight, dbias. work: scratch memory for 6 * C numbers
    """
    M, C, rows = extent
    (mean, variance, eps), (weight, bias), (dweight, dbias) = statistics, affine, dparameters
    gain, factors, own = work[:C], work[C : 4 * C], work[4 * C : 6 * C]
    find_gain(weight, variance, np.float32(eps), gain)
    forward = mean, gain, bias
    sum_gradients(  # without a factor for dx yet: `factors` is not looked at
        share, arrays, extent, forward, relu, factors, False, parts, dresidual, dx, large
    )
    barrier(share)
    join_gradients(parts, M, rows, weight, variance, eps, own[:C], own[C:], factors)
    if share[THREAD] == 0:
        for c in range(C):
            dweight[c], dbias[c] = own[c], own[C + c]
    left = dresidual if relu == BY_OUT else arrays[0]
    differentiate(share, left, arrays[1], extent, forward, relu, factors, dx, large)


@kernel
def differentiate_as_given(
    share, work, arrays, extent, parts, statistics, affine, relu, dresidual, dparameters, dx, large
):
    """All gradients where given statistics normalised: dx = dout * weight / std, and no more."""
    M, C, rows = extent
    (mean, variance, eps), (weight, bias), (dweight, dbias) = statistics, affine, dparameters
    gain, factors = work[:C], work[C : 4 * C]
    find_gain(weight, variance, np.float32(eps), gain)
    for c in range(C):
        factors[c] = weight[c] * (1 / np.sqrt(variance[c] + eps))  # in float64
    sum_gradients(
        share, arrays, extent, (mean, gain, bias), relu, factors, True, parts, dresidual, dx, large
    )
    barrier(share)
    if share[THREAD] == 0:
        join_gradients(parts, M, rows, weight, variance, eps, dweight, dbias, factors)


# ---------------------------------------------------------------------- what the backend calls


class BatchNorm(Backend):
    """The four batch norm kernels of the backend."""

    def batch_norm_train(self, x, weight, bias, eps, *, residual=None, relu=False):
        if not suitable_channels((x, residual), [weight, bias]):
            return super().batch_norm_train(x, weight, bias, eps, residual=residual, relu=relu)
        extent, pieces = _extent(x.shape)
        C = x.shape[-1]
        parts = workspace.scratch("sums of pieces", pieces * 3 * C)
        out, x = workspace.empty(x.shape), flat(x)
        mean, variance = np.empty(C, np.float32), np.empty(C, np.float32)
        run_pieces(
            normalise_by_batch, pieces, x, extent, parts, np.float32(eps), flat(weight),
            _epilogue(bias, residual, relu, x), mean, variance, out.reshape(-1), large(out),
            scratch=3 * C,
        )  # fmt: skip
        return out, mean, variance

    def batch_norm_eval(self, x, weight, bias, mean, variance, eps, *, residual=None, relu=False):
        if not suitable_channels((x, residual), [weight, bias, mean, variance]):
            return super().batch_norm_eval(
                x, weight, bias, mean, variance, eps, residual=residual, relu=relu
            )
        extent, pieces = _extent(x.shape)
        out, x = workspace.empty(x.shape), flat(x)
        run_pieces(
            normalise_as_given, pieces, x, extent, np.float32(eps), flat(weight),
            _epilogue(bias, residual, relu, x), flat(mean), flat(variance), out.reshape(-1),
            large(out), scratch=extent[1],
        )  # fmt: skip
        return out

    def batch_norm_train_grad(self, dout, x, weight, mean, variance, eps, *, out=None, bias=None):
        relu = {"out": out, "bias": bias}
        if not _suitable_gradients(dout, x, weight, mean, variance, **relu):
            return super().batch_norm_train_grad(dout, x, weight, mean, variance, eps, **relu)
        return _gradients(differentiate_by_batch, dout, x, weight, mean, variance, eps, out, bias)

    def batch_norm_eval_grad(self, dout, x, weight, mean, variance, eps, *, out=None, bias=None):
        relu = {"out": out, "bias": bias}
        if not _suitable_gradients(dout, x, weight, mean, variance, **relu):
            return super().batch_norm_eval_grad(dout, x, weight, mean, variance, eps, **relu)
        return _gradients(differentiate_as_given, dout, x, weight, mean, variance, eps, out, bias)


def _epilogue(bias, residual, relu, x) -> tuple:
    """bias, residual, whether it is added, floor. Where there is no residual any array will do."""
    added = residual is not None
    return flat(bias), flat(residual) if added else x, added, ZERO if relu else LOWEST


def _suitable_gradients(dout, x, weight, mean, variance, out, bias) -> bool:
    channels = [weight, mean, variance, *([] if bias is None else [bias])]
    return suitable_channels((x, dout, out), channels)


def _gradients(kernel, dout, x, weight, mean, variance, eps, out, bias):
    """dx, dweight, dbias, and what is left of dout behind a ReLU that is read off `out`."""
    extent, pieces = _extent(x.shape)
    C = x.shape[-1]
    parts = workspace.scratch("sums of pieces", pieces * 2 * C)
    dx, left = workspace.empty(x.shape), dout
    arriving, weight = flat(dout), flat(weight)
    # any arrays will do, but where the result is read
    relu, kept_out, left_flat, affine = NO_RELU, arriving, arriving, (weight, weight)
    if out is not None:
        if bias is None:
            relu, left = BY_OUT, workspace.empty(x.shape)
            kept_out, left_flat = flat(out), left.reshape(-1)
        else:
            relu, affine = BY_X, (weight, flat(bias))
    dweight, dbias = np.empty(C, np.float32), np.empty(C, np.float32)
    run_pieces(
        kernel, pieces, (arriving, flat(x), kept_out), extent, parts,
        (flat(mean), flat(variance), eps), affine, relu, left_flat, (dweight, dbias),
        dx.reshape(-1), large(dx), scratch=6 * C,
    )  # fmt: skip
    return dx, dweight, dbias, left if bias is None else None


@functools.lru_cache(maxsize=256)
def _extent(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """Rows, channels, rows of one piece; how many pieces."""
    C = shape[-1]
    M, rows = math.prod(shape[:-1]), rows_per_piece(C)
    return (M, C, rows), -(-M // rows)
