"""Optimizers against five recorded steps of fastai's, and whom they visit."""

from __future__ import annotations

import numpy as np
import pytest

from tinyft.engine.tensor import Tensor
from tinyft.finetune.groups import Group
from tinyft.finetune.optim import SGD, Adam


def group_of(values, dtype, weight_decay) -> Group:
    parameter = Tensor(np.array(values, dtype), requires_grad=True)
    return Group("all", {"p": parameter}, {}, frozenset(), weight_decay=weight_decay)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("recorded", "make"),
    [("adam", Adam), ("sgd", lambda g: SGD(g, momentum=0.9)), ("sgd_plain", SGD)],
)
def test_five_steps_are_fastais(golden, recorded, make, dtype):
    toy = golden["optimiser_toy"]["inputs"]
    group = group_of(toy["p0"], dtype, weight_decay=0.1)
    optimizer = make([group])
    rows = golden["optimiser_toy"][f"{recorded}_{dtype}"]
    for lr, momentum, gradient, row in zip(toy["lr"], toy["mom"], toy["grad"], rows, strict=True):
        group.lr, group.momentum = lr, momentum
        group.parameters["p"].grad = np.array(gradient, dtype)
        optimizer.step()
        tolerance = 1e-15 if dtype == "float64" else 2e-7
        found = group.parameters["p"].data
        np.testing.assert_allclose(found, row["p"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("make", [Adam, SGD, lambda g: SGD(g, momentum=0.9)])
def test_without_a_gradient_nothing_is_moved_decayed_or_remembered(make):
    group = group_of([1.0, 2.0], "float32", weight_decay=0.5)
    optimizer = make([group])
    optimizer.step()
    assert group.parameters["p"].data.tolist() == [1.0, 2.0]
    assert optimizer.state == {} and optimizer.visited == frozenset()


def test_undecayed_parameters_do_not_decay():
    group = group_of([1.0], "float64", weight_decay=0.5)
    group.undecayed = frozenset({"p"})
    group.parameters["p"].grad = np.zeros(1)
    Adam([group]).step()
    assert group.parameters["p"].data.tolist() == [1.0]


def test_weights_in_transposed_memory_get_the_same_step():
    draw = np.random.default_rng(0)
    values = draw.normal(size=(3, 3, 4, 5)).astype(np.float32)
    gradient = draw.normal(size=(5, 4, 3, 3)).astype(np.float32)
    shown = Tensor.wrap(values.transpose(3, 2, 0, 1))
    plain = Tensor.wrap(np.ascontiguousarray(shown.data))
    for parameter in (shown, plain):
        parameter.grad = gradient
        group = Group("all", {"p": parameter}, {}, frozenset(), lr=0.1)
        optimizer = Adam([group])
        optimizer.step()
        optimizer.step()
    np.testing.assert_array_equal(shown.data, plain.data)
