"""Pooling on the GPU.

Definition: `max_pool2d`, `global_average_pool`, `global_max_pool` and their gradients of
`backends/reference.py`.
"""

from __future__ import annotations

import numpy as np

from tinyft.backends.gpu.memory import Memory
from tinyft.backends.reference import output_size

FIELDS = ("N", "H", "W", "C", "P", "Q", "kernel", "stride", "padding")
POOL = np.dtype([(name, np.int32) for name in FIELDS])  # `Pool` of pooling.cu


class Pooling(Memory):
    """The pooling kernels of the backend."""

    def max_pool2d(self, x, *, kernel, stride, padding):
        (x,) = self.ready("max_pool2d", x)
        N, H, W, C = x.shape
        P, Q = output_size(H, kernel, stride, padding), output_size(W, kernel, stride, padding)
        out, place = self.empty((N, P, Q, C), x.dtype), self.empty((N, P, Q, C), np.uint16)
        pool = np.array((*x.shape, P, Q, kernel, stride, padding), POOL)
        self.launch_each("pooling.max_pool", out.size, (x, out, place, pool), dtype=x.dtype)
        return out, place

    def max_pool2d_grad(self, dout, place, x_shape, *, kernel, stride, padding):
        (dout,) = self.ready("max_pool2d's gradient", dout)
        dx = self.empty(x_shape, dout.dtype)
        pool = np.array((*x_shape, *dout.shape[1:3], kernel, stride, padding), POOL)
        arguments = dout, self.contiguous(place), dx, pool
        self.launch_each("pooling.max_pool_grad", dx.size, arguments, dtype=dout.dtype)
        return dx

    def global_average_pool(self, x):
        (x,) = self.ready("global_average_pool", x)
        N, H, W, C = x.shape
        out = self.empty((N, C), x.dtype)
        self.launch_each("pooling.average_pool", out.size, (x, out, N, H * W, C), dtype=x.dtype)
        return out

    def global_average_pool_grad(self, dout, x_shape):
        (dout,) = self.ready("global_average_pool's gradient", dout)
        N, H, W, C = x_shape
        dx = self.empty(x_shape, dout.dtype)
        arguments = dout, dx, N, H * W, C
        self.launch_each("pooling.average_pool_grad", dx.size, arguments, dtype=dx.dtype)
        return dx

    def global_max_pool(self, x):
        (x,) = self.ready("global_max_pool", x)
        N, H, W, C = x.shape
        out, place = self.empty((N, C), x.dtype), self.empty((N, C), np.int64)
        self.launch_each("pooling.largest", out.size, (x, out, place, N, H * W, C), dtype=x.dtype)
        return out, place

    def global_max_pool_grad(self, dout, place, x_shape):
        (dout,) = self.ready("global_max_pool's gradient", dout)
        N, H, W, C = x_shape
        dx = self.empty(x_shape, dout.dtype)
        arguments = dout, self.contiguous(place), dx, N, H * W, C
        self.launch_each("pooling.largest_grad", dx.size, arguments, dtype=dx.dtype)
        return dx
