"""Packed panels and transformed filters of a weight, kept if the weight cannot change.

Making them costs a pass over the weights: some 7 % of ResNet-18's inference for 16 pictures. While
a network trains, its weights change from call to call, so they are made anew, in scratch memory.
The weights of a folded network stay: `Backend.constant` makes them read-only, and what was made of
such an array is kept as long as the array lives: four times its memory for each algorithm that
uses it, more where channels are padded.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from numpy import ndarray as Array

from tinyft.backends.cpu.runtime import workspace

# Of each constant, by its identity, itself and what was made of it. Another array may get a dead
# one's identity, and a Ctrl-C may come while that is forgotten.
_kept: dict[int, tuple[weakref.ref, dict[str, Array]]] = {}


def constant(array: Array) -> Array:
    """A copy that lies in memory as `array` does, and cannot be written to."""
    shown = array.copy(order="K").view()
    shown.flags.writeable = False
    _remember(shown)
    return shown


def is_constant(weight: Array) -> bool:
    """True if what is made of it is kept."""
    return _made_of(weight) is not None


def memory(weight: Array) -> Array:
    """The same numbers as kernels take them: a read-only array would be another type to Numba."""
    shown_of = weight.base  # see `constant`
    if shown_of is None or weight.flags.writeable or not is_constant(weight):
        return weight
    return shown_of


def keep(weight: Array, what: str, make: Callable[[], Array]) -> Array:
    """make(); of a constant only at the first call. What is made of a constant is one, too."""
    made = _made_of(weight)
    if made is None:
        return make()
    if what not in made:
        made[what] = make()
        _remember(made[what])
    return made[what]


def buffer(weight: Array, what: str, size: int) -> Array:
    """Memory for what is made of a weight: its own for a constant, else scratch."""
    return workspace.aligned_empty(size) if is_constant(weight) else workspace.scratch(what, size)


def _made_of(weight: Array) -> dict[str, Array] | None:
    """Return what was made of it so far; None unless it is a constant."""
    itself, made = _kept.get(id(weight), (None, None))
    return made if itself is not None and itself() is weight else None


def _remember(array: Array) -> None:
    if _made_of(array) is None:
        _kept[id(array)] = weakref.ref(array), {}
        weakref.finalize(array, _kept.pop, id(array), None).atexit = False
