import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyft as ft
from tinyft import backends, ops
from tinyft.engine.tape import kept_arrays
from tinyft.engine.tensor import Tensor


def leaf(values):
    return Tensor(np.array(values, np.float32), requires_grad=True)


def by_loops(x, weight, stride, padding):
    """The definition, one product at a time, in float64."""
    N, H, W, C = x.shape
    F, _, R, S = weight.shape
    P, Q = (H + 2 * padding - R) // stride + 1, (W + 2 * padding - S) // stride + 1
    out, sizes = np.zeros((N, P, Q, F)), np.zeros((N, P, Q, F))
    for n, p, q, f, r, s, c in itertools.product(*map(range, (N, P, Q, F, R, S, C))):
        i, j = p * stride + r - padding, q * stride + s - padding
        if 0 <= i < H and 0 <= j < W:
            product = float(x[n, i, j, c]) * float(weight[f, c, r, s])
            out[n, p, q, f] += product
            sizes[n, p, q, f] += abs(product)
    return out, sizes


def test_a_3x3_picture_and_a_2x2_kernel_by_hand():
    x = leaf(np.arange(9).reshape(1, 3, 3, 1))
    weight, bias = leaf([[[[1.0, 10.0], [100.0, 1000.0]]]]), leaf([0.5])
    out = ops.conv2d(x, weight, bias)
    # 0 + 10 * 1 + 100 * 3 + 1000 * 4, and one more of each to the right
    assert out.data[0, :, :, 0].tolist() == [[4310.5, 5421.5], [7643.5, 8754.5]]
    out.backward(np.array([1, 0, 0, 2], np.float32).reshape(1, 2, 2, 1))
    assert x.grad[0, :, :, 0].tolist() == [[1, 10, 0], [100, 1002, 20], [0, 200, 2000]]
    assert weight.grad.tolist() == [[[[8, 11], [17, 20]]]]
    assert bias.grad.tolist() == [3]


def test_channels_and_filters_do_not_mix_up():
    """One pixel: a convolution is weight @ pixel."""
    x, weight = leaf([[[[1.0, 2.0, 3.0]]]]), leaf([[[[1]], [[10]], [[100]]], [[[0]], [[0]], [[7]]]])
    assert ops.conv2d(x, weight).data.tolist() == [[[[321, 21]]]]


def test_padding_and_stride_by_hand():
    x, weight = leaf(np.arange(1, 5).reshape(1, 2, 2, 1)), leaf(np.ones((1, 1, 3, 3)))
    assert ops.conv2d(x, weight, padding=1).data.reshape(-1).tolist() == [10, 10, 10, 10]
    strided = ops.conv2d(x, weight, stride=2, padding=1)
    assert strided.data.tolist() == [[[[10]]]]
    strided.backward(np.full((1, 1, 1, 1), 3, np.float32))
    assert x.grad.reshape(-1).tolist() == [3, 3, 3, 3]


def test_the_fused_call_is_the_composition():
    rng = np.random.default_rng(5)
    shapes = [(2, 5, 4, 3), (6, 3, 3, 3), (6,), (2, 5, 4, 6)]
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    upstream = rng.standard_normal(shapes[-1]).astype(np.float32)

    def gradients(function):
        leaves = [Tensor(a, requires_grad=True) for a in arrays]
        out = function(*leaves)
        out.backward(upstream)
        return [out.data, *(x.grad for x in leaves)]

    fused = gradients(lambda x, w, b, r: ops.conv2d(x, w, b, padding=1, residual=r, relu=True))
    apart = gradients(lambda x, w, b, r: ops.relu(ops.conv2d(x, w, padding=1) + b + r))
    for one, other in zip(fused, apart, strict=True):
        assert np.allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"stride": 2.0}, {"padding": 1.0}, {"stride": (1, 1)}])
