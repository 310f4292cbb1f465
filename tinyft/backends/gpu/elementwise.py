"""Element by element on the GPU, and the head's matrix product.

Definition: `relu`, `relu_grad`, `dropout`, `images`, `running_average` and `matmul` of
`backends/reference.py`.
"""

from __future__ import annotations

import numpy as np

from tinyft.backends.gpu.memory import Memory


class Elementwise(Memory):
    """The elementwise kernels of the backend."""

    def matmul(self, a, b):
        a, b = self.ready("matmul", a, b)
        with self.current():
            return a @ b

    def relu(self, x):
        (x,) = self.ready("relu", x)
        out = self.empty(x.shape, x.dtype)
        self.launch_each("elementwise.relu", x.size, (x, out, np.int64(x.size)), dtype=x.dtype)
        return out

    def relu_grad(self, dout, out):
        dout, out = self.ready("relu's gradient", dout, out)
        dx = self.empty(dout.shape, dout.dtype)
        arguments = dout, out, dx, np.int64(dx.size)
        self.launch_each("elementwise.relu_grad", dx.size, arguments, dtype=dx.dtype)
        return dx

    def dropout(self, x, probability, seed, stream):
        (x,) = self.ready("dropout", x)
        out = self.empty(x.shape, x.dtype)
        words = seed, seed >> 32, *stream
        arguments = x, out, np.int64(x.size), np.uint32(probability * 2**32), 1 / (1 - probability)
        arguments += tuple(np.uint32(word & 0xFFFFFFFF) for word in words)
        self.launch_each("elementwise.dropout", x.size, arguments, dtype=x.dtype)
        return out

    def running_average(self, running, value, keep, weight):
        running, value = self.ready("running_average", running, value)
        out = self.empty(running.shape, running.dtype)
        arguments = running, value, out, float(keep), float(weight), np.int64(out.size)
        self.launch_each("elementwise.running_average", out.size, arguments, dtype=out.dtype)
        return out

    def images(self, pixels, mean, std, dtype):
        pixels, mean, std = map(self.upload, (pixels, mean, std))
        out = self.empty(pixels.shape, dtype)
        pixels = self.contiguous(pixels)
        arguments = pixels, mean, std, out, np.int64(out.size), pixels.shape[-1]
        self.launch_each("elementwise.images", out.size, arguments, dtype=np.dtype(dtype))
        return out
