"""A first start compiles kernels: a second process takes a part of them.

Compiling holds a lock, so threads cannot share it; processes can, through the folder where kernels
are kept (tinyft/backends/cpu/compile_cache.py). A first training step meets the kernels of the
forward pass first. Meanwhile a helper calls those of the backward pass, with zeros of the same
shapes. The step goes through the backward pass from the last layer to the first, so the helper does
it the other way round, and they meet in the middle; it begins with kernels that the forward pass
will want later. Nothing is agreed upon: what both want at the same time, both compile.

Next: tinyft/cli/display.py
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray as Array

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
    from tinyft import backends

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


def call_gradients(arch: str, batch_size: int, size: int) -> None:
    """What the backward pass of a network's body and Adam call, with zeros, each kind of layer
    once.
    """
    import numpy as np

    from tinyft import backends
    from tinyft.nn import BatchNorm, Conv2d, build
    from tinyft.nn.summary import forward_nodes

    backend = backends.get("cpu")
    network = build(arch)
    modules = dict(network.named_modules())
    called = set()
    nodes = forward_nodes(network, (size, size, 3))
    # first the layers whose input gradient and forward pass have kernels in common
    for node in sorted(nodes, key=lambda node: not _is_strided_3x3(modules[node.layer])):
        layer, (first, *others) = modules[node.layer], node.shapes
        key = node.op, first, *others, getattr(layer, "stride", None)
        if key in called:
            continue
        called.add(key)
        x = np.zeros((batch_size, *first[1:]), np.float32)
        dout = np.zeros((batch_size, *node.output_shape[1:]), np.float32)
        if isinstance(layer, Conv2d):
            window = {"stride": layer.stride, "padding": layer.padding}
            backend.conv2d_input_grad(dout, layer.weight.data, x.shape, **window)
            backend.conv2d_weight_grad(dout, x, layer.weight.shape, **window)
            _call_adam(backend, layer.weight.data)
        elif isinstance(layer, BatchNorm):
            # where its ReLU was, its result tells, or x if no residual was added
            told_by = {"bias": None if len(others) > 2 else layer.bias.data}
            statistics = layer.running_mean, layer.running_var, layer.eps
            backend.batch_norm_train_grad(dout, x, layer.weight.data, *statistics, out=x, **told_by)
            backend.add(dout, x)
        elif node.op == "max_pool2d":
            window = {"kernel": 3, "stride": 2, "padding": 1}
            _, place = backend.max_pool2d(x, **window)
            backend.max_pool2d_grad(dout, place, x.shape, **window)


def _is_strided_3x3(layer) -> bool:
    from tinyft.nn import Conv2d

    is_strided = isinstance(layer, Conv2d) and layer.stride == 2
    return is_strided and layer.weight.shape[2:] == (3, 3)


def _call_adam(backend, weight: Array) -> None:
    import numpy as np

    gradient, average, average_square = (np.zeros_like(weight) for _ in range(3))
    rates = {"lr": 0.0, "momentum": 0.9, "square_momentum": 0.99, "weight_decay": 0.0}
    with backend.measured(weight, gradient):
        backend.adam_step(weight, gradient, average, average_square, step=1, eps=1e-5, **rates)
