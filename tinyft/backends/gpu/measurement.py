"""What an update did to a parameter, measured on the GPU.

Definition: `update_sums` of `backends/reference.py`.
"""

from __future__ import annotations

import numpy as np

from tinyft.backends.gpu.memory import THREADS, Memory, memory_order

MOST_BLOCKS = 256
SUMS = 8


class Measurement(Memory):
    """The measuring kernel of the backend."""

    def update_sums(self, before, after, gradient):
        axes = memory_order(after)  # all three in one order, whichever it is
        arrays = self.ready("update_sums", *(a.transpose(axes) for a in (before, after, gradient)))
        size, dtype = after.size, after.dtype
        blocks = max(1, min(-(-size // THREADS), MOST_BLOCKS))
        partial, out = self.empty((blocks, SUMS), np.float64), self.empty((SUMS,), np.float64)
        arguments = *arrays, partial, np.int64(size)
        self.launch("measurement.update_sums", (blocks,), arguments, dtype=dtype)
        self.launch("measurement.finish_update_sums", (1,), (partial, out, blocks), dtype=dtype)
        return out
