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
from collections.abc import Iterator

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
    return get(named[-1] if named else "auto")


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


__all__ = ["NAMES", "Backend", "get", "of", "use"]
