"""The Numba backend: the kernels of `reference.py`, as fast as the CPU allows, for float32.

Whatever the fast kernels do not take (other dtypes, arrays without elements) goes to the parent.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.cpu.conv import bf16, gemm, table
from tinyft.backends.cpu.memory_bound.batch_norm import BatchNorm
from tinyft.backends.cpu.memory_bound.elementwise import Elementwise
from tinyft.backends.cpu.memory_bound.optimizers import Optimizers
from tinyft.backends.cpu.memory_bound.pooling import Pooling
from tinyft.backends.cpu.runtime import packed_weights
from tinyft.backends.cpu.runtime.threads import get_num_threads
from tinyft.backends.reference import Backend
from tinyft.display import counted
from tinyft.errors import DeviceError


def _fast(*arrays: Array | None) -> bool:
    """True if every array is float32 and none is empty."""
    for a in arrays:  # noqa: SIM110 - `all` would call a generator once per array, in every op
        if a is not None and (a.dtype != np.float32 or a.size == 0):
            return False
    return True


class CpuBackend(BatchNorm, Pooling, Elementwise, Optimizers, Backend):
    """The kernels for float32 arrays; with `precision="bf16"`, 1x1 convolutions in bf16.

    Raises: DeviceError where there is no bf16
    """

    name = "cpu"

    def __init__(self, precision: str | None = None):
        if precision:
            if reason := bf16.why_not():
                raise DeviceError(f"backend 'cpu:{precision}' {reason}; use 'cpu'")
            self.precision, self.name = precision, f"cpu:{precision}"

    def description(self) -> str:
        note = ", 1x1 convolutions in bf16" if self.precision else ""
        return f"{self.name} (Numba kernels{note}), {counted(get_num_threads(), 'thread')}"

    # ---------------------------------------------------------------------------------- convolution

    def constant(self, x):
        return packed_weights.constant(x)

    def conv2d(self, x, weight, bias=None, *, stride=1, padding=0, residual=None, relu=False):
        options = {"stride": stride, "padding": padding, "residual": residual, "relu": relu}
        if _fast(x, weight, bias, residual):
            return table.conv2d(x, weight, bias, **options, precision=self.precision)
        return super().conv2d(x, weight, bias, **options)

    def conv2d_input_grad(self, dout, weight, x_shape, *, stride, padding):
        options = {"stride": stride, "padding": padding}
        if _fast(dout, weight):
            precision = self.precision
            return table.conv2d_input_grad(dout, weight, x_shape, **options, precision=precision)
        return super().conv2d_input_grad(dout, weight, x_shape, **options)

    def conv2d_weight_grad(self, dout, x, weight_shape, *, stride, padding):
        options = {"stride": stride, "padding": padding}
        if _fast(dout, x):
            precision = self.precision
            return table.conv2d_weight_grad(dout, x, weight_shape, **options, precision=precision)
        return super().conv2d_weight_grad(dout, x, weight_shape, **options)

    def matmul(self, a, b):
        if a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0] and _fast(a, b):
            return gemm.matmul(a, b)
        return super().matmul(a, b)
