"""The Numba backend: the kernels of `reference.py`, as fast as the CPU allows, for float32."""

from __future__ import annotations

import numpy as np

from tinyft.backends.cpu import conv2d
from tinyft.backends.reference import Backend


def _fast(*arrays):
    """True if every array is float32 and none is empty: what the kernels take."""
    return all(a is None or (a.dtype == np.float32 and a.size) for a in arrays)


class CpuBackend(Backend):
    name = "cpu"

    # ---------------------------------------------------------------------------------- convolution

    def conv2d(self, x, weight, bias=None, *, stride=1, padding=0, residual=None, relu=False):
        if not _fast(x, weight, bias, residual):
            return super().conv2d(
                x, weight, bias, stride=stride, padding=padding, residual=residual, relu=relu
            )
        return conv2d.conv2d(x, weight, bias, stride, padding, residual, relu)

    def conv2d_input_grad(self, dout, weight, x_shape, *, stride, padding):
        if not _fast(dout, weight):
            return super().conv2d_input_grad(dout, weight, x_shape, stride=stride, padding=padding)
        return conv2d.conv2d_input_grad(dout, weight, x_shape, stride, padding)

    def conv2d_weight_grad(self, dout, x, weight_shape, *, stride, padding):
        if not _fast(dout, x):
            return super().conv2d_weight_grad(dout, x, weight_shape, stride=stride, padding=padding)
        return conv2d.conv2d_weight_grad(dout, x, weight_shape, stride, padding)
