"""A first start compiles kernels: a second process takes half of them.

Compiling holds a lock, so threads cannot share it; processes can, through the folder where kernels
are kept (tinyft/backends/cpu/compile_cache.py). A first training step meets the kernels of the
forward pass first. Meanwhile a helper calls those of the backward pass, the last layer's first,
with zeros of the same shapes. When the step gets there it finds them. Nothing is agreed upon: where
the two meet, one kernel is compiled twice.

Next: tinyft/cli/display.py
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import numpy as np

CHILD = "import sys; from tinyft.compile_ahead import child; child(*sys.argv[1:])"


@contextlib.contextmanager
def helped(device: str, arch: str, batch_size: int, size: int) -> Iterator[None]:
    """Within this block a helper compiles the kernels of the backward pass of `arch`, if this
    device wants kernels, none are kept yet but can be, and more than one thread is to compute.
    """
    helper = _start(arch, batch_size, size) if _nothing_compiled(device) else None
    try:
        yield
    finally:
        if helper:
            helper.kill()  # a file is there as a whole or not at all
            helper.wait()


def _nothing_compiled(device: str) -> bool:
    from tinyft import backends

    if backends.get(device).name != "cpu":
        return False
    from tinyft.backends.cpu import compile_cache, threads

    return threads.get_num_threads() > 1 and compile_cache.is_empty()


def _start(arch: str, batch_size: int, size: int) -> subprocess.Popen | None:
    """The helper; None where a program cannot start itself again, or may start no other."""
    arguments = [sys.executable, "-c", CHILD, arch, str(batch_size), str(size)]
    nowhere = subprocess.DEVNULL
    with contextlib.suppress(OSError):
        return subprocess.Popen(arguments, stdin=nowhere, stdout=nowhere, stderr=nowhere)
    return None


def child(arch: str, batch_size: str, size: str) -> None:
    """What the helper does."""
    call_gradients(arch, int(batch_size), int(size))


def call_gradients(arch: str, batch_size: int, size: int) -> None:
    """Everything that a backward pass and Adam call, with zeros, each kind of layer once."""
    from tinyft import backends
    from tinyft.nn import BatchNorm, Conv2d, build
    from tinyft.nn.summary import forward_nodes

    backend = backends.get("cpu")
    network = build(arch)
    modules = dict(network.named_modules())
    called = set()
    for node in reversed(forward_nodes(network, (size, size, 3))):
        layer, (first, *others) = modules[node.layer], node.shapes
        key = node.op, first, *others, getattr(layer, "stride", None)
        if key in called:
            continue
        called.add(key)
        x = np.zeros((batch_size, *first[1:]), np.float32)
        dout = np.zeros((batch_size, *node.output_shape[1:]), np.float32)
        if isinstance(layer, Conv2d):
            window = {"stride": layer.stride, "padding": layer.padding}
            backend.conv2d_weight_grad(dout, x, layer.weight.shape, **window)
            backend.conv2d_input_grad(dout, layer.weight.data, x.shape, **window)
            _call_adam(backend, layer.weight.data)
        elif isinstance(layer, BatchNorm):
            told_by = {"bias": None if len(others) > 2 else layer.bias.data}  # a residual is added
            statistics = layer.running_mean, layer.running_var, layer.eps
            backend.batch_norm_train_grad(dout, x, layer.weight.data, *statistics, out=x, **told_by)
            backend.add(dout, x)
        elif node.op == "max_pool2d":
            place = np.zeros(dout.shape, np.uint16)
            backend.max_pool2d_grad(dout, place, x.shape, kernel=3, stride=2, padding=1)


def _call_adam(backend, weight: np.ndarray) -> None:
    gradient, average, average_square = (np.zeros_like(weight) for _ in range(3))
    rates = {"lr": 0.0, "momentum": 0.9, "square_momentum": 0.99, "weight_decay": 0.0}
    with backend.measured(weight, gradient):
        backend.adam_step(weight, gradient, average, average_square, step=1, eps=1e-5, **rates)
