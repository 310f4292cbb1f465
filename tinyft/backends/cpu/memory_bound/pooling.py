"""Pooling: the largest of each window, and the mean or the largest of a whole picture.

Definition: `max_pool2d`, `global_average_pool`, `global_max_pool` and their gradients in
`backends/reference.py`.

**Maximum.** A register of channels stays with its window while the kernel goes over the pixels, so
x is read once and nothing is padded: the window is cut where it leaves the picture. Beside the
largest value runs its place in the window as a float, stored as one byte per output. Rows are far
apart, so no core guesses which pixels come next: the kernel asks for them.

**Gradient.** Not each window gives to its pixels (neighbouring windows meet in a pixel, two threads
could add to it at once): each pixel asks the windows that contain it, in the reference's order, and
sums what is its own. Every row of dx belongs to one thread, and is written past the caches if dx is
larger than they are.

Milliseconds: this / the NumPy reference / PyTorch 2.14.1 (channels last), float32, one thread of an
idle AMD Zen 5, minimum of 9:

    maximum, kernel 3, stride 2, padding 1, (16, 112, 112, 64)    3.1 / 163 / 5.2
    its gradient                                                  3.7 /  68 / 23
    global average, (64, 7, 7, 2048)                              1.7 / 3.2 / 1.3
    global maximum                                                1.2 /  17 / 1.0
"""

from __future__ import annotations

import numpy as np

from tinyft.backends.cpu.codegen.cache import helper, kernel
from tinyft.backends.cpu.codegen.simd import LANES
from tinyft.backends.cpu.codegen.vectors import (
    finish_streams,
    prefetch,
    vload,
    vpick_byte,
    vpick_equal,
    vpick_larger,
    vput,
    vset1,
    vstore,
    vstore_bytes,
)
from tinyft.backends.cpu.memory_bound.arrays import (
    flat,
    large,
    run_pieces,
    suitable,
    suitable_channels,
)
from tinyft.backends.cpu.runtime import threads, workspace
from tinyft.backends.cpu.runtime.work_stealing import next_item
from tinyft.backends.reference import Backend, output_size

AHEAD = 16  # pixels; what a window needs is asked for so far before
LARGEST_KERNEL = 15  # 15 * 15 places and the "none" after them fit into a byte
LARGEST_PICTURE = 1 << 24  # pixels that a float32 can number


@helper
def window(index, stride, padding, kernel_size, size):
    """Of a window along one axis: its first pixel (may be outside), and which of its kernel_size
    places lie inside the picture, from the first to before the last.
    """
    first = index * stride - padding
    return first, max(0, -first), min(kernel_size, size - first)


@kernel
def largest_of_windows(share, x, kernel_size, stride, padding, out, places):
    """x (N, H, W, C) -> out places (N, P, Q, C). An item is a row of outputs."""
    (N, H, W, C), (_, P, Q, _) = x.shape, out.shape
    one = vset1(np.float32(1))
    while True:
        item = next_item(share, N * P)
        if item >= N * P:
            break
        n, p = item // P, item % P
        row, r0, r1 = window(p, stride, padding, kernel_size, H)
        for q in range(Q):
            column, s0, s1 = window(q, stride, padding, kernel_size, W)
            for c in range(0, C, LANES):
                best = vset1(np.float32(-np.inf))
                place = vset1(np.float32(kernel_size * kernel_size))
                if r0 < r1 and s0 < s1:  # start with the first pixel: it may be -infinity itself
                    best = vload(x, ((n * H + row + r0) * W + column + s0) * C + c)
                    place = vset1(np.float32(r0 * kernel_size + s0))
                for r in range(r0, r1):
                    first = ((n * H + row + r) * W + column) * C + c
                    for s in range(min(stride, kernel_size)):
                        prefetch(x, first + (AHEAD + s) * C)
                    here = vset1(np.float32(r * kernel_size + s0))
                    for s in range(s0, s1):
                        pixel = vload(x, first + s * C)
                        place = vpick_larger(pixel, best, here, place)
                        best = vpick_larger(pixel, best, pixel, best)
                        here = here + one
                i = (item * Q + q) * C + c
                vstore(out, i, best)
                vstore_bytes(places, i, place)


