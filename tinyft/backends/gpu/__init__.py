"""The GPU backend: the kernels of `reference.py` as CUDA C++, run through CuPy.

Two files belong to each family of kernels: what runs on the GPU (`conv2d.cu`), and the class that
checks arguments and starts it (`conv2d.py`). CuPy is imported when a device is opened, never
before.
"""

from __future__ import annotations

import os

from tinyft.backends.gpu.conv2d import Convolution
from tinyft.backends.gpu.elementwise import Elementwise, Optimizers, Pooling
from tinyft.backends.gpu.memory import Memory
from tinyft.backends.gpu.open import open_device
from tinyft.backends.gpu.reductions import BatchNorm, Loss, Measurement
from tinyft.backends.reference import Backend
from tinyft.errors import DeviceError

PRECISIONS = ("tf32", "fp32")


class GpuBackend(
    Convolution, BatchNorm, Pooling, Elementwise, Loss, Optimizers, Measurement, Memory, Backend
):
    """The kernels for float32 and float64 arrays on one GPU.

    `precision` is that of convolutions in float32: "tf32" rounds the factors of each product to 10
    bits of fraction, as PyTorch does by default; "fp32" rounds nothing. The head's matrix products
    are always fp32. The environment's TINYFT_PRECISION sets it; cards before compute capability
    8.0 have no TF32.
    """

    steps_between_reads = 50  # reading a loss waits for the GPU; this makes it rare

    def __init__(self, number: int = 0):
        """Raises: DeviceError if that GPU does not work here"""
        super().__init__(open_device(number))
        self.name = self.device = f"gpu:{number}"
        self.precision = self._precision()

    def _precision(self) -> str:
        wanted = os.environ.get("TINYFT_PRECISION", PRECISIONS[0])
        if wanted not in PRECISIONS:
            raise DeviceError(f"TINYFT_PRECISION must be tf32 or fp32; got {wanted!r}")
        return wanted if self.gpu.has_tf32 else "fp32"

    def description(self) -> str:
        gpu = self.gpu
        convolutions = "TF32" if self.precision == "tf32" else "fp32"
        note = "" if gpu.has_tf32 else f" (compute capability {gpu.capability} has no TF32)"
        return f"{self.name} ({gpu.name}, CuPy {gpu.version}, convolutions in {convolutions}{note})"
