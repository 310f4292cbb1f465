import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyft as ft
from tinyft import ops
from tinyft.engine.tensor import Tensor


def leaf(values):
    return Tensor(np.array(values, np.float32), requires_grad=True)


def random_case(shape=(3, 4, 5, 6), offset=0.0, dtype=np.float32, seed=0):
    """x, weight, bias, residual; scales are not 1, or a missing one would not show."""
    rng = np.random.default_rng(seed)
    C = shape[-1]
    arrays = [
        rng.standard_normal(shape) * 2 + offset, rng.uniform(0.5, 2, C), rng.standard_normal(C),
        rng.standard_normal(shape),
    ]  # fmt: skip
    return [a.astype(dtype) for a in arrays]


def test_two_rows_by_hand():
    """Values 1 and 3: mean 2, variance 1 (biased), normalised -1 and 1."""
    x, weight, bias = leaf([[1.0], [3.0]]), leaf([2.0]), leaf([5.0])
    out, mean, variance = ops.batch_norm(x, weight, bias, eps=0.0)
    assert out.data.tolist() == [[3], [7]] and mean.data.tolist() == [2]
    assert variance.data.tolist() == [1]
    out.backward(np.array([[1], [10]], np.float32))
    # dx = weight / std * (dout - mean dout - n * mean(dout n)) = 2 * (1 - 5.5 + 4.5), ...
    assert x.grad.tolist() == [[0], [0]]
    assert weight.grad.tolist() == [9] and bias.grad.tolist() == [11]


def test_given_statistics_by_hand():
    x, weight, bias = leaf([[1.0], [3.0]]), leaf([2.0]), leaf([5.0])
    mean, variance = np.array([1], np.float32), np.array([4], np.float32)
    out = ops.batch_norm_eval(x, weight, bias, mean, variance, eps=0.0)
    assert out.data.tolist() == [[5], [7]]
    out.backward(np.array([[1], [10]], np.float32))
    assert x.grad.tolist() == [[1], [10]] and weight.grad.tolist() == [10]


def test_eps_bounds_a_channel_that_hardly_varies():
    x = leaf([[0.0], [2e-3]])  # variance 1e-6
    one, zero = leaf([1.0]), leaf([0.0])
    for eps in (1e-5, 1e-3):
        out, _, _ = ops.batch_norm(x, one, zero, eps=eps)
        assert out.data[1, 0] == pytest.approx(1e-3 / np.sqrt(1e-6 + eps), rel=1e-5)


def test_the_gradient_keeps_of_its_part_along_the_normalised_x_what_eps_leaves():
    """As reference.py says: none along 1, and eps / (variance + eps) of the other."""
    x, weight, _, dout = random_case(dtype=np.float64)
    x, eps = x / 200, 1e-5  # of deviation 0.01: 0.09 is left
    reference = ft.backends.get("reference")
    mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    given = dout, x, weight, mean, variance, eps
    dx, as_constants = (
        reference.batch_norm_train_grad(*given)[0],
        reference.batch_norm_eval_grad(*given)[0],
    )
    assert np.allclose(dx.sum(axis=(0, 1, 2)), 0, atol=1e-10)
    along, before = (((x - mean) * d).sum(axis=(0, 1, 2)) for d in (dx, as_constants))
    left = eps / (variance + eps)
    assert np.allclose(along, left * before, rtol=1e-9) and left.max() > 0.08


def test_a_large_mean_costs_no_digits():
    """E[x^2] - E[x]^2 in float32 would give a variance of 1.06 or worse (pitfall 2.9)."""
    x, weight, bias, _ = random_case((8, 9, 7, 3), offset=1000)
    _, mean, variance = ops.batch_norm(Tensor(x), Tensor(weight), Tensor(bias))
    exact = x.astype(np.float64)
    assert np.allclose(variance.data, exact.var(axis=(0, 1, 2)), rtol=1e-5)
    assert np.allclose(mean.data, exact.mean(axis=(0, 1, 2)), rtol=1e-7)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_the_fused_call_is_the_composition(relu, with_residual):
    *arrays, residual = random_case()
    arrays += [residual] if with_residual else []
    upstream = np.random.default_rng(1).standard_normal(residual.shape).astype(np.float32)
    mean, variance = np.full(6, 0.3, np.float32), np.full(6, 3, np.float32)

    def run(fixed):
        leaves = [Tensor(a, requires_grad=True) for a in arrays]
        options = {"relu": relu, "residual": leaves[3] if with_residual else None}
        if fixed:
            out = ops.batch_norm_eval(*leaves[:3], mean, variance, **options)
        else:
            out, _, _ = ops.batch_norm(*leaves[:3], **options)
        op = out.node.op
        out.backward(upstream)
        return op, [out.data, *(x.grad for x in leaves)]

    for fixed in (False, True):
        fused_op, fused = run(fixed)
        with ops.unfused():
            last_op, apart = run(fixed)
        assert fused_op.startswith("batch_norm")
        assert last_op == ("relu" if relu else "add" if with_residual else fused_op)
        for one, other in zip(fused, apart, strict=True):
            assert np.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_only_the_wanted_gradients_come():
    x, weight, bias, _ = random_case()
    frozen = [Tensor(a) for a in (weight, bias)]
    inner = Tensor(x, requires_grad=True)
    gradients = ops.batch_norm(inner, *frozen)[0].node.backward(x)
    assert gradients[0] is not None and gradients[1] is gradients[2] is None


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    shape=st.one_of(
        st.tuples(st.integers(2, 9), st.integers(1, 5)),
        st.tuples(st.integers(2, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)),
    ),
    relu=st.booleans(),
    residual=st.booleans(),
    batch=st.booleans(),
)
def test_any_shape(shape, relu, residual, batch):
    arrays = random_case(shape, dtype=np.float64, seed=sum(shape))
    arrays = arrays if residual else arrays[:3]
    mean, variance = np.full(shape[-1], 0.3), np.full(shape[-1], 3.0)

    def function(x, weight, bias, residual=None):
        options = {"residual": residual, "relu": relu}
        if batch:
            return ops.batch_norm(x, weight, bias, **options)[0]
        return ops.batch_norm_eval(x, weight, bias, mean, variance, **options)

    x, weight, bias = (Tensor(a) for a in arrays[:3])
    axes = tuple(range(len(shape) - 1))
    m, v = (x.data.mean(axes), x.data.var(axes)) if batch else (mean, variance)
    expected = (x.data - m) / np.sqrt(v + 1e-5) * weight.data + bias.data
    expected = expected + (arrays[3] if residual else 0)
    found = function(*(Tensor(a) for a in arrays)).data
    assert np.allclose(found, np.maximum(expected, 0) if relu else expected, rtol=1e-9, atol=1e-9)
    # two values per channel are always -1 and 1: their gradient is almost zero
    assert ft.gradcheck(function, arrays, rounds=1, allow_zero=True)
