"""Which backend computes an array: looked up at each call, so that `use` can exchange it.

`reference` is plain NumPy and defines every kernel; `cpu` is the same list with Numba where that
is faster; `gpu` (`gpu:1` for the second) computes arrays that lie in a GPU's memory.

    with backends.use("reference"):
        learner.fine_tune(1)

Next: tinyft/backends/reference.py
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Callable, Iterator

from numpy import ndarray as Array

from tinyft.backends.reference import Backend
from tinyft.errors import DeviceError

NAMES = ("reference", "cpu")  # those that compute in main memory

# What was given to `use`, innermost last: a name, the thread, and what tells it from its equals.
_chosen: list[tuple[str, int, object]] = []


@functools.cache
def get(name: str) -> Backend:
    """The backend of that name. `auto` is `cpu` where Numba works, else `reference`.

    Raises: DeviceError for a name that does not exist or a backend that does not work here.
    """
    if name == "auto":
        return get("reference" if why_no_numba() else "cpu")
    if name == "reference":
        return Backend()
    if name == "cpu":
        if why_no_numba():
            raise DeviceError(f"backend 'cpu' needs Numba: {why_no_numba()}; or use 'reference'")
        from tinyft.backends.cpu import CpuBackend

        return CpuBackend()
    if name == "gpu":
        return get("gpu:0")
    if re.fullmatch(r"gpu:\d+", name):
        from tinyft.backends.gpu import GpuBackend

        return GpuBackend(int(name.removeprefix("gpu:")))
    raise DeviceError(f"backend must be auto, {', '.join(NAMES)}, gpu or gpu:NUMBER; got {name!r}")


@functools.cache
def why_no_numba() -> str | None:
    """Why nothing can be compiled here, and what to do; None if it can."""
    try:
        import numba
    except ImportError as error:
        return f"`pip install numba` ({error})"
    return "unset NUMBA_DISABLE_JIT" if numba.config.DISABLE_JIT else None


def of(array: object) -> Backend:
    """The backend that computes with `array`. In main memory that is the innermost that `use`
    chose by name in this thread, else in any, else `auto`; an array on a GPU leaves no choice.
    """
    device = getattr(array, "device", "cpu")
    if device != "cpu":
        device = device_of(array)
    else:
        here = threading.get_ident()
        own = others = None
        for name, thread, _ in tuple(_chosen):  # other threads add to it and remove from it
            if name != "auto":
                own, others = (name, others) if thread == here else (own, name)
        device = own or others or "auto"
    backend = get(device)
    return _watched.by(backend) if _watched.by else backend


def arithmetic(name: str) -> dict[str, str]:
    """What decides the last bits of that backend's results, beside the versions of its packages:
    sums are rounded in another order in registers of another width, and by Winograd.
    """
    if name.startswith("gpu"):
        return {"backend": get(name).description()}
    if type(get(name)) is Backend:
        return {"backend": "reference"}
    from tinyft.backends.cpu.conv2d import LANES, winograd_is_on

    winograd = "on" if winograd_is_on() else "off"
    return {"backend": "cpu", "vector width": f"{LANES} floats", "Winograd": winograd}


@contextlib.contextmanager
def use(name: str) -> Iterator[Backend]:
    """Within this block every op runs on the backend called `name`, in this thread and in those
    that chose none themselves; `auto` leaves the choice to the blocks around it.
    """
    entry = name, threading.get_ident(), object()
    backend = get(name)
    _chosen.append(entry)
    try:
        with backend.current():
            yield backend
    finally:
        _chosen.remove(entry)


class _Watched(threading.local):
    """Per thread: what makes a stand-in for a backend, while somebody watches."""

    by: Callable[[Backend], Backend] | None = None


_watched = _Watched()


@contextlib.contextmanager
def watch(stand_in: Callable[[Backend], Backend] | None) -> Iterator[None]:
    """Within this block, in this thread, ops call `stand_in(backend)` instead of the backend: it
    may note what is called and has to call on. None: nobody watches.
    """
    before, _watched.by = _watched.by, stand_in
    try:
        yield
    finally:
        _watched.by = before


# ----------------------------------------------------------------------------- from place to place


def device_of(array: object) -> str:
    """Where an array lies: "cpu" (main memory), "gpu:0", "gpu:1", ...

    NumPy's arrays say "cpu" themselves; CuPy's have a device with a number.
    """
    device = getattr(array, "device", "cpu")
    return device if isinstance(device, str) else f"gpu:{device.id}"


def place(array: Array, device: str) -> Array:
    """`array` on the device of that name, in the same order of memory; itself if it is there."""
    backend = get(device)
    return array if device_of(array) == backend.device else backend.upload(host(array))


def host(array: Array) -> Array:
    """`array` in main memory; itself if it is there. From a GPU this waits for what it computes."""
    device = device_of(array)
    return array if device == "cpu" else get(device).download(array)


def beside(array: Array, other: Array) -> Array:
    """`array` on the device where `other` is."""
    return place(array, device_of(other)) if device_of(array) != device_of(other) else array


def assign(target: Array, values: Array) -> None:
    """Write values into an array, whatever devices the two are on."""
    target[...] = beside(values, target)


def together(array: Array | None) -> contextlib.AbstractContextManager:
    """Within this block the device of `array` may put optimizer steps off to its end, and make them
    at once. Main memory has no use for that.
    """
    device = "cpu" if array is None else device_of(array)
    return contextlib.nullcontext() if device == "cpu" else get(device).together()


def resolve(device: str) -> str:
    """`auto` as "gpu:0" where that works and no `use` has chosen; else as it is. A name as itself,
    "gpu" with its number.

    Raises: DeviceError for a name that does not exist or a backend that does not work here
    """
    if device == "auto":
        chosen = any(name != "auto" for name, _, _ in tuple(_chosen))
        return "gpu:0" if not chosen and gpu_available() else "auto"
    return get(device).name


def gpu_available() -> bool:
    """Whether `gpu` works here."""
    return why_no_gpu() is None


def gpu_info() -> str:
    """What `gpu` is here, or in a sentence why it does not work."""
    return why_no_gpu() or get("gpu").description()


@functools.cache
def why_no_gpu() -> str | None:
    """Why `gpu` does not work here; None if it does. Asked once: a driver does not come and go."""
    try:
        get("gpu")
    except DeviceError as error:
        return str(error)
    return None


__all__ = [
    "NAMES",
    "Backend",
    "arithmetic",
    "assign",
    "beside",
    "device_of",
    "get",
    "gpu_available",
    "gpu_info",
    "host",
    "of",
    "place",
    "resolve",
    "together",
    "use",
    "watch",
    "why_no_gpu",
]
