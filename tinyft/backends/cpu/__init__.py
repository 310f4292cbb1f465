"""The Numba backend: the kernels of `reference.py`, as fast as the CPU allows, for float32.

Whatever the fast kernels do not take (other dtypes, arrays without elements) goes to the parent.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.conv import gemm, table
from tinyft.backends.cpu.memory_bound.batch_norm import BatchNorm
from tinyft.backends.cpu.memory_bound.elementwise import Elementwise
from tinyft.backends.cpu.memory_bound.optimizers import Optimizers
from tinyft.backends.cpu.memory_bound.pooling import Pooling
from tinyft.backends.cpu.runtime import packed_weights
from tinyft.backends.cpu.runtime.threads import get_num_threads
from tinyft.backends.reference import Backend
from tinyft.display import counted


def _fast(*arrays: Array | None) -> bool:
    """True if every array is float32 and none is empty."""
    for a in arrays:  # noqa: SIM110 - `all` would call a generator once per array, in every op
        if a is not None and (a.dtype != np.float32 or a.size == 0):
            return False
    return True


class CpuBackend(BatchNorm, Pooling, Elementwise, Optimizers, Backend):
    name = "cpu"

    def description(self) -> str:
        return f"cpu (Numba kernels), {counted(get_num_threads(), 'thread')}"

    # ---------------------------------------------------------------------------------- convolution

    def constant(self, x):
        return packed_weights.constant(x)

    def conv2d(self, x, weight, bias=None, *, stride=1, padding=0, residual=None, relu=False):
        options = {"stride": stride, "padding": padding, "residual": residual, "relu": relu}
        compute = table.conv2d if _fast(x, weight, bias, residual) else super().conv2d
        return compute(x, weight, bias, **options)

    def conv2d_input_grad(self, dout, weight, x_shape, *, stride, padding):
        fast = _fast(dout, weight)
        compute = table.conv2d_input_grad if fast else super().conv2d_input_grad
        return compute(dout, weight, x_shape, stride=stride, padding=padding)

    def conv2d_weight_grad(self, dout, x, weight_shape, *, stride, padding):
        fast = _fast(dout, x)
        compute = table.conv2d_weight_grad if fast else super().conv2d_weight_grad
        return compute(dout, x, weight_shape, stride=stride, padding=padding)

    def matmul(self, a, b):
        if a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0] and _fast(a, b):
            return gemm.matmul(a, b)
        return super().matmul(a, b)
