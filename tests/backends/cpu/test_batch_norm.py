"""The fast batch norm against its definition, in float64."""

import numpy as np
import pytest

from tinyft.backends.cpu import CpuBackend
from tinyft.backends.cpu.runtime import threads, workspace
from tinyft.backends.reference import Backend

FAST, REFERENCE = CpuBackend(), Backend()

# rows that are one piece, several, and not a whole number of blocks; channels of one register, of
# several, and such that the reference has to take over
SHAPES = [
    (2, 16), (33, 64), (2, 3, 5, 32), (5, 9, 13, 80), (3, 56, 56, 64), (4, 7, 7, 2048),
    (4, 5, 1), (2, 6, 7, 3), (3, 4, 4, 10), (2, 5, 5, 37),
]  # fmt: skip
OPTIONS = [(False, False), (True, False), (False, True), (True, True)]


def case(shape, seed=0, mean=0.3):
    """x, residual, dout, weight, bias: float32"""
    random = np.random.default_rng(seed)
    arrays = [random.standard_normal(shape) for _ in range(3)]
    arrays[0] = arrays[0] * random.uniform(0.5, 2, shape[-1]) + mean
    weight = random.uniform(0.5, 2, shape[-1]) * random.choice([-1, 1], shape[-1])
    return [a.astype(np.float32) for a in (*arrays, weight, random.standard_normal(shape[-1]))]


def double(*arrays):
    return [None if a is None else a.astype(np.float64) for a in arrays]


def leave_nan(shape):
    """Fill the memory that results are likely to get, so that what is not written shows."""
    for array in [workspace.empty(shape) for _ in range(4)]:
        array.fill(np.nan)


def close(actual, expected, tolerance=3e-6):
    """Error relative to the largest value: a sum over many pixels has no better digits."""
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    assert actual.flags.c_contiguous
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max())
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("add, relu", OPTIONS)
def test_training_forward(shape, add, relu):
    x, residual, _, weight, bias = case(shape)
    residual = residual if add else None
    leave_nan(shape)
    got = FAST.batch_norm_train(x, weight, bias, 1e-5, residual=residual, relu=relu)
    x, residual, weight, bias = double(x, residual, weight, bias)
    want = REFERENCE.batch_norm_train(x, weight, bias, 1e-5, residual=residual, relu=relu)
    for actual, expected in zip(got, want, strict=True):
        close(actual, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("add, relu", OPTIONS)
def test_evaluation_forward(shape, add, relu):
    x, residual, _, weight, bias = case(shape)
    residual = residual if add else None
    mean, variance = bias * 0.5, np.abs(weight) + np.float32(0.1)
    leave_nan(shape)
    got = FAST.batch_norm_eval(x, weight, bias, mean, variance, 1e-3, residual=residual, relu=relu)
    x, residual, weight, bias, mean, variance = double(x, residual, weight, bias, mean, variance)
    close(
        got,
        REFERENCE.batch_norm_eval(
            x, weight, bias, mean, variance, 1e-3, residual=residual, relu=relu
        ),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("method", ["batch_norm_train_grad", "batch_norm_eval_grad"])
def test_gradients(shape, relu, method):
    x, residual, dout, weight, _ = case(shape)
    mean, variance = x.mean(tuple(range(x.ndim - 1))), x.var(tuple(range(x.ndim - 1)))
    out = np.maximum(residual, 0) if relu else None
    before = [a.copy() for a in (dout, x)]
    leave_nan(shape)
    got = getattr(FAST, method)(dout, x, weight, mean, variance, 1e-5, out=out)
    want = getattr(REFERENCE, method)(*double(dout, x, weight, mean, variance), 1e-5, out=out)
    for actual, expected in zip(got, want, strict=True):
        close(actual, expected)
    assert relu or got[3] is dout
    assert (dout == before[0]).all()
    assert (x == before[1]).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["batch_norm_train_grad", "batch_norm_eval_grad"])
def test_x_tells_what_a_relu_let_pass(shape, method):
    x, _, dout, weight, bias = case(shape)
    out, mean, variance = FAST.batch_norm_train(x, weight, bias, 1e-5, relu=True)
    by_out = getattr(FAST, method)(dout, x, weight, mean, variance, 1e-5, out=out)
    by_x = getattr(FAST, method)(dout, x, weight, mean, variance, 1e-5, out=out, bias=bias)
    for one, other in zip(by_x[:3], by_out[:3], strict=True):
        np.testing.assert_array_equal(one, other)
    assert by_x[3] is None


@pytest.mark.parametrize("offset", [1000, 1e6])  # at 1e6 float32 knows 16 values between two units
def test_a_large_mean_costs_no_digits_of_the_variance(offset):
    random = np.random.default_rng(0)
    x = (random.standard_normal((8, 40, 40, 32)) + offset).astype(np.float32)
    one, zero = np.ones(32, np.float32), np.zeros(32, np.float32)
    out, mean, variance = FAST.batch_norm_train(x, one, zero, 0.0)
    pixels = x.astype(np.float64).reshape(-1, 32)
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-7)
    np.testing.assert_allclose(variance, pixels.var(0), rtol=2e-6)
    np.testing.assert_allclose(out.reshape(-1, 32).std(0, dtype=np.float64), 1, rtol=1e-5)


def test_an_outlier_among_small_values():
    x = np.full((4, 8, 8, 16), 1e-3, np.float32)
    x[:, ::2] = -1e-3
    x[0, 0, 0] = 1e4
    mean, variance = FAST.batch_norm_train(x, *np.ones((2, 16), np.float32), 1e-5)[1:]
    pixels = x.astype(np.float64).reshape(-1, 16)
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, pixels.var(0), rtol=1e-6)


