"""Finds the backend that computes an array: looked up at each call, so that `use` can exchange it.

`reference` is plain NumPy and defines every kernel; `cpu` is the same list with Numba where that
is faster; `cpu:bf16` is that with some products in half the precision (backends/cpu/conv/bf16.py);
`gpu` (`gpu:1` for the second) computes arrays that lie in a GPU's memory.

    with backends.use("reference"):
        learner.fine_tune(1)

Each thread chooses for itself, as with `no_grad`: what one asks for does not change what another
computes. Threads that read pictures ahead, and those of the CPU's kernels, ask for no backend.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from numpy import ndarray as Array

from tinyft.backends.reference import Backend
from tinyft.errors import DeviceError

NAMES = ("reference", "cpu")  # those that compute in main memory


class _Choice(threading.local):
    """One thread's choice: a name for each `use` block that is open, innermost last, with an object
    that tells it from its equals; and what wraps each backend, within `watch`.
    """

    def __init__(self) -> None:
        self.blocks: list[tuple[str, object]] = []
        self.wrapper: Callable[[Backend], Any] | None = None

    def name(self) -> str:
        return self.blocks[-1][0] if self.blocks else "auto"


_choice = _Choice()


@functools.cache
def get(name: str) -> Backend:
    """The backend of that name. `auto` is `cpu` where Numba works, else `reference`.

    Raises: DeviceError for a name that does not exist or a backend that does not work here.
    """
    if name == "auto":
        if why_no_numba():
            text = f"plain NumPy computes, many times slower than Numba would: {why_no_numba()}"
            warnings.warn(text, RuntimeWarning, stacklevel=3)  # once: this function is cached
        return get("reference" if why_no_numba() else "cpu")
    if name == "reference":
        return Backend()
    if name in ("cpu", "cpu:bf16"):
        if why_no_numba():
            raise DeviceError(f"backend {name!r} needs Numba: {why_no_numba()}; or use 'reference'")
        from tinyft.backends.cpu import CpuBackend

        return CpuBackend(name.removeprefix("cpu").removeprefix(":") or None)
    if name == "gpu":
        return get("gpu:0")
    if re.fullmatch(r"gpu:\d+", name):
        from tinyft.backends.gpu import GpuBackend

        return GpuBackend(int(name.removeprefix("gpu:")))
    names = f"auto, {', '.join(NAMES)}, cpu:bf16, gpu or gpu:NUMBER"
    raise DeviceError(f"backend must be {names}; got {name!r}")


@functools.cache
def why_no_numba() -> str | None:
    """Say why nothing can be compiled here, and what to do; None if it can, which is tried."""
    try:
        import numba
    except Exception as error:  # not there, or not made for this Python or NumPy
        return f"`pip install numba` ({error})"
    try:
        from numba import config

        if getattr(config, "DISABLE_JIT", False):
            return "unset NUMBA_DISABLE_JIT"
        from tinyft.backends.cpu.runtime import threads

        threads.try_out()
    except Exception as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())
        return f"another version than Numba {numba.__version__}, which fails here ({found})"
    return None


def of(array: object) -> Backend:
    """The backend that computes with `array`. In main memory that is the one that `use` chose in
    this thread, else `auto`; an array on a GPU leaves no choice.
    """
    in_main_memory = getattr(array, "device", "cpu") == "cpu"
    backend = get(_choice.name() if in_main_memory else device_of(array))
    return _choice.wrapper(backend) if _choice.wrapper else backend


def numerics(name: str) -> dict[str, str]:
    """List what decides the last bits of that backend's results, besides its packages' versions:
    registers of another width, and Winograd, add up in another order.
    """
    if name.startswith("gpu"):
        return {"backend": get(name).description()}
    if type(get(name)) is Backend:
        return {"backend": "reference"}
    from tinyft.backends.cpu.codegen.simd import LANES
    from tinyft.backends.cpu.conv.table import winograd_is_on

    winograd = "on" if winograd_is_on() else "off"
    return {"backend": get(name).name, "vector width": f"{LANES} floats", "Winograd": winograd}


@contextlib.contextmanager
def use(name: str) -> Iterator[Backend]:
    """Within this block, in this thread, every op runs on the backend called `name`; `auto` leaves
    the choice to the blocks around it.
    """
    backend = get(name)
    block = (_choice.name() if name == "auto" else name), object()
    blocks = _choice.blocks  # this thread's, also if another one's collector ends the block
    blocks.append(block)
    try:
        with backend.current():
            yield backend
    finally:
        blocks.remove(block)


@contextlib.contextmanager
def watch(wrapper: Callable[[Backend], Any] | None) -> Iterator[None]:
    """Within this block, in this thread, ops call `wrapper(backend)` instead of the backend: it
    looks like one, may note what is called and has to call on. None: nobody watches.
    """
    before, _choice.wrapper = _choice.wrapper, wrapper
    try:
        yield
    finally:
        _choice.wrapper = before


# ----------------------------------------------------------------------------- from place to place


def device_of(array: object) -> str:
    """Name the place where an array lies: "cpu" (main memory), "gpu:0", "gpu:1", ...

    NumPy's arrays say "cpu" themselves; CuPy's have a device with a number.
    """
    device = getattr(array, "device", "cpu")
    return device if isinstance(device, str) else f"gpu:{device.id}"


def place(array: Array, device: str) -> Array:
    """`array` on the device of that name, in the same order of memory; itself if it is there."""
    if device == "cpu":  # main memory, whether or not Numba can compute there
        return host(array)
    backend = get(device)
    return array if device_of(array) == backend.device else backend.upload(host(array))


def host(array: Array) -> Array:
    """`array` in main memory; itself if it is there. From a GPU this waits for what it computes."""
    device = device_of(array)
    return array if device == "cpu" else get(device).download(array)


def place_like(array: Array, other: Array) -> Array:
    """`array` on the device where `other` is."""
    return place(array, device_of(other))


def assign(target: Array, values: Array) -> None:
    """Write values into an array, whatever devices the two are on."""
    target[...] = place_like(values, target)


def deferred_updates(array: Array | None) -> contextlib.AbstractContextManager[object]:
    """Within this block the device of `array` may put optimizer steps off to its end, and make them
    in one launch. Main memory has no use for that.
    """
    device = "cpu" if array is None else device_of(array)
    return contextlib.nullcontext() if device == "cpu" else get(device).deferred_updates()


def resolve(device: str) -> str:
    """`auto` as "gpu:0" where that works and no `use` has chosen in this thread; else as it is. A
    name as itself, "gpu" with its number.

    Raises: DeviceError for a name that does not exist or a backend that does not work here
    """
    if device == "auto":
        return "gpu:0" if _choice.name() == "auto" and gpu_available() else "auto"
    return get(device).name


def gpu_available() -> bool:
    """True if `gpu` works here."""
    return why_no_gpu() is None


def gpu_info() -> str:
    """Describe `gpu`, or say in a sentence why it does not work here."""
    return why_no_gpu() or get("gpu").description()


@functools.cache
def why_no_gpu() -> str | None:
    """Say why `gpu` does not work here; None if it does. Tried once: drivers do not come and go."""
    try:
        get("gpu")
    except DeviceError as error:
        return str(error)
    return None
