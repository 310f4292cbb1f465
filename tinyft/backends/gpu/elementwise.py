"""Computes on the GPU, element by element: activations, pooling, optimizers, and the product of the
head's matrices.

Definition: the methods of the same names of `backends/reference.py`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np

from tinyft.backends.gpu.memory import Array, Memory, memory_order
from tinyft.backends.reference import output_size

POOL_FIELDS = ("N", "H", "W", "C", "P", "Q", "kernel", "stride", "padding")
POOL = np.dtype([(name, np.int32) for name in POOL_FIELDS])  # `Pool` of elementwise.cu
POINTERS = ("parameter", "gradient", "average", "average_square")
NUMBERS = (
    "decay", "momentum", "fresh", "square_momentum", "square_fresh", "correction", "rate", "eps",
)  # fmt: skip
ELEMENTS = 2048  # of a block, as long as there are fewer than MOST_BLOCKS
MOST_BLOCKS = 256  # for each parameter


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


class Pooling(Memory):
    """The pooling kernels of the backend."""

    def max_pool2d(self, x, *, kernel, stride, padding):
        (x,) = self.ready("max_pool2d", x)
        N, H, W, C = x.shape
        P, Q = output_size(H, kernel, stride, padding), output_size(W, kernel, stride, padding)
        out, place = self.empty((N, P, Q, C), x.dtype), self.empty((N, P, Q, C), np.uint16)
        pool = np.array((*x.shape, P, Q, kernel, stride, padding), POOL)
        self.launch_each("elementwise.max_pool", out.size, (x, out, place, pool), dtype=x.dtype)
        return out, place

    def max_pool2d_grad(self, dout, place, x_shape, *, kernel, stride, padding):
        (dout,) = self.ready("max_pool2d's gradient", dout)
        dx = self.empty(x_shape, dout.dtype)
        pool = np.array((*x_shape, *dout.shape[1:3], kernel, stride, padding), POOL)
        arguments = dout, self.contiguous(place), dx, pool
        self.launch_each("elementwise.max_pool_grad", dx.size, arguments, dtype=dout.dtype)
        return dx

    def global_average_pool(self, x):
        (x,) = self.ready("global_average_pool", x)
        N, H, W, C = x.shape
        out = self.empty((N, C), x.dtype)
        self.launch_each("elementwise.average_pool", out.size, (x, out, N, H * W, C), dtype=x.dtype)
        return out

    def global_average_pool_grad(self, dout, x_shape):
        (dout,) = self.ready("global_average_pool's gradient", dout)
        N, H, W, C = x_shape
        dx = self.empty(x_shape, dout.dtype)
        arguments = dout, dx, N, H * W, C
        self.launch_each("elementwise.average_pool_grad", dx.size, arguments, dtype=dx.dtype)
        return dx

    def global_max_pool(self, x):
        (x,) = self.ready("global_max_pool", x)
        N, H, W, C = x.shape
        out, place = self.empty((N, C), x.dtype), self.empty((N, C), np.int64)
        self.launch_each(
            "elementwise.largest", out.size, (x, out, place, N, H * W, C), dtype=x.dtype
        )
        return out, place

    def global_max_pool_grad(self, dout, place, x_shape):
        (dout,) = self.ready("global_max_pool's gradient", dout)
        N, H, W, C = x_shape
        dx = self.empty(x_shape, dout.dtype)
        arguments = dout, self.contiguous(place), dx, N, H * W, C
        self.launch_each("elementwise.largest_grad", dx.size, arguments, dtype=dx.dtype)
        return dx


class _PutOff(threading.local):
    """Per thread: the updates to make at the end of `deferred_updates`; None outside of it."""

    updates: list[tuple[str, np.dtype, list[Array | None], dict[str, float]]] | None = None


_put_off = _PutOff()


class Optimizers(Memory):
    """The optimizer kernels of the backend."""

    @contextlib.contextmanager
    def deferred_updates(self) -> Iterator[None]:
        _put_off.updates = []
        try:
            yield
            updates, _put_off.updates = _put_off.updates, None
            for kind in {(kernel, dtype) for kernel, dtype, *_ in updates}:
                self._launch_table(*kind, [entry[2:] for entry in updates if entry[:2] == kind])
        finally:
            _put_off.updates = None

    def adam_step(
        self, parameter, gradient, average, average_square,
        *, step, lr, momentum, square_momentum, eps, weight_decay,
    ):  # fmt: skip
        numbers = {
            "decay": 1 - lr * weight_decay,
            "momentum": momentum,
            "fresh": 1 - momentum,
            "square_momentum": square_momentum,
            "square_fresh": 1 - square_momentum,
            "correction": 1 - square_momentum**step,
            "rate": lr / (1 - momentum**step),
            "eps": eps,
        }
        self._update("adam", parameter, gradient, [average, average_square], numbers)

    def sgd_step(self, parameter, gradient, velocity, *, lr, momentum, weight_decay):
        numbers = {"decay": 1 - lr * weight_decay, "momentum": momentum, "rate": lr}
        self._update("sgd", parameter, gradient, [velocity], numbers)

    def _update(
        self, kernel: str, parameter: Array, gradient: Array, state: list[Array | None],
        numbers: dict[str, float],
    ) -> None:  # fmt: skip
        axes = memory_order(parameter)
        gradient = self.contiguous(gradient.transpose(axes))  # it is only read
        state = [a if a is None else a.transpose(axes) for a in state]
        rows = [parameter.transpose(axes), gradient, *state]
        if any(a is not None and not a.flags.c_contiguous for a in rows):
            raise ValueError(
                f"{kernel}: a parameter and what the optimizer remembers of it must be one piece "
                "of memory each, in the same order; make the state with zeros_like(parameter)"
            )
        self.check(f"{kernel}'s step", rows)
        if not parameter.size:
            return
        if _put_off.updates is None:
            self._launch_table(kernel, parameter.dtype, [(rows, numbers)])
        else:
            _put_off.updates.append((kernel, parameter.dtype, rows, numbers))

    def _launch_table(self, kernel: str, dtype: np.dtype, entries: list[tuple]) -> None:
        """`Update` of elementwise.cu, a line for each parameter."""
        fields = [*((n, np.uint64) for n in POINTERS), ("size", np.int64)]
        table = np.zeros(len(entries), [*fields, *((n, dtype) for n in NUMBERS)])
        for line, (rows, numbers) in zip(table, entries, strict=True):
            for name, array in zip(POINTERS, rows, strict=False):
                line[name] = 0 if array is None else array.data.ptr
            line["size"] = rows[0].size
            for name, value in numbers.items():
                line[name] = value
        largest = max(rows[0].size for rows, _ in entries)
        grid = min(-(-largest // ELEMENTS), MOST_BLOCKS), len(entries)
        self.launch(
            f"elementwise.{kernel}", grid, (self.upload(table.view(np.uint8)),), dtype=dtype
        )
