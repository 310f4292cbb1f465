"""A first start compiles kernels: a second process takes a part of them.

Compiling holds a lock, so threads cannot share it; processes can, through the folder where kernels
are kept (tinyft/backends/cpu/compile_cache.py). A first training step meets the kernels of the
forward pass first. Meanwhile a helper calls those of the backward pass, with zeros of the same
shapes. The step goes through the backward pass from the last layer to the first, so the helper does
it the other way round, and they meet in the middle; it begins with kernels that the forward pass
will want later. What both want at the same time, one compiles and the other waits for.

Next: tinyft/cli/display.py
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from tinyft import backends

if TYPE_CHECKING:
    from numpy import ndarray as Array

    from tinyft.nn import Module

# The helper imports what we import: `-c` alone would look into the current folder first. It ends
# when its stdin does, and so when this process ends in any way.
CHILD = (
    "import sys; sys.path[:] = sys.argv[4:];"
    "from tinyft.compile_ahead import child; child(*sys.argv[1:4])"
)
MARK = "TINYFT_COMPILES_AHEAD"  # in a helper's environment: it starts no other


@contextlib.contextmanager
def helped(device: str, arch: str, batch_size: int, size: int) -> Iterator[None]:
    """Within this block a helper compiles the kernels of the backward pass of `arch`, if this
    device wants kernels, none of these are kept yet but can be, and more than one thread is to
    compute.
    """
    helper = _start(arch, batch_size, size) if _wanted(device) else None
    try:
        yield
    finally:
        if helper:
            helper.kill()
            helper.wait()
            helper.stdin.close()
            from tinyft.backends.cpu import compile_cache

            compile_cache.remove_unfinished(helper.pid)


def _wanted(device: str) -> bool:
    if MARK in os.environ or backends.get(device).name != "cpu":
        return False
    from tinyft.backends.cpu import batch_norm, compile_cache, threads

    if threads.get_num_threads() == 1 or compile_cache.folder() is None:
        return False
    return not compile_cache.is_kept(batch_norm.sum_gradients)


def _start(arch: str, batch_size: int, size: int) -> subprocess.Popen | None:
    """The helper; None where there is no Python to start, or no other program may be started."""
    if not sys.executable or getattr(sys, "frozen", False):
        return None
    arguments = [sys.executable, "-c", CHILD, arch, str(batch_size), str(size), *sys.path]
    with contextlib.suppress(OSError):
        helper = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {MARK: "1"},
        )
        # It is done long before a run is: waited for here, it leaves no zombie.
        threading.Thread(target=helper.wait, daemon=True).start()
        return helper
    return None


def child(arch: str, batch_size: str, size: str) -> None:
    """What the helper does."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    call_gradients(arch, int(batch_size), int(size))


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


class Call(NamedTuple):
    """One call of a layer or op: its backward is to be called with these zeros."""

    layer: Module
    op: str
    x: Array
    dout: Array
    has_residual: bool


def call_gradients(arch: str, batch_size: int, size: int) -> None:
    """What the backward pass of a network's body and Adam call, with zeros, each kind of layer
    once.
    """
    from tinyft.nn import BatchNorm, Conv2d

    calls = _calls(arch, batch_size, size)
    convolutions = [call for call in calls if isinstance(call.layer, Conv2d)]
    # What the forward pass will want late, too: kernels for strides, and for the smallest maps.
    for call in convolutions[1:]:
        if call.layer.stride > 1 or call is convolutions[-1]:
            _call_input_grad(call)
    # What the backward pass wants last.
    for call in calls:
        if isinstance(call.layer, Conv2d):
            _call_weight_grad(call)
        elif call.op == "max_pool2d":
            _call_pool_grad(call)
    for call in calls:
        if isinstance(call.layer, Conv2d):
            _call_input_grad(call)
        elif isinstance(call.layer, BatchNorm):
            _call_norm_grad(call)


def _calls(arch: str, batch_size: int, size: int) -> list[Call]:
    """Those of a forward pass, each kind once."""
    import numpy as np

    from tinyft.nn import build
    from tinyft.nn.summary import forward_nodes

    network = build(arch)
    modules, found = dict(network.named_modules()), {}
    for node in forward_nodes(network, (size, size, 3)):
        layer = modules[node.layer]
        kind = node.op, *node.shapes, getattr(layer, "stride", None)
        if kind not in found:
            x, dout = (
                np.zeros((batch_size, *shape[1:]), np.float32)
                for shape in (node.shapes[0], node.output_shape)
            )
            found[kind] = Call(layer, node.op, x, dout, len(node.shapes) > 3)
    return list(found.values())


def _call_input_grad(call: Call) -> None:
    window = {"stride": call.layer.stride, "padding": call.layer.padding}
    backends.get("cpu").conv2d_input_grad(call.dout, call.layer.weight.data, call.x.shape, **window)


def _call_weight_grad(call: Call) -> None:
    window = {"stride": call.layer.stride, "padding": call.layer.padding}
    weight = call.layer.weight
    backends.get("cpu").conv2d_weight_grad(call.dout, call.x, weight.shape, **window)
    _call_adam(weight.data)


def _call_norm_grad(call: Call) -> None:
    layer, backend = call.layer, backends.get("cpu")
    # where its ReLU was, its result tells, or x if no residual was added
    told_by = {"out": call.x, "bias": None if call.has_residual else layer.bias.data}
    statistics = layer.running_mean, layer.running_var, layer.eps
    backend.batch_norm_train_grad(call.dout, call.x, layer.weight.data, *statistics, **told_by)
    backend.add(call.dout, call.x)


def _call_pool_grad(call: Call) -> None:
    backend, window = backends.get("cpu"), {"kernel": 3, "stride": 2, "padding": 1}
    _, place = backend.max_pool2d(call.x, **window)
    backend.max_pool2d_grad(call.dout, place, call.x.shape, **window)


def _call_adam(weight: Array) -> None:
    import numpy as np

    backend = backends.get("cpu")
    gradient, average, average_square = (np.zeros_like(weight) for _ in range(3))
    rates = {"lr": 0.0, "momentum": 0.9, "square_momentum": 0.99, "weight_decay": 0.0}
    with backend.measured(weight, gradient):
        backend.adam_step(weight, gradient, average, average_square, step=1, eps=1e-5, **rates)
