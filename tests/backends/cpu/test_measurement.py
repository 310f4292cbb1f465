"""What the ledger measures with, over every layout of memory that a parameter may have."""

from __future__ import annotations

import numpy as np
import pytest

from tinyft import backends
from tinyft.backends.cpu.memory_bound.arrays import PIECE, in_memory_order
from tinyft.backends.cpu.runtime import workspace
from tinyft.backends.cpu.runtime.threads import get_num_threads, set_num_threads

SMALL, LARGE = (4, 3, 2, 6), (64, 33, 3, 7)  # below and above workspace.SMALL and PIECE


def as_convolution(x):
    """Of the same shape, over memory ordered (R, S, C, F)."""
    return np.ascontiguousarray(x.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1)


def with_gaps(x):
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def backwards(x):
    return np.ascontiguousarray(x[::-1])[::-1]


def with_odd_strides(x):
    """Alike but for the stride of an axis of one element, which means nothing."""
    flat = x.reshape(-1)
    return np.ndarray((1, flat.size), x.dtype, flat, strides=(12, x.itemsize))


LAYOUTS = [np.array, as_convolution, with_gaps, read_only, backwards, with_odd_strides]


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_is_equal_and_in_the_same_order(layout, shape):
    x = layout(draw(shape))
    copied = backends.get("cpu").copy(x)
    np.testing.assert_array_equal(copied, x)
    assert not np.shares_memory(copied, x)
    assert copied.flags.writeable
    order = [np.argsort([-abs(s) for s in a.strides], kind="stable") for a in (copied, x)]
    assert layout is with_odd_strides or order[0].tolist() == order[1].tolist()


def test_a_copy_keeps_its_memory_while_any_view_of_it_lives():
    view = backends.get("cpu").copy(as_convolution(draw(LARGE)))[1:]
    others = [workspace.empty(LARGE) for _ in range(8)]
    for other in others:
        other[...] = 7
    np.testing.assert_array_equal(view, draw(LARGE)[1:])


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("of_gradient", LAYOUTS[:-1])
@pytest.mark.parametrize("of_weights", LAYOUTS[:-1])
def test_sums_do_not_depend_on_the_layout(of_weights, of_gradient, shape):
    w, v, g = (draw(shape, seed) for seed in range(3))
    v[0] = w[0]
    found = backends.get("cpu").update_sums(of_weights(w), of_weights(v), of_gradient(g))
    np.testing.assert_allclose(found, backends.get("reference").update_sums(w, v, g), rtol=1e-9)


def test_the_bits_of_sums_do_not_depend_on_the_threads():
    arrays = [draw((3 * PIECE + 5,), seed) for seed in range(3)]
    threads = get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            set_num_threads(count)
            found.append(backends.get("cpu").update_sums(*arrays))
    finally:
        set_num_threads(threads)
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


@pytest.mark.parametrize("layout", [np.array, as_convolution, with_odd_strides])
def test_rows_in_memory_order_are_the_arrays_own_memory(layout):
    """An optimizer writes into them."""
    w, state = layout(draw(SMALL)), layout(draw(SMALL, 1))
    for found, own in zip(in_memory_order(w, state, state), (w, state, state), strict=True):
        assert np.shares_memory(found, own) and found.shape == (own.size,)


@pytest.mark.parametrize("layout", [with_gaps, read_only, backwards])
def test_what_cannot_be_written_as_one_row_is_left_to_the_reference(layout):
    w = draw(SMALL)
    assert in_memory_order(layout(w), w) is None
    assert in_memory_order(w, w, layout(w)) is None
    first, gradient = in_memory_order(w, layout(w))  # a gradient is only read: it is copied
    assert np.shares_memory(first, w)
    np.testing.assert_array_equal(gradient, w.reshape(-1))


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("layout", [np.array, as_convolution, with_gaps])  # the last: no kernel
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "momentum"])
def test_a_measured_update_has_the_same_bits_and_the_sums(optimizer, layout, shape):
    cpu, gradient = backends.get("cpu"), layout(draw(shape, 1))

    def update(weights):
        numbers = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
        state = [layout(np.zeros(shape, np.float32)) for _ in range(2)]
        if optimizer == "adam":
            numbers |= {"step": 1, "square_momentum": 0.99, "eps": 1e-5}
            cpu.adam_step(weights, gradient, *state, **numbers)
        else:
            velocity = state[0] if optimizer == "momentum" else None
            cpu.sgd_step(weights, gradient, velocity, **numbers)

    before, plain, weights = (layout(draw(shape)) for _ in range(3))
    update(plain)
    with cpu.measured(weights, gradient) as found:
        update(weights)
    np.testing.assert_array_equal(weights, plain)
    expected = backends.get("reference").update_sums(before, weights, gradient)
    np.testing.assert_allclose(found, [expected], rtol=1e-9)