@pytest.mark.parametrize("shape", [(5, 9, 13, 80), (3, 56, 56, 64), (4, 7, 7, 512)])
def test_bits_do_not_depend_on_threads(shape):
    x, residual, dout, weight, bias = case(shape)
    results, before = [], threads.get_num_threads()
    try:
        for count in (1, 2, 3):
            threads.set_num_threads(count)
            forward = FAST.batch_norm_train(x, weight, bias, 1e-5, residual=residual, relu=True)
            out, mean, variance = forward
            results.append(
                [
                    *forward,
                    *FAST.batch_norm_train_grad(dout, x, weight, mean, variance, 1e-5, out=out),
                    *FAST.batch_norm_eval_grad(dout, x, weight, mean, variance, 1e-5, out=out),
                ]
            )
    finally:
        threads.set_num_threads(before)
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_not_finite_stays_in_its_channel_and_is_seen(value, relu):
    x, _, _, weight, bias = case((2, 20, 20, 32))
    x[1, 3, 4, 5] = value
    got = FAST.batch_norm_train(x, weight, bias, 1e-5, relu=relu)
    want = REFERENCE.batch_norm_train(x, weight, bias, 1e-5, relu=relu)
    for actual, expected in zip(got, want, strict=True):
        np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
        np.testing.assert_array_equal(np.isinf(actual), np.isinf(expected))
    mean, variance = bias, np.abs(weight)
    for method in ("batch_norm_train_grad", "batch_norm_eval_grad"):
        dout = case((2, 20, 20, 32))[2]
        dout[0, 1, 2, 3] = value
        got = getattr(FAST, method)(dout, x, weight, mean, variance, 1e-5)
        want = getattr(REFERENCE, method)(dout, x, weight, mean, variance, 1e-5)
        for actual, expected in zip(got, want, strict=True):
            np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected))


def test_a_relu_that_saw_nan_lets_the_gradient_pass():
    x, _, dout, weight, _ = case((2, 20, 20, 32))
    out = np.where(x > 0, np.float32(np.nan), x)
    mean, variance = np.zeros(32, np.float32), np.ones(32, np.float32)
    got = FAST.batch_norm_eval_grad(dout, x, weight, mean, variance, 1e-5, out=out)[3]
    np.testing.assert_array_equal(got, REFERENCE.relu_grad(dout, out))


@pytest.mark.parametrize(
    "change",
    [
        lambda a: np.asfortranarray(a),
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: a[::-1].copy()[::-1],
        lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),  # read-only
        lambda a: np.concatenate([np.zeros(1, a.dtype), a.ravel()])[1:].reshape(a.shape),
    ],
)
def test_layout_of_the_inputs_changes_nothing(change):
    x, residual, dout, weight, bias = case((3, 9, 11, 32))
    out, mean, variance = FAST.batch_norm_train(x, weight, bias, 1e-5, residual=residual, relu=True)
    other = FAST.batch_norm_train(
        change(x), change(weight), change(bias), 1e-5, residual=change(residual), relu=True
    )
    assert all((a == b).all() for a, b in zip((out, mean, variance), other, strict=True))
    got = FAST.batch_norm_train_grad(dout, x, weight, mean, variance, 1e-5, out=out)
    other = FAST.batch_norm_train_grad(
        change(dout), change(x), change(weight), mean, variance, 1e-5, out=change(out)
    )
    assert all((a == b).all() for a, b in zip(got, other, strict=True))


def test_what_does_not_fit_is_the_references_business():
    x, residual, dout, weight, bias = case((3, 4, 5, 16))
    wide = case((3, 4, 5, 32))[0]
    with pytest.raises(ValueError):
        FAST.batch_norm_train(x, weight[:-1], bias, 1e-5)
    with pytest.raises(ValueError):
        FAST.batch_norm_train(wide, weight, bias, 1e-5)  # would read behind the weight
    with pytest.raises(ValueError):
        FAST.batch_norm_train(x, weight, bias, 1e-5, residual=residual[:, :2])
    with pytest.raises(ValueError):
        FAST.batch_norm_eval_grad(dout[:2], x, weight, bias, bias**2, 1e-5)
    double_out = FAST.batch_norm_train(*double(x, weight, bias), 1e-5)[0]
    assert double_out.dtype == np.float64


def test_an_empty_batch_in_evaluation():
    weight = np.ones(16, np.float32)
    x = np.zeros((0, 4, 4, 16), np.float32)
    assert FAST.batch_norm_eval(x, weight, weight, weight, weight, 1e-5).shape == x.shape


@pytest.mark.parametrize("add, relu", OPTIONS)
def test_writing_past_the_caches_changes_no_bit(add, relu, monkeypatch):
    shape = (3, 56, 56, 64)
    x, residual, dout, weight, bias = case(shape)

    def everything():
        out, mean, variance = FAST.batch_norm_train(
            x, weight, bias, 1e-5, residual=residual if add else None, relu=relu
        )
        known_by = {"out": out, "bias": None if add else bias} if relu else {}
        return out, *FAST.batch_norm_train_grad(dout, x, weight, mean, variance, 1e-5, **known_by)

    expected = everything()
    monkeypatch.setattr("tinyft.backends.cpu.memory_bound.arrays.BEYOND_CACHES", 1)
    leave_nan(shape)
    for actual, one in zip(everything(), expected, strict=True):
        np.testing.assert_array_equal(actual, one)
