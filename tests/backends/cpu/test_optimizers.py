"""The fast optimizer steps: the same bits as their definition, whatever the order of memory."""

import numpy as np
import pytest

from tinyft.backends.cpu import CpuBackend
from tinyft.backends.cpu.runtime import threads
from tinyft.backends.reference import Backend

FAST, REFERENCE = CpuBackend(), Backend()
ADAM = {"lr": 3e-3, "momentum": 0.93, "square_momentum": 0.99, "eps": 1e-5, "weight_decay": 0.01}
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


def weight(shape, order=None, seed=0):
    """Random numbers of that shape; `order` says which axis lies outermost in memory, and so on."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if order is None:
        return values
    back = np.argsort(order)
    return np.ascontiguousarray(values.transpose(order)).transpose(back)


CASES = [
    ((64,), None),
    ((1000, 77), None),
    ((24, 5, 3, 3), (2, 3, 1, 0)),  # a convolution's weight over (R, S, C, F) memory
    ((512, 128, 1, 1), (2, 3, 1, 0)),
    ((1, 16, 3, 3), (2, 3, 1, 0)),
    ((7, 5), (1, 0)),
    ((), None),
]


@pytest.mark.parametrize("shape, order", CASES)
@pytest.mark.parametrize("gradient_order", ["same", None])
def test_adam(shape, order, gradient_order):
    ours = [weight(shape, order, seed) for seed in range(3)]
    ours[2] = np.square(ours[2])
    theirs = [a.copy(order="K") for a in ours]
    whole = ours[0]
    for step in range(1, 5):
        gradient = weight(shape, order if gradient_order == "same" else None, 10 + step)
        options = ADAM | {"step": step, "momentum": 0.95 - 0.02 * step}
        FAST.adam_step(ours[0], gradient, *ours[1:], **options)
        REFERENCE.adam_step(theirs[0], gradient, *theirs[1:], **options)
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(mine, other)
    assert whole is ours[0]
    assert (whole != weight(shape, order)).any()


@pytest.mark.parametrize("shape, order", CASES)
@pytest.mark.parametrize("with_velocity", [True, False])
def test_sgd(shape, order, with_velocity):
    ours = [weight(shape, order), weight(shape, order, 1) if with_velocity else None]
    theirs = [None if a is None else a.copy(order="K") for a in ours]
    for step in range(3):
        gradient = weight(shape, order, 10 + step)
        FAST.sgd_step(ours[0], gradient, ours[1], **SGD)
        REFERENCE.sgd_step(theirs[0], gradient, theirs[1], **SGD)
        np.testing.assert_array_equal(ours[0], theirs[0])
        if with_velocity:
            np.testing.assert_array_equal(ours[1], theirs[1])


def test_pieces_of_a_flat_buffer_and_what_lies_beside_them():
    buffer = np.arange(300, dtype=np.float32)
    parameter = buffer[100:200].reshape(10, 10)
    FAST.sgd_step(parameter, np.ones_like(parameter), None, **SGD)
    assert (buffer[:100] == np.arange(100)).all()
    assert (buffer[200:] == np.arange(200, 300)).all()
    assert (buffer[100:200] != np.arange(100, 200)).all()


def test_parameters_with_gaps_in_memory():
    ours = weight((20, 30))
    theirs = ours.copy()
    gradient = weight((10, 30), seed=1)
    FAST.sgd_step(ours[::2], gradient, None, **SGD)
    REFERENCE.sgd_step(theirs[::2], gradient, None, **SGD)
    np.testing.assert_array_equal(ours, theirs)


def test_state_in_another_order_than_the_parameter():
    shape = (8, 6, 3, 3)
    ours = [weight(shape, (2, 3, 1, 0)), weight(shape), np.square(weight(shape, (1, 0, 2, 3)))]
    theirs = [a.copy() for a in ours]
    FAST.adam_step(ours[0], weight(shape, seed=5), *ours[1:], step=1, **ADAM)
    REFERENCE.adam_step(theirs[0], weight(shape, seed=5), *theirs[1:], step=1, **ADAM)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_float64_read_only_empty_and_wrong_shapes():
    parameter = weight((5, 4)).astype(np.float64)
    FAST.sgd_step(parameter, np.ones((5, 4)), None, **SGD)
    assert parameter.dtype == np.float64
    frozen = weight((5, 4))
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        FAST.sgd_step(frozen, weight((5, 4)), None, **SGD)
    FAST.sgd_step(weight((0, 4)), weight((0, 4)), None, **SGD)
    with pytest.raises(ValueError):
        FAST.adam_step(weight(5), weight(4), weight(5), weight(5), step=1, **ADAM)


def test_a_gradient_that_is_read_only_is_read():
    parameter, gradient = weight((5, 4)), np.broadcast_to(np.float32(2), (5, 4))
    FAST.sgd_step(parameter, gradient, None, lr=1, momentum=0, weight_decay=0)
    np.testing.assert_array_equal(parameter, weight((5, 4)) - 2)


def test_bits_do_not_depend_on_threads():
    results, before = [], threads.get_num_threads()
    try:
        for count in (1, 2, 3):
            threads.set_num_threads(count)
            arrays = [weight((300, 400), seed=seed) for seed in range(3)]
            FAST.adam_step(arrays[0], arrays[1], arrays[2] * 0, arrays[2] ** 2, step=1, **ADAM)
            results.append(arrays[0].tobytes())
    finally:
        threads.set_num_threads(before)
    assert results[0] == results[1] == results[2]
