"""Which backend computes an array: looked up at each call, so that `use` can exchange it.

`reference` is plain NumPy and defines every kernel; `cpu` is the same list with Numba where that
is faster.

    with backends.use("reference"):
        learner.fine_tune(1)

Next: tinyft/backends/reference.py
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
from collections.abc import Callable, Iterator

from tinyft.backends.reference import Backend
from tinyft.errors import DeviceError

NAMES = ("reference", "cpu")

_chosen: list[tuple[str, object]] = []  # names given to `use`, innermost last


@functools.cache
def get(name: str) -> Backend:
    """The backend of that name. `auto` is `cpu` where Numba is installed, else `reference`.

    Raises: DeviceError for a name that does not exist or a backend that does not work here.
    """
    if name == "auto":
        return get("cpu" if importlib.util.find_spec("numba") else "reference")
    if name == "reference":
        return Backend()
    if name == "cpu":
        if importlib.util.find_spec("numba") is None:
            raise DeviceError("backend 'cpu' needs Numba: `pip install numba`, or use 'reference'")
        from tinyft.backends.cpu import CpuBackend

        return CpuBackend()
    raise DeviceError(f"backend must be auto or one of {', '.join(NAMES)}; got {name!r}")


def of(array: object) -> Backend:
    """The backend that computes with `array`: the innermost that `use` chose by name, else `auto`.

    All backends so far compute with NumPy arrays, so the array itself does not matter yet.
    """
    named = [name for name, _ in _chosen if name != "auto"]
    backend = get(named[-1] if named else "auto")
    return _watched.by(backend) if _watched.by else backend


def arithmetic(name: str) -> dict[str, str]:
    """What decides the last bits of that backend's results, beside the versions of its packages:
    sums are rounded in another order in registers of another width, and by Winograd.
    """
    if type(get(name)) is Backend:
        return {"backend": "reference"}
    from tinyft.backends.cpu.conv2d import LANES, winograd_is_on

    winograd = "on" if winograd_is_on() else "off"
    return {"backend": "cpu", "vector width": f"{LANES} floats", "Winograd": winograd}


@contextlib.contextmanager
def use(name: str) -> Iterator[Backend]:
    """Within this block every op runs on the backend called `name`, in all threads; `auto` leaves
    the choice to the blocks around it.
    """
    entry = name, object()  # the object tells it from others of the same name
    backend = get(name)
    _chosen.append(entry)
    try:
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


__all__ = ["NAMES", "Backend", "arithmetic", "get", "of", "use", "watch"]
