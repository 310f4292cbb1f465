"""ReLU, dropout, pictures and sums: the same bits as their definition."""

import numpy as np
import pytest

from tinyft.backends.cpu import CpuBackend
from tinyft.backends.cpu.runtime import threads, workspace
from tinyft.backends.reference import Backend

FAST, REFERENCE = CpuBackend(), Backend()
SHAPES = [(1,), (7,), (3, 5), (2, 3, 4, 5), (100_003,), (4, 40, 41, 16), ()]


def numbers(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def leave_nan(shape):
    for array in [workspace.empty(shape) for _ in range(3)]:
        array.fill(np.nan)


@pytest.mark.parametrize("shape", SHAPES)
def test_relu_and_its_gradient(shape):
    x, dout = numbers(shape), numbers(shape, 1)
    if x.size > 3:
        x.flat[:4] = np.nan, np.inf, -np.inf, 0
        x.flat[-1] = np.nan
    leave_nan(shape)
    out = FAST.relu(x)
    np.testing.assert_array_equal(out, REFERENCE.relu(x))
    np.testing.assert_array_equal(FAST.relu_grad(dout, out), REFERENCE.relu_grad(dout, out))
    np.testing.assert_array_equal(FAST.relu_grad(dout, x), REFERENCE.relu_grad(dout, x))
    assert out.dtype == np.float32
    assert out.shape == shape


@pytest.mark.parametrize("shape", SHAPES)
def test_add(shape):
    a, b = numbers(shape), numbers(shape, 1)
    total = FAST.add(a, b)
    np.testing.assert_array_equal(total, a + b)
    assert total.shape == shape
    assert not np.shares_memory(total, a)
    np.testing.assert_array_equal(FAST.add(a.T, b.T), a.T + b.T)


def test_a_number_and_an_array_are_the_reference_s():
    number, array = np.array(2, np.float32), numbers((3,))
    for a, b in ((number, array), (array, number)):
        np.testing.assert_array_equal(FAST.add(a, b), a + b)


def test_a_large_sum_is_written_past_the_caches(monkeypatch):
    monkeypatch.setattr("tinyft.backends.cpu.memory_bound.arrays.BEYOND_CACHES", 40_000)
    a, b = numbers((40_003,)), numbers((40_003,), 1)  # and 3 numbers behind the last register
    np.testing.assert_array_equal(FAST.add(a, b), a + b)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("seed, stream", [(0, (0, 0)), (2**63 + 5, (7, 2**32 - 1))])
def test_dropout(shape, probability, seed, stream):
    x = numbers(shape)
    leave_nan(shape)
    got = FAST.dropout(x, probability, seed, stream)
    np.testing.assert_array_equal(got, REFERENCE.dropout(x, probability, seed, stream))
    assert got.dtype == np.float32


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (1, 1, 1, 1), (3, 90, 70, 3), (2, 4, 4, 10)])
def test_images(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    mean = np.random.default_rng(1).uniform(0.3, 0.6, shape[-1]).astype(np.float32)
    leave_nan(shape)
    for turned in (pixels, pixels[:, ::-1], np.asfortranarray(pixels)):
        got = FAST.images(turned, mean, mean / 2, np.float32)
        np.testing.assert_array_equal(got, REFERENCE.images(turned, mean, mean / 2, np.float32))
        assert got.dtype == np.float32
    assert FAST.images(pixels, mean, mean, np.float64).dtype == np.float64
    assert FAST.images(pixels[:0], mean, mean, np.float32).shape == (0, *shape[1:])


@pytest.mark.parametrize("name", ["relu", "relu_grad", "add", "dropout", "images", "sum"])
def test_none_of_these_is_left_to_the_reference(name):
    assert getattr(CpuBackend, name) is not getattr(Backend, name)


@pytest.mark.parametrize("shape", [(5, 3), (3, 40, 50, 64), (2, 3, 4, 37), (1000, 1), (2, 3, 2048)])
def test_sum_over_rows(shape):
    x = numbers(shape) + 10
    axis = tuple(range(len(shape) - 1))
    for keepdims in (False, True):
        got = FAST.sum(x, axis, keepdims)
        want = REFERENCE.sum(x, axis, keepdims)
        assert got.shape == want.shape
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=1.2e-7)  # float64 sums: the last bit, if any
    np.testing.assert_array_equal(FAST.sum(x, None), REFERENCE.sum(x, None))
    np.testing.assert_array_equal(FAST.sum(x, (0,)), REFERENCE.sum(x, (0,)))


def test_bits_do_not_depend_on_threads():
    x = numbers((4, 50, 50, 37))
    results, before = [], threads.get_num_threads()
    try:
        for count in (1, 2, 3):
            threads.set_num_threads(count)
            results.append((FAST.sum(x, (0, 1, 2)), FAST.dropout(x, 0.3, 1, (2, 3)), FAST.relu(x)))
    finally:
        threads.set_num_threads(before)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert first.tobytes() == second.tobytes()


def test_other_dtypes_and_layouts():
    x = numbers((6, 5, 4))
    for other in (x.astype(np.float64), np.asfortranarray(x), x[::2], x[:0], x.astype(np.float16)):
        got, want = FAST.relu(other), REFERENCE.relu(other)
        np.testing.assert_array_equal(got, want)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(
            FAST.dropout(other, 0.5, 1, (1, 1)), REFERENCE.dropout(other, 0.5, 1, (1, 1))
        )
    frozen = x.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(FAST.relu(frozen), REFERENCE.relu(x))


def test_relu_grad_of_arrays_that_broadcast_or_do_not_fit():
    dout = numbers((6, 4))
    np.testing.assert_array_equal(
        FAST.relu_grad(dout, dout[:1]), REFERENCE.relu_grad(dout, dout[:1])
    )
    with pytest.raises(ValueError):
        FAST.relu_grad(dout, dout[:3])