@kernel
def ask_windows(share, work, dout, places, kernel_size, stride, padding, dx, large):
    """dout places (N, P, Q, C) -> dx (N, H, W, C). An item is a row of pixels. work (C,)

    forward was: out[p] = x[p * stride - padding + place[p]], the largest; so:
    dx[h] = sum of dout[p] over the windows p with place[p] = r = h + padding - p * stride, which
    are among those with 0 <= r < kernel_size
    """
    (N, H, W, C), (_, P, Q, _) = dx.shape, dout.shape
    zero = vset1(np.float32(0))
    while True:
        item = next_item(share, N * H)
        if item >= N * H:
            break
        n, h = item // H, item % H + padding
        p0, p1 = max(0, (h - kernel_size) // stride + 1), min(P - 1, h // stride)
        for column in range(W):
            w = column + padding
            q0, q1 = max(0, (w - kernel_size) // stride + 1), min(Q - 1, w // stride)
            pixel = (item * W + column) * C
            for c in range(0, C, LANES):
                vstore(work, c, zero)
            for p in range(p1, p0 - 1, -1):  # downwards: r and s go up, as in the reference
                for q in range(q1, q0 - 1, -1):
                    place = (h - p * stride) * kernel_size + w - q * stride
                    start = ((n * P + p) * Q + q) * C
                    for c in range(0, C, LANES):
                        gradient = vload(dout, start + c)
                        chosen = vpick_byte(places, start + c, place, gradient, zero)
                        vstore(work, c, vload(work, c) + chosen)
            for c in range(0, C, LANES):
                vput(dx, pixel + c, vload(work, c), large)
    finish_streams()


@kernel
def average_pictures(share, x, N, pixels, C, out):
    """x (N * pixels * C,) -> out (N * C,). An item is a picture.

    A rough mean first, then the mean of what is left, as for the moments of batch norm.
    """
    weight = vset1(np.float32(1.0 / pixels))
    while True:
        n = next_item(share, N)
        if n >= N:
            break
        for c in range(0, C, LANES):
            start = n * pixels * C + c
            total, left = vset1(np.float32(0)), vset1(np.float32(0))
            for pixel in range(pixels):
                total = total + vload(x, start + pixel * C)
            mean = total * weight
            for pixel in range(pixels):
                left = left + (vload(x, start + pixel * C) - mean)
            vstore(out, n * C + c, vpick_equal(left, left, mean + left * weight, mean))


@kernel
def largest_of_pictures(share, x, N, pixels, C, out, places):
    """x (N * pixels * C,) -> out, places (N * C,) as floats. An item is a picture."""
    while True:
        n = next_item(share, N)
        if n >= N:
            break
        for c in range(0, C, LANES):
            start = n * pixels * C + c
            best, place = vload(x, start), vset1(np.float32(0))
            for i in range(1, pixels):
                pixel = vload(x, start + i * C)
                place = vpick_larger(pixel, best, vset1(np.float32(i)), place)
                best = vpick_larger(pixel, best, pixel, best)
            vstore(out, n * C + c, best)
            vstore(places, n * C + c, place)


class Pooling(Backend):
    """The pooling kernels of the backend."""

    def max_pool2d(self, x, *, kernel, stride, padding):
        options = {"kernel": kernel, "stride": stride, "padding": padding}
        if x.ndim != 4 or not suitable_channels((x,), []) or not _countable(x.shape, **options):
            return super().max_pool2d(x, **options)
        N, H, W, C = x.shape
        P, Q = output_size(H, kernel, stride, padding), output_size(W, kernel, stride, padding)
        out = workspace.empty((N, P, Q, C))
        places = workspace.empty((N, P, Q, C), np.uint8)
        x = flat(x).reshape(x.shape)
        run_pieces(largest_of_windows, N * P, x, kernel, stride, padding, out, places)
        return out, places

    def max_pool2d_grad(self, dout, place, x_shape, *, kernel, stride, padding):
        options = {"kernel": kernel, "stride": stride, "padding": padding}
        N, H, W, C = x_shape
        P, Q = output_size(H, kernel, stride, padding), output_size(W, kernel, stride, padding)
        if (
            not suitable_channels((dout,), [])
            or not _countable(x_shape, **options)
            or dout.shape != (N, P, Q, C)
            or place.shape != dout.shape
        ):
            return super().max_pool2d_grad(dout, place, x_shape, **options)
        dx = workspace.empty(x_shape)
        place = flat(place.astype(np.uint8, copy=False)).reshape(dout.shape)
        threads.run_with_scratch(
            C, ask_windows, flat(dout).reshape(dout.shape), place, kernel, stride, padding, dx,
            large(dx),
        )  # fmt: skip
        return dx

    def global_average_pool(self, x):
        if x.ndim != 4 or not suitable_channels((x,), []):
            return super().global_average_pool(x)
        N, H, W, C = x.shape
        out = workspace.empty((N, C))
        run_pieces(average_pictures, N, flat(x), N, H * W, C, out.reshape(-1))
        return out

    def global_average_pool_grad(self, dout, x_shape):
        N, H, W, C = x_shape
        if not suitable(dout):
            return super().global_average_pool_grad(dout, x_shape)
        dx = workspace.empty(x_shape)
        # forward was: out = mean over the pixels of x; so: dx = dout / pixels
        dx[...] = dout.reshape(N, 1, 1, C) / (H * W)
        return dx

    def global_max_pool(self, x):
        if x.ndim != 4 or not suitable_channels((x,), []):
            return super().global_max_pool(x)
        N, H, W, C = x.shape
        if H * W > LARGEST_PICTURE:
            return super().global_max_pool(x)
        out, places = workspace.empty((N, C)), np.empty((N, C), np.float32)
        run_pieces(
            largest_of_pictures, N, flat(x), N, H * W, C, out.reshape(-1), places.reshape(-1)
        )
        return out, places.astype(np.int64)

    def global_max_pool_grad(self, dout, place, x_shape):
        N, H, W, C = x_shape
        if not suitable(dout):
            return super().global_max_pool_grad(dout, place, x_shape)
        dx = workspace.empty((N, H * W, C))
        dx.fill(0)
        np.put_along_axis(dx, place[:, None], dout[:, None], axis=1)
        return dx.reshape(x_shape)


def _countable(x_shape, *, kernel, stride, padding) -> bool:
    """Tell whether there are windows, whose places fit a byte, and numbers that cannot overflow."""
    return (
        0 < kernel <= LARGEST_KERNEL
        and stride > 0
        and 0 <= padding <= LARGEST_KERNEL
        and min(output_size(size, kernel, stride, padding) for size in x_shape[1:3]) > 0
    )