def test_windows_are_whole_numbers_and_a_wrong_call_leaves_no_trace(options):
    x = Tensor(np.ones((1, 9, 9, 16), np.float32))
    weight = Tensor(np.ones((16, 16, 3, 3), np.float32))
    with pytest.raises(TypeError, match="must be whole numbers"):
        ops.conv2d(x, weight, **options)
    name, value = next(iter(options.items()))
    if isinstance(value, float):
        kernel = backends.get("cpu").conv2d  # called without the op's checks
        whole = {"padding": 0, "stride": 1, name: int(value)}
        for _ in range(2):
            with pytest.raises(TypeError):
                kernel(x.data, weight.data, None, **whole | options)
            kernel(x.data, weight.data, None, **whole)


def test_a_frozen_weight_keeps_no_input_and_a_picture_needs_no_gradient():
    x, weight = leaf(np.ones((1, 3, 3, 1))), Tensor(np.ones((1, 1, 3, 3), np.float32))
    kept = kept_arrays(ops.conv2d(x, weight).node.backward)
    assert [k is weight.data for k in kept] == [True]
    picture, trained = Tensor(x.data), leaf(weight.data)
    node = ops.conv2d(picture, trained).node
    assert [k is picture.data for k in kept_arrays(node.backward)] == [True]
    assert node.backward(np.ones((1, 1, 1, 1), np.float32))[0] is None


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    N=st.integers(1, 2), H=st.integers(1, 7), W=st.integers(1, 7), C=st.integers(1, 4),
    F=st.integers(1, 5), R=st.integers(1, 4), S=st.integers(1, 4),
    stride=st.integers(1, 3), padding=st.integers(0, 3),
)  # fmt: skip
def test_any_shape_stride_and_padding(N, H, W, C, F, R, S, stride, padding):
    rng = np.random.default_rng(N + 10 * H + 100 * W)
    x = rng.standard_normal((N, H, W, C)).astype(np.float32)
    weight = rng.standard_normal((F, C, R, S)).astype(np.float32)
    if H + 2 * padding < R or W + 2 * padding < S:
        with pytest.raises(ft.errors.ShapeError, match="conv2d: a kernel of"):
            ops.conv2d(Tensor(x), Tensor(weight), stride=stride, padding=padding)
        return
    out = ops.conv2d(Tensor(x), Tensor(weight), stride=stride, padding=padding)
    expected, sizes = by_loops(x, weight, stride, padding)
    # a sum of K products is off by at most K roundings of its absolute sum; Winograd by ten
    allowed = 10 * C * R * S * 2.0**-24 * sizes.max(initial=0)
    assert out.shape == expected.shape and np.abs(out.data - expected).max() <= allowed

    def function(x, weight):
        return ops.conv2d(x, weight, stride=stride, padding=padding)

    wide = [x.astype(np.float64), weight.astype(np.float64)]
    # with much padding and stride, a whole small picture can lie between the windows
    assert ft.gradcheck(function, wide, rounds=1, allow_zero=True)


def test_linear_by_hand():
    x, weight = leaf([[1.0, 2.0]]), leaf([[3.0, 4.0], [5.0, 6.0], [0.0, -1.0]])
    bias = leaf([1, 0, 2])
    out = ops.linear(x, weight, bias)
    assert out.data.tolist() == [[12, 17, 0]]
    out.backward(np.array([[1, 10, 100]], np.float32))
    assert x.grad.tolist() == [[53, -36]]
    assert weight.grad.tolist() == [[1, 2], [10, 20], [100, 200]]
    assert bias.grad.tolist() == [1, 10, 100]


def test_frozen_parts_of_a_linear_layer_cost_nothing():
    x, weight, bias = Tensor([[1.0, 2.0]]), Tensor([[3.0, 4.0]]), leaf([1.0])
    out = ops.linear(x, weight, bias)
    gradients = out.node.backward(np.ones((1, 1), np.float32))
    assert gradients[0] is None and gradients[1] is None and gradients[2].tolist() == [1]
