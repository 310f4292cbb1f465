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

**Asking ahead.** Sums go down the columns of a few rows, those of a gradient in two to four arrays
at once: too many paths for a core to guess what comes next. So the kernel asks for the rows that
follow, line after line as they lie in memory. (In the order of the sums, the lines of 1024 channels
are 4 KiB apart: all in one set of L1.) Results too large for the caches are written past them. Two
threads of an idle AMD Zen 5, in ms; before, lines were asked for in the order of the sums, and only
for gradients:

                               (16, 14, 14, 1024)   (16, 56, 56, 256)   (16, 112, 112, 64)
    moments                       0.22 (0.40)          0.94 (1.16)          1.08 (1.04)
    a gradient's two sums         0.52 (2.79)          2.60 (6.67)          2.73 (4.66)

Milliseconds: this / the NumPy reference / PyTorch 2.14.1 (channels last; its kernels one after the
other), float32, one thread of an idle AMD Zen 5, minimum of 9:

                                       (16, 112, 112, 64)   (16, 56, 56, 64)   (16, 14, 14, 256)
    training, residual and ReLU          4.5 /  59 / 29     0.9 / 9.7 / 1.8    0.19 / 1.3 / 0.31
    its gradient                         7.8 / 130 / 49     1.7 /  28 / 2.5    0.30 / 4.7 / 0.39
    the same without residual, ReLU      6.2 /  -  / 27     1.3 /  -  / 1.5    0.22 /  -  / 0.29
    evaluation and ReLU                  2.2 /  31 / 23     0.4 / 3.7 / 0.8    0.08 / 0.7 / 0.16
    its gradient                         4.7 /  89 / 47     0.9 /  19 / 2.2    0.26 / 3.9 / 0.31

**Moments.** mean(x * x) - mean(x)**2 subtracts large numbers: in float32 a variance of 1.00 beside
a mean of 1000 came out as 1.06. So each piece takes its own rough mean first and then sums
d = x - rough and d * d, the corrected two-pass algorithm (Chan, Golub and LeVeque 1983):

    mean = rough + sum(d) / n        squares about it = sum(d * d) - sum(d)**2 / n

Sums run over a few rows in a register and are then added to the piece's (fewer roundings in a
row); pieces are joined in float64. Which rows form a piece depends on the shape alone, so threads
cannot change a bit.

