import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyft as ft
from tinyft import ops
from tinyft.engine.tape import kept_arrays
from tinyft.engine.tensor import Tensor


def picture(rows):
    return Tensor(np.array(rows, np.float32)[None, :, :, None], requires_grad=True)


def shown(array):
    return array[0, :, :, 0].tolist()


def test_max_pool_by_hand():
    x = picture([[1, 5, 2, 0], [3, 4, 9, 8], [7, 6, 0, 1], [0, 0, 1, 2]])
    out = ops.max_pool2d(x, kernel=2, stride=2)
    assert shown(out.data) == [[5, 9], [7, 2]]
    out.backward(np.array([1, 2, 3, 4], np.float32).reshape(1, 2, 2, 1))
    assert shown(x.grad) == [[0, 1, 0, 0], [0, 0, 2, 0], [3, 0, 0, 0], [0, 0, 0, 4]]


def test_one_pixel_may_win_several_windows():
    x = picture([[0, 0, 0], [0, 9, 0], [0, 0, 0]])
    out = ops.max_pool2d(x, kernel=2, stride=1)
    out.backward(np.array([1, 2, 3, 4], np.float32).reshape(1, 2, 2, 1))
    assert shown(x.grad) == [[0, 0, 0], [0, 10, 0], [0, 0, 0]]


def test_of_equal_pixels_the_first_gets_the_gradient():
    x = picture(np.full((2, 4), 0.5))
    out = ops.max_pool2d(x, kernel=2, stride=2)
    out.backward(np.array([3, 4], np.float32).reshape(1, 1, 2, 1))
    assert shown(x.grad) == [[3, 0, 4, 0], [0, 0, 0, 0]]


def test_padding_never_wins():
    x = picture([[-5, -6], [-7, -8]])
    out = ops.max_pool2d(x, kernel=3, stride=2, padding=1)
    assert shown(out.data) == [[-5]]
    out.backward(np.ones((1, 1, 1, 1), np.float32))
    assert shown(x.grad) == [[1, 0], [0, 0]]


def test_minus_infinity_and_nan():
    lowest = picture(np.full((2, 2), -np.inf))
    out = ops.max_pool2d(lowest, kernel=2, stride=2)
    out.backward(np.ones((1, 1, 1, 1), np.float32))
    assert shown(out.data) == [[-np.inf]] and shown(lowest.grad) == [[1, 0], [0, 0]]
    broken = picture([[1, np.nan], [np.inf, 2]])
    out = ops.max_pool2d(broken, kernel=2, stride=2)
    out.backward(np.ones((1, 1, 1, 1), np.float32))
    assert np.isnan(out.data).all() and shown(broken.grad) == [[0, 1], [0, 0]]


def test_max_pool_keeps_small_integers_only():
    (kept,) = kept_arrays(
        ops.max_pool2d(picture(np.ones((4, 4))), kernel=2, stride=2).node.backward
    )
    assert kept.dtype.kind in "iu" and kept.itemsize <= 2 and kept.shape == (1, 2, 2, 1)


def test_global_pools_by_hand():
    x = Tensor(np.array([[[[1, -1], [2, -2]], [[3, -3], [6, -6]]]], np.float32), requires_grad=True)
    average, largest = ops.global_average_pool(x), ops.global_max_pool(x)
    assert average.data.tolist() == [[3, -3]] and largest.data.tolist() == [[6, -1]]
    average.backward(np.array([[4, 8]], np.float32))
    assert x.grad[0, 0, 0].tolist() == [1, 2] and x.grad[0, 1, 1].tolist() == [1, 2]
    x.grad = None
    largest.backward(np.array([[4, 8]], np.float32))
    assert x.grad.reshape(4, 2).tolist() == [[0, 8], [0, 0], [0, 0], [4, 0]]


def test_the_first_of_equal_pixels_is_the_global_maximum():
    x = Tensor(np.ones((1, 2, 2, 1), np.float32), requires_grad=True)
    ops.global_max_pool(x).backward(np.ones((1, 1), np.float32))
    assert x.grad.reshape(-1).tolist() == [1, 0, 0, 0]


@settings(max_examples=30, deadline=None)
@given(
    N=st.integers(0, 2), H=st.integers(1, 8), W=st.integers(1, 8), C=st.integers(1, 4),
    kernel=st.integers(1, 4), stride=st.integers(1, 3), padding=st.integers(0, 2),
    ties=st.booleans(),
)  # fmt: skip
def test_any_window(N, H, W, C, kernel, stride, padding, ties):
    rng = np.random.default_rng(H + 10 * W)
    size = N * H * W * C
    values = rng.integers(-1, 1, size) if ties else rng.permutation(size) - size // 2
    x = Tensor(values.reshape(N, H, W, C).astype(np.float32), requires_grad=True)
    options = {"kernel": kernel, "stride": stride, "padding": padding}
    if 2 * padding > kernel or min(H, W) + 2 * padding < kernel:
        with pytest.raises(ft.errors.ShapeError, match="max_pool2d"):
            ops.max_pool2d(x, **options)
        return
    out = ops.max_pool2d(x, **options)
    upstream = rng.standard_normal(out.shape).astype(np.float32)
    out.backward(upstream)
    expected, gradient = by_windows(x.data, upstream, **options)
    assert np.array_equal(out.data, expected)
    assert np.allclose(x.grad, gradient, atol=1e-5)


def by_windows(x, upstream, kernel, stride, padding):
    """The definition, window by window: the first largest pixel inside the picture."""
    out, dx = np.zeros(upstream.shape, x.dtype), np.zeros(x.shape)
    for n, p, q, c in np.ndindex(*upstream.shape):
        rows = range(max(p * stride - padding, 0), min(p * stride - padding + kernel, x.shape[1]))
        columns = range(
            max(q * stride - padding, 0), min(q * stride - padding + kernel, x.shape[2])
        )
        place = max(((i, j) for i in rows for j in columns), key=lambda ij: x[n, ij[0], ij[1], c])
        out[n, p, q, c] = x[n, *place, c]
        dx[n, *place, c] += upstream[n, p, q, c]
    return out, dx
