"""Watching kernels: which one an op called, what did the work, and how long it took.

`backends.watch` puts a stand-in before the backend that notes each call and calls on. Which
compiled functions a call starts, the CPU backend says itself (`listeners` in
tinyft/backends/cpu/runtime/threads.py); a call that starts none was computed by NumPy, in the
reference.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyft import backends
from tinyft.backends import Backend
from tinyft.engine.tape import inside_an_op

_CONVOLVED = {  # the shapes of x and weight, from a convolution's arguments
    "conv2d": lambda x, weight, *_: (x.shape, weight.shape),
    "conv2d_input_grad": lambda dout, weight, x_shape: (x_shape, weight.shape),
    "conv2d_weight_grad": lambda dout, x, weight_shape: (x.shape, weight_shape),
}


@dataclass
class KernelCall:
    """One call of a backend's method. `started` names the compiled functions, as
    "winograd.convolve_tiles"; `algorithm`, for a convolution on the CPU, the row of the table in
    tinyft/backends/cpu/conv/table.py; `difference` is set where the reference was asked as well.
    A kernel that is not `inside_an_op` is an optimizer's, or a picture's.
    """

    kernel: str
    milliseconds: float
    started: tuple[str, ...]
    backend: str
    inside_an_op: bool
    algorithm: str | None = None
    difference: float | None = None
    # and results, until they are taken
    arguments: tuple[tuple, dict, Any] | None = field(default=None, repr=False)

    @property
    def whole(self) -> tuple[tuple, dict, Any]:
        """The arguments, the options and the result, which are not taken yet."""
        assert self.arguments is not None
        return self.arguments

    @property
    def by(self) -> str:
        """Name what computed: a convolution's algorithm, as "Winograd"; the module of the compiled
        functions, as "gemm"; or the backend that needs none.
        """
        if self.algorithm:
            return self.algorithm
        if self.started:
            return "+".join(dict.fromkeys(name.partition(".")[0] for name in self.started))
        return "reference" if self.backend.startswith("cpu") else self.backend

    def compare(self) -> None:
        """Set `difference` to the largest one from the reference's answer to the same arrays in
        float64, relative to the largest number of that answer.
        """
        args, options, result = self.whole
        reference = getattr(backends.get("reference"), self.kernel)
        expected = reference(*as_float64(args), **as_float64(options))
        pairs = zip(_floats(result), _floats(expected), strict=True)
        self.difference = max((_relative(a, b) for a, b in pairs), default=0.0)


class KernelWatch:
    """Notes the kernels that are called in this thread, in order."""

    def __init__(self) -> None:
        self.calls: list[KernelCall] = []
        self.thread = threading.get_ident()
        self.started: list[str] = []

    def take(self) -> list[KernelCall]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Note all that is called within this block."""

        def wrapper(backend: Backend) -> Backend:
            return _StandIn(backend, self)  # type: ignore[return-value]  # it has all by __getattr__

        with backends.watch(wrapper), _listening(self._start):
            yield

    def call(
        self, backend: Backend, name: str, method: Callable[..., Any], args: tuple, options: dict
    ) -> Any:
        """Call a kernel, and note it."""
        self.started = []
        begin = time.perf_counter()
        result = method(*args, **options)
        backend.synchronize()  # a GPU returns before it has computed
        seconds = time.perf_counter() - begin
        self.calls.append(
            KernelCall(
                name,
                seconds * 1e3,
                tuple(self.started),
                backend.name,
                inside_an_op(),
                _algorithm(backend, name, args, options) if self.started else None,
                arguments=(args, options, result),
            )
        )
        return result

    def _start(self, function: Callable[..., Any]) -> None:
        module = _short_name(function.__module__)
        if threading.get_ident() == self.thread and module != "threads":
            self.started.append(f"{module}.{function.__name__}")


def _short_name(module: str) -> str:
    """ "winograd" for tinyft.backends.cpu.conv.winograd.forward, "winograd_weight_grad" for the
    file beside it.
    """
    parts = module.split(".")[4:] or module.split(".")[-1:]  # below a folder of backends/cpu
    return "_".join(parts[:-1] if parts[-1] == "forward" else parts)


def _algorithm(backend: Backend, kernel: str, args: tuple, options: dict) -> str | None:
    """Name the CPU backend's algorithm that computed a convolution; None for another kernel."""
    if kernel not in _CONVOLVED:
        return None
    from tinyft.backends.cpu.conv.table import algorithm_of

    x_shape, weight_shape = _CONVOLVED[kernel](*args)
    stride, padding = options.get("stride", 1), options.get("padding", 0)
    return algorithm_of(kernel, x_shape, weight_shape, stride, padding, backend.precision)


class _StandIn:
    """A backend whose calls are noted."""

    def __init__(self, backend: Backend, watch: KernelWatch):
        self._backend, self._watch = backend, watch

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._backend, name)
        if not callable(value):
            return value

        def noted(*args: Any, **options: Any) -> Any:
            if not args:  # what takes no array computes nothing: a wait, a block to compute in
                return value(**options)
            return self._watch.call(self._backend, name, value, args, options)

        return noted


@contextlib.contextmanager
def _listening(listener: Callable[[Callable[..., Any]], None]) -> Iterator[None]:
    """The CPU backend's kernels tell the listener when they start; nothing where there is no Numba
    to compile any.
    """
    if backends.get("auto").name != "cpu":
        yield
        return
    from tinyft.backends.cpu.runtime.threads import listeners

    listeners.append(listener)
    try:
        yield
    finally:
        listeners.remove(listener)


def as_float64(value: Any) -> Any:
    """The same with every array in main memory, and floats in float64."""
    if isinstance(value, dict):
        return {name: as_float64(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(as_float64, value))
    if not hasattr(value, "dtype"):
        return value
    value = backends.host(value)
    return value.astype(np.float64) if value.dtype.kind == "f" else value


def _floats(result: Any) -> list[np.ndarray]:
    """The float arrays of a kernel's result, in main memory."""
    results = result if isinstance(result, tuple | list) else [result]
    return [backends.host(r) for r in results if hasattr(r, "dtype") and r.dtype.kind == "f"]


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest number."""
    if expected.size == 0:
        return 0.0
    largest = float(np.abs(expected).max())
    difference = float(np.abs(found.astype(np.float64) - expected).max())
    return difference / largest if largest else difference
