import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyft as ft
from tinyft import ops
from tinyft.engine.tensor import Tensor

FEW = settings(max_examples=25, deadline=None)


def leaf(values):
    return Tensor(np.array(values, np.float32), requires_grad=True)


def test_the_four_operations_by_hand():
    a, b = leaf([6.0, -8.0]), leaf([2.0, 4.0])
    assert (a + b).data.tolist() == [8, -4]
    assert (a - b).data.tolist() == [4, -12]
    assert (a * b).data.tolist() == [12, -32]
    assert (a / b).data.tolist() == [3, -2]
    assert (-a).data.tolist() == [-6, 8]
    ops.sum(a / b).backward()
    assert a.grad.tolist() == [0.5, 0.25] and b.grad.tolist() == [-1.5, 0.5]


def test_division_by_zero_is_visible():
    with np.errstate(divide="ignore", invalid="ignore"):
        assert (leaf([1.0]) / 0.0).item() == np.inf
        assert np.isnan((leaf([0.0]) / 0.0).item())


def test_matmul_by_hand():
    a, b = leaf([[1.0, 2.0]]), leaf([[3.0], [5.0]])
    out = a @ b
    assert out.data.tolist() == [[13]]
    out.backward()
    assert a.grad.tolist() == [[3, 5]] and b.grad.tolist() == [[1], [2]]


def test_sum_and_mean_by_hand():
    x = leaf([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert ops.sum(x).item() == 21 and ops.mean(x).item() == 3.5
    assert ops.sum(x, axis=0).data.tolist() == [5, 7, 9]
    assert ops.mean(x, axis=-1, keepdims=True).data.tolist() == [[2], [5]]
    ops.mean(x, axis=1).backward(np.array([3, 6], np.float32))
    assert x.grad.tolist() == [[1, 1, 1], [2, 2, 2]]


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_what_cannot_hold_the_result_is_refused(dtype):
    x = Tensor(np.ones((2, 3), dtype))
    weight, picture = Tensor(np.ones((4, 3), dtype)), Tensor(np.ones((1, 3, 3, 1), dtype))
    kernel = Tensor(np.ones((1, 1, 3, 3), dtype))
    normalise = Tensor(np.ones(3, dtype)), Tensor(np.ones(3, dtype))
    for compute in (
        lambda: ops.sum(x),
        lambda: ops.mean(x),
        lambda: ops.linear(x, weight),
        lambda: ops.conv2d(picture, kernel),
        lambda: ops.batch_norm(x, *normalise),
        lambda: ops.batch_norm_eval(x, *normalise, normalise[0].data, normalise[0].data),
        lambda: ops.dropout(x, 0.3, seed=0, stream=(0, 0)),
        lambda: ops.max_pool2d(picture, kernel=2, stride=2),
        lambda: ops.global_average_pool(picture),
        lambda: ops.cross_entropy(x, np.array([0, 1])),
    ):
        with pytest.raises(TypeError, match="make it a float tensor first"):
            compute()


def test_reductions_of_many_values_keep_their_digits():
    """Ten million times 0.1 in float32, one after the other, gives 1,087,937."""
    x = Tensor(np.full((1000, 10_000), 0.1, np.float32))
    assert ops.sum(x).item() == pytest.approx(1_000_000, rel=1e-6)
    assert ops.mean(x).item() == pytest.approx(0.1, rel=1e-6)


def test_concatenate_and_reshape_by_hand():
    a, b = leaf([[1.0], [2.0]]), leaf([[3.0, 4.0], [5.0, 6.0]])
    out = ops.concatenate(a, b)
    assert out.data.tolist() == [[1, 3, 4], [2, 5, 6]]
    flat = ops.reshape(out, (6,))
    assert flat.data.tolist() == [1, 3, 4, 2, 5, 6]
    flat.backward(np.arange(6, dtype=np.float32))
    assert a.grad.tolist() == [[0], [3]] and b.grad.tolist() == [[1, 2], [4, 5]]


def test_an_axis_may_be_numpys_integer():
    a = leaf([[1.0, 2.0]])
    assert ops.sum(a, axis=np.int64(1)).data.tolist() == [3]
    assert ops.concatenate(a, a, axis=np.int32(0)).shape == (2, 2)


def test_concatenate_takes_tensors_not_a_list_of_them():
    with pytest.raises(TypeError, match=r"one after the other: concatenate\(a, b\)"):
        ops.concatenate([leaf([1.0]), leaf([2.0])])


def test_concatenate_gives_gradients_only_where_needed():
    a, b = Tensor([[1.0]]), leaf([[2.0]])
    ops.concatenate(a, b).backward(np.array([[5, 7]], np.float32))
    assert a.grad is None and b.grad.tolist() == [[7]]


@FEW
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    data=st.data(),
    keepdims=st.booleans(),
    name=st.sampled_from(["sum", "mean"]),
)
def test_reductions_over_any_axes(shape, data, keepdims, name):
    axes = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1))))
    x = np.random.default_rng(0).standard_normal(shape)

    def function(x):
        return getattr(ops, name)(x, axis=axes, keepdims=keepdims)

    expected = getattr(x, name)(axis=axes, keepdims=keepdims)
    assert np.allclose(function(Tensor(x)).data, expected, rtol=1e-12)
    assert ft.gradcheck(function, [x], rounds=1)


@FEW
@given(
    batch=st.lists(st.integers(1, 3), max_size=2),
    m=st.integers(0, 4), k=st.integers(1, 5), n=st.integers(1, 4), repeat=st.booleans(),
)  # fmt: skip
def test_matmul_of_any_shapes(batch, m, k, n, repeat):
    rng = np.random.default_rng(1)
    a = rng.standard_normal((*batch, m, k))
    b = rng.standard_normal((k, n) if repeat else (*batch, k, n))
    assert np.allclose(ops.matmul(Tensor(a), Tensor(b)).data, np.matmul(a, b), rtol=1e-12)
    assert ft.gradcheck(ops.matmul, [a, b], rounds=1, allow_zero=m == 0)
