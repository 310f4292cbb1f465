"""The optimizer steps on the GPU: all parameters of a step in one launch.

Definition: `adam_step` and `sgd_step` of `backends/reference.py`. Within `deferred_updates` a step is only
written down; at its end the kernel gets the whole table.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np

from tinyft.backends.gpu.memory import Array, Memory, memory_order

POINTERS = ("parameter", "gradient", "average", "average_square")
NUMBERS = (
    "decay", "momentum", "fresh", "square_momentum", "square_fresh", "correction", "rate", "eps",
)  # fmt: skip
ELEMENTS = 2048  # of a block, as long as there are fewer than MOST_BLOCKS
MOST_BLOCKS = 256  # for each parameter


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
        self._update("adam", [parameter, gradient, average, average_square], numbers)

    def sgd_step(self, parameter, gradient, velocity, *, lr, momentum, weight_decay):
        numbers = {"decay": 1 - lr * weight_decay, "momentum": momentum, "rate": lr}
        self._update("sgd", [parameter, gradient, velocity], numbers)

    def _update(self, kernel: str, arrays: list[Array | None], numbers: dict[str, float]) -> None:
        parameter = arrays[0]
        axes = memory_order(parameter)
        rows = [a if a is None else a.transpose(axes) for a in arrays]
        rows[1] = self.contiguous(rows[1])  # the gradient is only read
        if any(a is not None and not a.flags.c_contiguous for a in rows):
            raise ValueError(
                f"{kernel}: a parameter and what the optimizer remembers of it must be one piece "
                "of memory each, in the same order; make the state with zeros_like(parameter)"
            )
        self.ready(f"{kernel}'s step", *rows)
        if not parameter.size:
            return
        if _put_off.updates is None:
            self._launch_table(kernel, parameter.dtype, [(rows, numbers)])
        else:
            _put_off.updates.append((kernel, parameter.dtype, rows, numbers))

    def _launch_table(self, kernel: str, dtype: np.dtype, entries: list[tuple]) -> None:
        """`Update` of optimizers.cu, a line for each parameter."""
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
        self.launch(f"optimizers.{kernel}", grid, (self.upload(table.view(np.uint8)),), dtype=dtype)
