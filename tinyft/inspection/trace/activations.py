"""Activations changed on the way: what would follow if a layer had put out something else.

    with ft.trace(model, change={"layer3.0.conv2": ft.inspection.ablate(7)}) as trace: ...

A change is any function of a layer's output, (N, H, W, C) or (N, C), made of operations: they stand
on the tape, and gradients go through them. A layer is a module, and what it puts out is the last of
the operations that it fuses: `layer3.0.bn2` has the shortcut and the ReLU in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import MethodType

import numpy as np

from tinyft.display import did_you_mean
from tinyft.engine.tensor import Tensor, as_tensor
from tinyft.nn.module import Module
from tinyft.ops import maximum

Change = Callable[[Tensor], Tensor]


def ablate(channel: int) -> Change:
    """Put 0 in place of a channel. Raises, when it runs: ValueError for one that is not there"""
    return lambda x: x * (_channels(x, channel) != channel)


def clamp(low: float, high: float) -> Change:
    """Put `low` and `high` in place of what lies beyond them; there no gradient passes.

    Raises: ValueError unless low is at most high
    """
    if not low <= high:
        raise ValueError(f"clamp: low should be at most high; got {low} and {high}")
    return lambda x: -maximum(-maximum(x, as_tensor(low, x)), as_tensor(-high, x))


def swap(channel: int, other: int) -> Change:
    """Put two channels in each other's place. Raises: as `ablate`"""
    places = {channel: other, other: channel}
    return lambda x: x[..., [places.get(c, c) for c in _channels(x, *places).tolist()]]


def _channels(x: Tensor, *asked: int) -> np.ndarray:
    """The numbers of all channels (C,). Raises: ValueError unless those asked for are among them"""
    C = x.shape[-1]
    for channel in asked:
        if not 0 <= channel < C:
            raise ValueError(f"the layer has the channels 0 to {C - 1}; got {channel}")
    return np.arange(C)


@contextlib.contextmanager
def changing(model: Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Within this block layers, by name, put out what the changes make of their outputs.

    Raises: ValueError for a layer that the network does not have
    """
    modules = dict(model.named_modules())
    for name in changes:
        if name not in modules:
            raise ValueError(f"the network has no layer {name!r}{did_you_mean(name, modules)}")
    for name, change in changes.items():
        followed = MethodType(_followed_by(change), modules[name])
        modules[name].forward = followed  # type: ignore[method-assign]  # of this module alone
    try:
        yield
    finally:
        for name in changes:
            del modules[name].forward


def _followed_by(change: Change) -> Callable:
    return lambda module, *args, **options: change(type(module).forward(module, *args, **options))
