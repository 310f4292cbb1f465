"""The kernels of a backward pass, called with zeros: what the helper of compile_ahead.py does."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from tinyft import backends
from tinyft.nn import BatchNorm, Conv2d, Module, build
from tinyft.nn.layer_table import forward_nodes


class Call(NamedTuple):
    """One call of a layer or op: its backward is to be called with these zeros."""

    layer: Module
    op: str
    x: Array
    dout: Array
    has_residual: bool


def call_gradients(arch: str, batch_size: int, size: int, optimizer: str) -> None:
    """What the backward pass of a network's body and the optimizer call, with zeros, each kind of
    layer once.
    """
    calls = _calls(arch, batch_size, size)
    convolutions = [call for call in calls if isinstance(call.layer, Conv2d)]
    # What the forward pass will want late, too: kernels for strides.
    for call in convolutions[1:]:
        if call.layer.stride > 1:
            _call_input_grad(call)
    # What the backward pass wants last.
    for call in calls:
        if isinstance(call.layer, Conv2d):
            _call_weight_grad(call)
        elif call.op == "max_pool2d":
            _call_pool_grad(call)
    for call in convolutions[1:]:  # the pictures need no gradient
        _call_input_grad(call)
    for call in calls:
        if isinstance(call.layer, BatchNorm):
            _call_norm_grad(call)
    _call_optimizer(optimizer, convolutions[0].layer.weight.data)


def _calls(arch: str, batch_size: int, size: int) -> list[Call]:
    """Those of a forward pass, each kind once."""
    network = build(arch, seed=None)
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
    shape = call.layer.weight.shape
    backends.get("cpu").conv2d_weight_grad(call.dout, call.x, shape, **window)


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


def _call_optimizer(optimizer: str, weight: Array) -> None:
    backend, rates = backends.get("cpu"), {"lr": 0.0, "momentum": 0.9, "weight_decay": 0.0}
    gradient, *state = (np.zeros_like(weight) for _ in range(3))
    with backend.measured(weight, gradient):
        if optimizer == "adam":
            backend.adam_step(
                weight, gradient, *state, step=1, square_momentum=0.99, eps=1e-5, **rates
            )
        else:
            backend.sgd_step(weight, gradient, state[0], **rates)
