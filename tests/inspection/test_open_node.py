"""One node opened: wrong kernels and wrong gradients show, right ones do not."""

from __future__ import annotations

import numpy as np
import pytest

import tinyft as ft
from tinyft import backends
from tinyft.backends.reference import Backend

DRAW = np.random.default_rng(0)


def leaf(*shape):
    return ft.Tensor(DRAW.standard_normal(shape).astype(np.float32), requires_grad=True)


OPS = {
    "conv2d": lambda: ft.ops.conv2d(leaf(2, 8, 8, 16), leaf(16, 16, 3, 3), padding=1, relu=True),
    "stem": lambda: ft.ops.conv2d(leaf(2, 9, 9, 3), leaf(16, 3, 3, 3), leaf(16), stride=2),
    "batch_norm": lambda: ft.ops.batch_norm(
        leaf(3, 4, 4, 16), leaf(16), leaf(16), residual=leaf(3, 4, 4, 16)
    )[0],
    "batch_norm_eval": lambda: ft.ops.batch_norm_eval(
        leaf(3, 4, 4, 16), leaf(16), leaf(16), np.zeros(16, np.float32), np.ones(16, np.float32)
    ),
    "max_pool2d": lambda: ft.ops.max_pool2d(leaf(2, 8, 8, 16), kernel=3, stride=2, padding=1),
    "linear": lambda: ft.ops.linear(leaf(4, 16), leaf(8, 16), leaf(8)),
    "concatenate": lambda: ft.ops.concatenate(leaf(2, 3), leaf(2, 5)),
    "dropout": lambda: ft.ops.dropout(leaf(40, 8), 0.5, seed=1, stream=(2, 3)),
    "cross_entropy": lambda: ft.ops.cross_entropy(
        leaf(4, 3), np.array([0, 2, 1, 0]), class_weights=np.array([1.0, 2.0, 3.0])
    ),
    "mul": lambda: leaf(3, 4) * leaf(4),
}


@pytest.mark.parametrize("name", OPS)
def test_right_kernels_and_gradients_agree(name):
    with ft.trace(open=[0]) as trace:
        out = OPS[name]()
        out.backward(DRAW.standard_normal(out.shape).astype(np.float32))
    node = trace[0]
    assert node.is_open
    calls = [*node.forward, *node.backward]
    assert all(call.difference < 2e-6 for call in calls)
    assert all(call.arguments is None for call in calls)  # let go
    assert {e.input for e in node.entries} == {i.name for i in node.inputs}
    for given in node.inputs:
        entries = [e for e in node.entries if e.input == given.name]
        assert len({e.index for e in entries}) == len(entries) == min(3, int(np.prod(given.shape)))
    assert all(e.kink or e.difference < 1e-5 for e in node.entries)
    assert sum(e.kink for e in node.entries) <= 1


def test_a_wrong_kernel_shows(monkeypatch):
    backend = type(backends.get("auto"))
    right = backend.relu
    monkeypatch.setattr(backend, "relu", lambda self, x: right(self, x) * np.float32(1.01))
    if backend is Backend:
        pytest.skip("without Numba there is nothing to compare with")
    with ft.trace(open=[0]) as trace:
        ft.ops.relu(leaf(64))
    # in units of the largest number of the answer
    assert trace[0].forward[0].difference == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("factor", [-1.0, 0.5, 1.001])
def test_a_wrong_gradient_shows(factor):
    @ft.op
    def square(x):
        """x * x."""
        kept = x.data
        return kept * kept, lambda dout: (np.float32(2 * factor) * kept * dout,)

    with ft.trace(open=[0]) as trace:
        ft.ops.sum(square(leaf(20))).backward()
    largest = max(trace[0].entries, key=lambda e: abs(e.backward))
    assert largest.difference == pytest.approx(abs(1 - 1 / factor), rel=1e-4)


def test_a_kink_is_called_one():
    x = ft.Tensor(np.array([0.0, 1.0, -2.0], np.float32), requires_grad=True)
    with ft.trace(open=[0]) as trace:
        ft.ops.relu(x).backward(np.ones(3, np.float32))
    kinks = {entry.index: entry.kink for entry in trace[0].entries}
    assert kinks == {(0,): True, (1,): False, (2,): False}
    assert "a kink: no derivative there" in str(trace[0])


def test_only_gradients_that_are_wanted_are_checked():
    frozen = ft.Tensor(DRAW.standard_normal((8, 16)).astype(np.float32))
    with ft.trace(open=[0]) as trace:
        out = ft.ops.linear(leaf(4, 16), frozen)
        out.backward(np.ones(out.shape, np.float32))
    assert {e.input for e in trace[0].entries} == {"x"}


def test_an_opened_node_without_backward_is_compared_all_the_same():
    with ft.no_grad(), ft.trace(open=[0]) as trace:
        ft.ops.relu(leaf(64))
    assert trace[0].forward[0].difference == 0.0
    assert trace[0].entries == []
    assert "no gradient to check by differences" in str(trace[0])
