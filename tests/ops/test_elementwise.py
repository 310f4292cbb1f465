import numpy as np
import pytest

from tinyft import ops
from tinyft.backends.philox import philox4x32, uniform_bits
from tinyft.engine.tensor import Tensor


def drop(x, probability=0.5, seed=1, stream=(2, 3)):
    return ops.dropout(x, probability, seed=seed, stream=stream)


def ones(*shape):
    return Tensor(np.ones(shape, np.float32), requires_grad=True)


def test_the_generator_gives_the_published_words():
    """Known answers of Random123 1.14 (kat_vectors: philox4x32 10)."""
    zero = [np.zeros(1, np.uint64)] * 4
    assert [int(w[0]) for w in philox4x32(zero, (0, 0))] == [
        0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8,
    ]  # fmt: skip
    full = [np.full(1, 0xFFFFFFFF, np.uint64)] * 4
    assert [int(w[0]) for w in philox4x32(full, (0xFFFFFFFF, 0xFFFFFFFF))] == [
        0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD,
    ]  # fmt: skip
    pi = [np.full(1, w, np.uint64) for w in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)]
    assert [int(w[0]) for w in philox4x32(pi, (0xA4093822, 0x299F31D0))] == [
        0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1,
    ]  # fmt: skip


def test_an_element_is_kept_where_its_word_is_large():
    words = uniform_bits(6, 1, (2, 3))
    out = drop(ones(2, 3), 0.25).data.reshape(-1)
    assert out.tolist() == [np.float32(1 / 0.75) if w >= 2**30 else 0 for w in words]


def test_the_gradient_has_the_mask_of_the_result():
    x = ones(50, 7)
    out = drop(x)
    out.backward(np.full((50, 7), 3, np.float32))
    assert np.array_equal(x.grad, 3 * out.data)
    assert set(np.unique(out.data)) == {0.0, 2.0}


def test_the_share_that_is_dropped_and_the_mean_that_stays():
    out = drop(ones(400, 250), 0.3).data
    # 100,000 draws: one standard deviation of the share is 0.00145
    assert abs((out == 0).mean() - 0.3) < 0.006 and abs(out.mean() - 1) < 0.01


@pytest.mark.parametrize("other", [{"seed": 2}, {"stream": (3, 3)}, {"stream": (2, 4)}])
def test_the_mask_depends_on_seed_and_stream(other):
    same, again, different = drop(ones(100)), drop(ones(100)), drop(ones(100), **other)
    assert np.array_equal(same.data, again.data)
    assert not np.array_equal(same.data, different.data)


def test_a_longer_array_begins_with_the_mask_of_a_shorter_one():
    assert np.array_equal(drop(ones(1003)).data[:10], drop(ones(10)).data)


def test_probability_zero_keeps_everything():
    assert drop(ones(9), 0.0).data.tolist() == [1] * 9


def test_a_dropped_nan_or_infinity_is_gone():
    x = Tensor(np.full(64, np.inf, np.float32))
    assert set(np.unique(drop(x).data)) == {0.0, np.inf}


@pytest.mark.parametrize("probability", [-0.1, 1.0, 1.5, float("nan")])
def test_impossible_probabilities(probability):
    with pytest.raises(ValueError, match="dropout: probability must be at least 0 and below 1"):
        drop(ones(2), probability)


@pytest.mark.parametrize("stream", [5, (5,), (1, 2, 3)])
def test_a_stream_is_two_numbers(stream):
    with pytest.raises(ValueError, match="stream must be two integers"):
        drop(ones(2), stream=stream)


def test_relu_by_hand():
    x = Tensor([-1.0, 0.0, 2.0], requires_grad=True)
    out = ops.relu(x)
    out.backward(np.array([5, 6, 7], np.float32))
    assert out.data.tolist() == [0, 0, 2] and x.grad.tolist() == [0, 0, 7]


def test_zeros_nan_and_infinities():
    x = Tensor([-0.0, 0.0, np.nan, np.inf, -np.inf], requires_grad=True)
    out = ops.relu(x)
    assert np.array_equal(out.data, [0, 0, np.nan, np.inf, 0], equal_nan=True)
    out.backward(np.ones(5, np.float32))
    # the gradient at 0 is 0; what flows back into a NaN is not hidden either
    assert x.grad[[0, 1, 3, 4]].tolist() == [0, 0, 1, 0] and x.grad[2] != 0


def test_the_smallest_normal_numbers_are_not_zero():
    """Smaller ones are denormal: kernels of the CPU backend count them as 0."""
    tiny = np.array([np.finfo(np.float32).tiny, 1e-37], np.float32)
    x = Tensor(tiny, requires_grad=True)
    ops.relu(x).backward(np.ones(2, np.float32))
    assert x.grad.tolist() == [1, 1]