Next: tinyft/backends/cpu/pooling.py
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu import workspace
from tinyft.backends.cpu.arrays import flat, large, rows_per_piece, run_pieces, suitable_channels
from tinyft.backends.cpu.compile_cache import helper, kernel
from tinyft.backends.cpu.simd import LANES
from tinyft.backends.cpu.vectors import (
    atomic_next,
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
from tinyft.backends.reference import Backend

# Rows that are summed in a register before the sum joins the piece's: 32, or so few that a block of
# them has so many numbers, and what was asked for meanwhile is still in L1 when its turn comes.
# Small blocks are many additions to a piece's sums: with 512 numbers a bias' gradient was 1.2 times
# as wrong. (README.md, Errors, says what such choices do to a recorded run.)
BLOCK_ROWS, MOMENTS_BLOCK, GRADIENTS_BLOCK = 32, 512, 2048
# Gradients in strips of fewer: behind an average pool all pixels bring the same number, and a long
# sum of equal numbers is rounded the same way each time (error 2.3e-7 -> 1.1e-7 of the result).
STRIP = 4

# How a gradient learns which elements a ReLU let pass: from its result, or, where nothing was added
# in between, from x, which is read anyway.
NO_RELU, BY_OUT, BY_X = 0, 1, 2


@helper
def rows_of_block(numbers, C):
    """Rows of C numbers each that are summed in a register, whole strips."""
    return max(STRIP, min(BLOCK_ROWS, numbers // C // STRIP * STRIP))


@kernel
def sum_moments(counter, thread, x, M, C, rows, parts):
    """Per piece of `rows` rows and channel: rough mean, sum of d = x - rough, sum of d * d.

    x (M * C,), parts (pieces * 3 * C,)
    """
    zero = vset1(np.float32(0))
    block_rows = rows_of_block(MOMENTS_BLOCK, C)
    piece = atomic_next(counter, 0)
    while piece * rows < M:
        begin, end = piece * rows, min(M, (piece + 1) * rows)
        rough, first, second = piece * 3 * C, (piece * 3 + 1) * C, (piece * 3 + 2) * C
        for c in range(0, 3 * C, LANES):
            vstore(parts, rough + c, zero)
        for block in range(begin, end, block_rows):
            for c in range(0, C, LANES):
                total = zero
                for row in range(block, min(end, block + block_rows)):
                    total = total + vload(x, row * C + c)
                vstore(parts, rough + c, vload(parts, rough + c) + total)
        piece = atomic_next(counter, 0)
        until_next = piece * rows - begin
        share = vset1(np.float32(1.0 / (end - begin)))
        for c in range(0, C, LANES):
            vstore(parts, rough + c, vload(parts, rough + c) * share)
        for block in range(begin, end, block_rows):
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


@kernel
def join_moments(parts, M, rows, mean, variance):
    """All pieces' moments -> mean and variance of each channel, in float64.

    parts (pieces, 3, C), mean variance (C,)
    """
    pieces, _, C = parts.shape
    total, centred = np.zeros(C), np.zeros(C)
    for piece in range(pieces):
        n = min(rows, M - piece * rows)
        for c in range(C):
            total[c] += n * np.float64(parts[piece, 0, c])
            if not np.isnan(parts[piece, 1, c]):  # infinity - infinity: the rough mean says it all
                total[c] += parts[piece, 1, c]
    for c in range(C):
        total[c] /= M
    for piece in range(pieces):
        n = min(rows, M - piece * rows)
        for c in range(C):
            first = np.float64(parts[piece, 1, c])
            away = parts[piece, 0, c] + first / n - total[c]
            centred[c] += parts[piece, 2, c] - first * first / n + n * away * away
    for c in range(C):
        mean[c] = total[c]
        variance[c] = centred[c] / M


@kernel
def normalise(counter, thread, x, M, C, rows, mean, scale, bias, residual, added, low, out, large):
    """out = max((x - mean) * scale + bias + residual, low); residual only where `added`.

    x out residual (M * C,), mean scale bias (C,). Subtracting first, as the reference does, keeps
    the digits where the mean is large; low is 0 for ReLU, else -infinity.
    """
    lowest = vset1(low)
    while True:
        begin = atomic_next(counter, 0) * rows
        if begin >= M:
            break
        for row in range(begin, min(M, begin + rows)):
            for c in range(0, C, LANES):
                i = row * C + c
                value = vfma(vload(x, i) - vload(mean, c), vload(scale, c), vload(bias, c))
                if added:
                    value = value + vload(residual, i)
                vput(out, i, vmax(value, lowest), large)
    finish_streams()


@kernel
def sum_gradients(
    counter, thread, dout, x, out, M, C, rows, mean, scale, gain, bias, relu, fixed, parts,
    dresidual, dx, large,
):  # fmt: skip
    """Per piece and channel: sum of dout and of dout * (x - mean), dout being 0 where a ReLU was.

    dout x out dresidual dx (M * C,), mean scale gain bias (C,), parts (pieces * 2 * C,). With
    BY_OUT the dout that is left is stored as dresidual; with `fixed` statistics dx = dout * scale
    is stored too.
    """
    zero = vset1(np.float32(0))
    block_rows = rows_of_block(GRADIENTS_BLOCK, C)
    while True:
        piece = atomic_next(counter, 0)
        begin = piece * rows
        if begin >= M:
            break
        end = min(M, begin + rows)
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


@kernel
def join_gradients(parts, M, weight, variance, eps, dweight, dbias, factors):
    """All pieces' sums -> dweight, dbias, and three factors of dx = scale * dout + slope * (x -
    mean) + offset, in float64. parts (pieces, 2, C), factors (3, C), others (C,).

    dx = scale * (dout - dbias / M - normalised * dweight / M), scale = weight / std
    """
    pieces, _, C = parts.shape
    sums = np.zeros((2, C))
    for which in range(2):
        for piece in range(pieces):
            for c in range(C):
                sums[which, c] += parts[piece, which, c]
    for c in range(C):
        inverse_std = 1 / np.sqrt(variance[c] + eps)
        scale = weight[c] * inverse_std
        dweight[c], dbias[c] = sums[1, c] * inverse_std, sums[0, c]
        factors[0, c] = scale
        factors[1, c] = -scale * (inverse_std * inverse_std) * sums[1, c] / M
        factors[2, c] = -scale * sums[0, c] / M


@kernel
def differentiate(
    counter, thread, dout, x, M, C, rows, mean, scale, gain, bias, relu, slope, offset, dx, large
):
    """dx = scale * dout + slope * (x - mean) + offset: arrays (M * C,), factors (C,). With BY_X
    dout is 0 where the ReLU was.
    """
    while True:
        begin = atomic_next(counter, 0) * rows
        if begin >= M:
            break
        for row in range(begin, min(M, begin + rows)):
            for c in range(0, C, LANES):
                i = row * C + c
                d, away = vload(dout, i), vload(x, i) - vload(mean, c)
                if relu == BY_X:
                    d = vkeep_positive(vfma(away, vload(gain, c), vload(bias, c)), d)
                moved = vfma(away, vload(slope, c), vload(offset, c))
                vput(dx, i, vfma(d, vload(scale, c), moved), large)
    finish_streams()


class BatchNorm(Backend):
    """The four batch norm kernels of the backend."""

    def batch_norm_train(self, x, weight, bias, eps, *, residual=None, relu=False):
        if not suitable_channels([x, residual], [weight, bias]):
            return super().batch_norm_train(x, weight, bias, eps, residual=residual, relu=relu)
        x = flat(x).reshape(x.shape)  # one copy for both passes, if any
        mean, variance = moments(x)
        return _normalise(x, weight, bias, mean, variance, eps, residual, relu), mean, variance

    def batch_norm_eval(self, x, weight, bias, mean, variance, eps, *, residual=None, relu=False):
        if not suitable_channels([x, residual], [weight, bias, mean, variance]):
            return super().batch_norm_eval(
                x, weight, bias, mean, variance, eps, residual=residual, relu=relu
            )
        return _normalise(x, weight, bias, mean, variance, eps, residual, relu)

    def batch_norm_train_grad(self, dout, x, weight, mean, variance, eps, *, out=None, bias=None):
        relu = {"out": out, "bias": bias}
        if not _suitable_gradients(dout, x, weight, mean, variance, **relu):
            return super().batch_norm_train_grad(dout, x, weight, mean, variance, eps, **relu)
        told_by = _told_by(out, bias, weight, variance, eps)
        left, parts, _ = _sum_gradients(dout, x, out, mean, None, told_by)
        dweight, dbias, factors = _join(parts, x, weight, variance, eps)
        M, C, rows, pieces = _extent(x)
        dx = workspace.empty(x.shape)
        run_pieces(
            differentiate, pieces, flat(left), flat(x), M, C, rows, flat(mean), factors[0],
            *told_by, factors[1], factors[2], dx.reshape(-1), large(dx),
        )  # fmt: skip
        return dx, dweight, dbias, left if bias is None else None

    def batch_norm_eval_grad(self, dout, x, weight, mean, variance, eps, *, out=None, bias=None):
        relu = {"out": out, "bias": bias}
        if not _suitable_gradients(dout, x, weight, mean, variance, **relu):
            return super().batch_norm_eval_grad(dout, x, weight, mean, variance, eps, **relu)
        told_by = _told_by(out, bias, weight, variance, eps)
        inverse_std = 1 / np.sqrt(variance.astype(np.float64) + eps)  # as in join_gradients
        scale = (weight * inverse_std).astype(np.float32)
        left, parts, dx = _sum_gradients(dout, x, out, mean, scale, told_by)
        dweight, dbias, _ = _join(parts, x, weight, variance, eps)
        return dx, dweight, dbias, left if bias is None else None


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel: x (..., C) float32 -> (C,), (C,)"""
    M, C, rows, pieces = _extent(x)
    parts = workspace.empty((pieces, 3, C))
    run_pieces(sum_moments, pieces, flat(x), M, C, rows, parts.reshape(-1))
    mean, variance = np.empty(C, np.float32), np.empty(C, np.float32)
    join_moments(parts, M, rows, mean, variance)
    return mean, variance


def _normalise(x, weight, bias, mean, variance, eps, residual, relu) -> Array:
    M, C, rows, pieces = _extent(x)
    out = workspace.empty(x.shape)
    values = flat(x)
    added = values if residual is None else flat(residual)
    low = np.float32(0 if relu else -np.inf)
    run_pieces(
        normalise, pieces, values, M, C, rows, flat(mean), _gain(weight, variance, eps),
        flat(bias), added, residual is not None, low, out.reshape(-1), large(out),
    )  # fmt: skip
    return out


def _suitable_gradients(dout, x, weight, mean, variance, out, bias) -> bool:
    channels = [weight, mean, variance, *([] if bias is None else [bias])]
    return suitable_channels([x, dout, out], channels)


def _sum_gradients(dout, x, out, mean, scale, told_by):
    """dout (with BY_OUT 0 where `out` is), the two sums of each piece (pieces, 2, C), and, with
    fixed statistics and a `scale`, dx.
    """
    M, C, rows, pieces = _extent(x)
    by_out, fixed = told_by[-1] == BY_OUT, scale is not None
    parts = workspace.empty((pieces, 2, C))
    arriving, unused = flat(dout), np.empty(1, np.float32)
    left = workspace.empty(x.shape) if by_out else dout
    dx = workspace.empty(x.shape) if fixed else None
    run_pieces(
        sum_gradients, pieces, arriving, flat(x), flat(out) if by_out else arriving,
        M, C, rows, flat(mean), scale if fixed else flat(mean), *told_by, fixed, parts.reshape(-1),
        left.reshape(-1) if by_out else unused, dx.reshape(-1) if fixed else unused, large(x),
    )  # fmt: skip
    return left, parts, dx


def _join(parts, x, weight, variance, eps):
    """The gradients of weight and bias, and the factors of dx."""
    C = x.shape[-1]
    dweight, dbias = np.empty(C, np.float32), np.empty(C, np.float32)
    factors = np.empty((3, C), np.float32)
    numbers = x.size // C, flat(weight), flat(variance), eps
    join_gradients(parts, *numbers, dweight, dbias, factors)
    return dweight, dbias, factors


def _told_by(out, bias, weight, variance, eps):
    """gain and bias of the forward pass, and what tells where a ReLU was. Where x does not, any
    arrays of that shape do.
    """
    if out is None:
        return flat(weight), flat(weight), NO_RELU
    if bias is None:
        return flat(weight), flat(weight), BY_OUT
    return _gain(weight, variance, eps), flat(bias), BY_X


def _gain(weight, variance, eps) -> Array:
    """weight / std, the same bits in both directions: a ReLU then decides as it did."""
    return weight / np.sqrt(variance + np.float32(eps))


def _extent(x: Array) -> tuple[int, int, int, int]:
    """Rows, channels, rows of one piece, pieces."""
    C = x.shape[-1]
    M, rows = x.size // C, rows_per_piece(C)
    return M, C, rows, -(-M // rows)
