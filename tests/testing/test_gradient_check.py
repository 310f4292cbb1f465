"""The checker must find wrong gradients, name the mistake, and not be fooled."""

import functools
import re

import numpy as np
import pytest

import tinyft as ft
from tinyft.testing.gradient_check import GradcheckError, GradcheckReport, gradcheck


def normal(*shape):
    """The same numbers whatever other tests ran before; others for another shape."""
    return np.random.default_rng([1, *shape]).standard_normal(shape)


MATRIX = np.random.default_rng(7).standard_normal((4, 3))


@pytest.fixture(autouse=True)
def plain_kernels():
    """The checker is tested, not the kernels: nothing needs to be compiled."""
    with ft.backends.use("reference"):
        yield


def make_op(name, forward, gradient):
    """An op of one input; `gradient(x, dout)` may be wrong."""

    def function(x):
        data = x.data
        return forward(data), lambda dout: (gradient(data, dout),)

    function.__name__ = name
    return ft.op(function)


def cube(change):
    """x ** 3 with its gradient spoilt by `change`."""
    return make_op("cube", lambda x: x**3, lambda x, dout: change(3 * x**2 * dout))


def failure(fn, inputs, **options):
    with pytest.raises(GradcheckError) as caught:
        gradcheck(fn, inputs, **options)
    return str(caught.value)


# ----------------------------------------------------------------------------------- what must pass


@pytest.mark.parametrize("mode", ["fast", "full"])
def test_a_right_gradient_passes_and_the_report_is_a_table(mode):
    report = gradcheck(cube(lambda g: g), [MATRIX], mode=mode)
    assert isinstance(report, GradcheckReport) and report
    lines = str(report).splitlines()
    assert "cube: passed" in lines[0] and f"mode {mode}" in lines[0]
    assert "input 0 (x)" in lines[2] and "(4, 3)" in lines[2] and "none" in lines[2]
    assert report.inputs[0].compared == (3 if mode == "fast" else 36)
    assert report.inputs[0].worst < 1


def test_a_function_of_several_tensors_and_a_constant():
    def model(x, w, labels, b):
        return ft.ops.cross_entropy(ft.ops.linear(ft.ops.relu(x), w, b), labels)

    inputs = [MATRIX, normal(5, 3), np.array([0, 4, 2, 2]), normal(5)]
    report = gradcheck(model, inputs, mode="full")
    assert [row.name for row in report.inputs] == ["input 0 (x)", "input 1 (w)", "input 3 (b)"]


def test_tensors_that_a_function_closes_over_are_moved_too():
    weight = ft.Tensor(normal(5, 3), requires_grad=True, name="head.weight")
    before, weight.grad = weight.data, np.ones((5, 3))
    x = ft.Tensor(MATRIX)
    report = gradcheck(lambda _: ft.ops.linear(x, weight), [weight], mode="full")
    assert report.inputs[0].name == "input 0 (head.weight)" and report.op == "linear"
    assert weight.data is before and np.array_equal(weight.grad, np.ones((5, 3)))


def test_a_modules_parameters_keep_the_gradients_that_they_have():
    layer = ft.nn.Linear(3, 2).astype("float64")
    layer.weight.data[:], layer.weight.grad = 1, np.ones((2, 3))
    gradcheck(layer, [MATRIX])
    assert np.array_equal(layer.weight.grad, np.ones((2, 3))) and layer.bias.grad is None


class Scaled(ft.nn.Module):
    """x * scale + shift, whose backward makes the gradient of `scale` too large by a factor."""

    def __init__(self, factor=1):
        super().__init__()
        self.scale = ft.Tensor(normal(3), requires_grad=True)
        self.shift = ft.Tensor(normal(3), requires_grad=True)
        self.factor = factor

    def forward(self, x):
        factor = self.factor

        def scaled(x, scale):
            a, b = x.data, scale.data
            return a * b, lambda dout: (dout * b, factor * (dout * a).sum(axis=0))

        return ft.op(scaled)(x, self.scale) + self.shift


@pytest.mark.parametrize("mode", ["fast", "full"])
def test_a_modules_parameters_are_checked_by_name(mode):
    report = gradcheck(Scaled(), [MATRIX], mode=mode)
    names = ["input 0 (x)", "parameter scale", "parameter shift"]
    assert [row.name for row in report.inputs] == names
    assert "parameter shift" in str(report)
    message = failure(ft.nn.Sequential(Scaled(), Scaled(factor=3)), [MATRIX], mode=mode)
    assert "the gradient of parameter 1.scale of Sequential is wrong" in message
    assert "3 times too large" in message


def test_parameters_are_checked_where_no_input_is():
    x, layer = ft.Tensor(MATRIX), Scaled()
    assert [row.name for row in gradcheck(layer, [x]).inputs] == [
        "parameter scale",
        "parameter shift",
    ]
    layer.scale.requires_grad = layer.shift.requires_grad = False
    assert "no input requires a gradient" in failure(layer, [x])
    assert [row.name for row in gradcheck(layer, [MATRIX]).inputs] == ["input 0 (x)"]


def test_parameters_that_a_function_reaches_are_checked_too():
    right, wrong = Scaled(), Scaled(factor=3)

    def through(layer, x):
        return layer(x) * 2

    def named(fn):
        return re.search(r"the gradient of (.+) of", failure(fn, [MATRIX]))[1]

    assert [row.name for row in gradcheck(right.forward, [MATRIX]).inputs][1] == "parameter scale"
    assert named(lambda x: wrong(x) * 2) == "parameter wrong.scale"
    assert named(lambda x: through(wrong, x)) == "parameter wrong.scale"
    assert named(functools.partial(through, wrong)) == "parameter 0.scale"
    hidden = [wrong]  # in a list: on the tape all the same
    assert named(lambda x: hidden[0](x)) == "parameter (argument 1 of scaled)"
    message = failure(lambda layer, x: layer(x), [wrong, MATRIX])
    assert "the gradient of parameter layer.scale" in message


def test_a_parameter_that_only_the_closure_of_an_op_knows_is_checked():
    w, unused = (ft.Tensor(normal(n), requires_grad=True) for n in (3, 5))

    @ft.op
    def scaled(x):
        def backward(dout):
            return (dout * w.data,)

        return x.data * w.data + 0 * unused.data[0], backward

    message = failure(scaled, [MATRIX])
    assert "the gradient of parameter w of scaled is wrong" in message
    assert "returns no gradient" in message
    w.requires_grad = False
    assert [row.name for row in gradcheck(scaled, [MATRIX]).inputs] == ["input 0 (x)"]


def test_such_a_parameter_is_checked_where_one_result_of_two_moves_with_it():
    w = ft.Tensor(normal(3), requires_grad=True)

    @ft.op
    def scaled(x):
        return x.data * w.data, lambda dout: (dout * w.data,)

    def two(x, w):
        return x * 2, scaled(x)

    message = failure(functools.partial(two, w=w), [MATRIX])
    assert "the gradient of parameter w of result 1" in message


def test_a_tensor_that_every_call_makes_anew_is_no_parameter():
    def function(x):
        return x * ft.Tensor(np.full(3, 2.0), requires_grad=True)

    assert [row.name for row in gradcheck(function, [MATRIX]).inputs] == ["input 0 (x)"]


def test_a_module_in_training_mode_stays_as_it_was():
    class Counting(ft.nn.Module):
        def __init__(self):
            super().__init__()
            self.calls, self.seen, self.total = 0, [], np.zeros(3)
            self.draw = np.random.default_rng(3)

        def forward(self, x):
            self.calls += 1
            self.seen.append(x.shape)
            self.total += x.data.mean(axis=0)
            return x * (self.calls + self.draw.uniform())

    head = ft.nn.Sequential(ft.nn.BatchNorm(3), Counting(), ft.nn.Dropout(0.5))
    head.astype("float64")
    norm, counting, dropout = (getattr(head, number) for number in "012")
    before = norm.running_mean, norm.running_var, counting.total
    for fn in (head, lambda x: head(x) * 2, functools.partial(lambda model, x: model(x), head)):
        names = [row.name.split(".")[-1] for row in gradcheck(fn, [normal(8, 3)]).inputs]
        assert names == ["input 0 (x)", "weight", "bias"]
        after = norm.running_mean, norm.running_var, counting.total
        assert all(a is b for a, b in zip(after, before, strict=True))
        assert not norm.running_mean.any() and not counting.total.any()
        assert (norm.running_var == 1).all() and head.training
        assert (dropout.step, counting.calls, counting.seen) == (0, 0, [])
        assert counting.draw.uniform() == np.random.default_rng(3).uniform()
        counting.draw = np.random.default_rng(3)


def test_a_module_stays_as_it_was_if_it_fails():
    norm = ft.nn.BatchNorm(3).astype("float64")
    before = norm.running_mean
    assert "not a Tensor" in failure(lambda x: [norm(x), 3][1], [MATRIX])
    assert norm.running_mean is before and not before.any()


def test_every_result_of_several_is_checked():
    wrong = cube(lambda g: 2 * g)
    report = gradcheck(lambda x: (x * 2, x.detach(), 3, x * x), [MATRIX], mode="full")
    assert [row.name for row in report.inputs] == [
        "input 0 (x) of result 0 of mul",
        "input 0 (x) of result 3 of mul",
    ]
    for mode in ("fast", "full"):
        message = failure(lambda x, y: (x * y, wrong(y)), [MATRIX, MATRIX + 1], mode=mode)
        assert "the gradient of input 1 (y) of result 1 of mul is wrong" in message
        assert "twice too large" in message
    shifted = ft.Tensor(normal(3), requires_grad=True)  # matters to the second result alone
    assert gradcheck(lambda x, b: (x * 2, x + b), [MATRIX, shifted])


def test_only_tensors_that_require_a_gradient_are_checked():
    x, y = ft.Tensor(MATRIX, requires_grad=True), ft.Tensor(MATRIX)
    assert [row.name for row in gradcheck(ft.ops.mul, [x, y]).inputs] == ["input 0 (a)"]


def test_a_single_array_and_names():
    report = gradcheck(cube(lambda g: g), MATRIX, names=["speed"])
    assert report.inputs[0].name == "input 0 (speed)"


@pytest.mark.parametrize("mode", ["fast", "full"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_gradient_that_is_not_finite_is_wrong(mode, value):
    @ft.op
    def double(x):
        def backward(dout):
            dx = dout * 2
            dx[0, 1] = value
            return (dx,)

        return x.data * 2, backward

    message = failure(double, [MATRIX], mode=mode)
    assert f"input 0 (x) of double is {value} at element (0, 1)" in message
    assert "backward divides by 0" in message


def test_a_small_gradient_is_checked_as_strictly_as_a_large_one():
    for scale in (1e-9, 1.0, 1e9):
        assert gradcheck(lambda x, s=scale: cube(lambda g: g)(x) * s, [MATRIX])
        assert "twice" in failure(lambda x, s=scale: cube(lambda g: 2 * g)(x) * s, [MATRIX])


def test_large_constant_results_hide_nothing():
    shifted = make_op("shifted", lambda x: x**3 + 1e3, lambda x, dout: 3.001 * x**2 * dout)
    assert "same factor 1.00033" in failure(shifted, [MATRIX])


def test_zero_size_inputs_are_accepted():
    assert gradcheck(cube(lambda g: g), [np.zeros((0, 3))], allow_zero=True)


# ---------------------------------------------------------------------------------- mistakes, named

MISTAKES = {
    "sign": (lambda g: -g, "sign is wrong"),
    "double": (lambda g: 2 * g, "twice too large"),
    "half": (lambda g: g / 2, "half of what it should be"),
    "rows": (lambda g: g * 4, "4 times too large (the size of the input's axes (0,))"),
    "mean twice": (lambda g: g / 12, "12 times too small (the size of the input's axes (0, 1))"),
    "factor": (lambda g: 1.7 * g, "same factor 1.7"),
    "nothing": (lambda g: 0 * g, "returns no gradient"),
    "flipped": (lambda g: g[::-1].copy(), "reversed along the axes (0,)"),
    "reshaped": (lambda g: g.T.copy().reshape(4, 3), "right numbers in other places"),
    "one row": (lambda g: g * (np.arange(4) > 0)[:, None], "get nothing"),
    "one element": (lambda g: g + 5 * (np.arange(12).reshape(4, 3) == 7), "1 of 12 elements"),
    "constant": (lambda g: g - 1.5, "same for all elements of a channel"),
    "nonsense": (lambda g: np.cos(9 * g), "it should be 3 * dout * x**2"),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["fast", "full"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_gradient_is_found_and_named(mistake, mode):
    change, words = MISTAKES[mistake]
    message = failure(cube(change), [MATRIX], mode=mode)
    assert words in message
    assert "cube" in message and "input 0 (x)" in message and "element (" in message


def test_the_message_has_element_both_values_and_their_ratio():
    x = np.array([[1.0, 2.0]])
    double = ft.op(lambda x: (x.data * 3, lambda dout: (-6 * dout * np.array([[0.5, 1]]),)))
    message = failure(double, [x], mode="full", seed=0)
    draw = np.random.default_rng([0, 1]).standard_normal((1, 2))
    assert f"element (0, 1): backward says {-6 * draw[0, 1]:.8g}, differences say" in message
    assert f"{3 * draw[0, 1]:.8g}, ratio -2" in message


def test_a_normalisation_without_its_mean_terms_is_named():
    @ft.op
    def normalise(x):
        data = x.data
        std = data.std(axis=0)
        return (data - data.mean(axis=0)) / std, lambda dout: (dout / std,)

    message = failure(normalise, [normal(20, 3)])
    assert "mean and the variance of a normalisation" in message


def test_a_gradient_for_an_unused_input_is_named():
    @ft.op
    def first(a, b):
        return a.data * 2, lambda dout: (2 * dout, dout)

    assert "does not depend on this input" in failure(first, [MATRIX, MATRIX])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "full"])
def test_one_wrong_element_among_many(mode):
    """Full mode says which of 400; a projection in float64 sees that one of 10,000 is wrong."""
    side = 100 if mode == "fast" else 20
    values, wrong = normal(side, side), np.ones((side, side))
    wrong[17, 13] = 1.5
    message = failure(cube(lambda g: g * wrong), [values], mode=mode, rounds=1)
    if mode == "full":
        assert "element (17, 13)" in message and "1 of 400 elements" in message


def test_an_upstream_gradient_of_ones_would_miss_what_a_random_one_finds():
    def forward(x):
        return x * 2

    transposed = make_op("transposed", forward, lambda x, dout: 2 * dout.T.copy())
    x = ft.Tensor(normal(3, 3), requires_grad=True)
    ft.ops.sum(transposed(x)).backward()
    assert np.array_equal(x.grad, np.full((3, 3), 2.0))  # looks right
    assert "transposed" in failure(transposed, [x.data])


# -------------------------------------------------------------------------------------------- kinks


@pytest.mark.parametrize("mode", ["fast", "full"])
def test_a_kink_is_left_out_and_reported(mode):
    x = np.array([0.0, 1.0, -1.0, 0.5])
    report = gradcheck(ft.ops.relu, [x], mode=mode)
    assert report.inputs[0].kinks == [(0,)]
    assert "1: (0,)" in str(report)


def test_a_kink_between_the_evaluations_is_no_failure():
    x = np.array([[3e-7, -2e-6], [1.0, -4e-7]])
    kinks = gradcheck(ft.ops.relu, [x], mode="full").inputs[0].kinks
    assert (0, 0) in kinks and (1, 1) in kinks and (1, 0) not in kinks


def test_ties_of_a_max_pool_are_kinks():
    x = np.zeros((1, 4, 4, 1))
    x[0, 0, 0, 0] = 1.0
    report = gradcheck(lambda x: ft.ops.max_pool2d(x, kernel=2, stride=2), [x], mode="full")
    assert len(report.inputs[0].kinks) == 12


def test_a_wrong_gradient_beside_a_kink_is_still_found():
    doubled = make_op("doubled", lambda x: np.maximum(x, 0), lambda x, dout: 2 * (x > 0) * dout)
    for mode in ("fast", "full"):
        assert "ratio 2" in failure(doubled, [np.array([0.0, 1.0, 2.0, -1.0])], mode=mode)


def test_nothing_but_kinks_is_refused():
    assert "kink" in failure(ft.ops.relu, [np.zeros(3)], mode="full", allow_zero=True)
    assert "more than 100" in failure(ft.ops.relu, [np.zeros(200)], allow_zero=True)


# ------------------------------------------------------------------------------ what is not checked


def test_float32_is_refused_with_the_reason():
    with pytest.raises(TypeError, match=r"input 0 \(x\) is float32.*rounding"):
        gradcheck(ft.ops.relu, [MATRIX.astype(np.float32)])


def test_float32_inside_is_refused():
    @ft.op
    def narrow(x):
        return x.data.astype(np.float32), lambda dout: (dout.astype(np.float64),)

    with pytest.raises(TypeError, match="the result of narrow is float32"):
        gradcheck(narrow, [MATRIX])


def test_a_float32_gradient_reaches_the_leaf_rounded_and_is_found():
    rounded = cube(lambda g: g.astype(np.float32).astype(np.float64))
    assert "differences say" in failure(rounded, [MATRIX], rtol=1e-9)


def test_a_function_that_draws_anew_is_refused():
    draws = iter(range(100))

    def noisy(x):
        return ft.ops.dropout(x, 0.5, seed=next(draws), stream=(0, 0))

    assert "not deterministic" in failure(noisy, [MATRIX])
    assert gradcheck(lambda x: ft.ops.dropout(x, 0.5, seed=0, stream=(0, 0)), [MATRIX])


def test_writing_into_an_input_is_refused():
    @ft.op
    def rude(x):
        x.data *= 2
        return x.data + 1, lambda dout: (dout,)

    assert "writes into input 0 (x)" in failure(rude, [MATRIX.copy()])


def test_writing_into_the_upstream_gradient_is_refused():
    @ft.op
    def rude(x):
        def backward(dout):
            dout *= 3
            return (dout,)

        return x.data * 3, backward

    assert "writes into the gradient that it was given" in failure(rude, [MATRIX])


def test_a_gradient_that_is_an_inputs_own_memory_is_refused():
    @ft.op
    def half_square(x):
        data = x.data
        return np.asarray((data**2).sum() / 2), lambda dout: (data,)

    assert "view of an input's own memory" in failure(half_square, [MATRIX])


def test_changing_what_backward_needs_is_found():
    @ft.op
    def forgetful(x):
        kept = x.data * 2
        result = kept * kept
        kept_elsewhere.append(kept)
        return result, lambda dout: (4 * kept * dout,)

    kept_elsewhere = []

    def model(x):
        out = forgetful(x)
        kept_elsewhere[-1] += 1
        return out

    with pytest.raises(ft.errors.TinyftError, match=r"forgetful: an array .* was changed"):
        gradcheck(model, [MATRIX])


def test_a_check_of_nothing_is_refused():
    """sum(batch_norm(x)) has gradient 0 whatever backward does (pitfall 2.8)."""
    weight, bias = ft.Tensor(np.ones(3)), ft.Tensor(np.zeros(3))

    def total(x):
        return ft.ops.sum(ft.ops.batch_norm(x, weight, bias)[0])

    message = failure(total, [normal(6, 3)])
    assert "zero everywhere" in message and "allow_zero" in message
    assert "zero everywhere" in failure(ft.ops.relu, [np.full(3, -1.0)])


def test_a_bias_before_a_normalisation_may_be_allowed():
    weight, shift = ft.Tensor(np.ones(3)), ft.Tensor(np.zeros(3))

    def model(x, bias):
        return ft.ops.batch_norm(x + bias, weight, shift)[0]

    inputs = [normal(6, 3), normal(3)]
    assert "input 1 (bias)" in failure(model, inputs)
    assert gradcheck(model, inputs, allow_zero=True)


def test_results_that_cannot_be_checked():
    assert "no history" in failure(lambda x: ft.Tensor(x.data), [MATRIX])
    assert "not a Tensor" in failure(lambda x: x.data.sum(), [MATRIX])
    with pytest.raises(TypeError, match=r"parameter weight is float32.*rounding"):
        gradcheck(ft.nn.Linear(3, 2), [MATRIX])
    assert "not finite" in failure(lambda x: x / 0.0, [np.array([np.inf])])
    assert "no input requires a gradient" in failure(ft.ops.relu, [ft.Tensor(MATRIX)])
    with pytest.raises(ValueError, match="mode must be"):
        gradcheck(ft.ops.relu, [MATRIX], mode="slow")
    with pytest.raises(ValueError, match="eps must be above 0, got 0"):
        gradcheck(ft.ops.relu, [MATRIX], eps=0)
    with pytest.raises(ValueError, match="one for each of the 2 inputs, got 1"):
        gradcheck(ft.ops.add, [MATRIX, MATRIX], names=["a"])
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        gradcheck(lambda x: x * 2, [MATRIX], rounds=0)


def test_the_public_name_is_the_function_whatever_was_imported_first():
    import importlib

    importlib.import_module("tinyft.testing.gradient_check")
    assert ft.gradcheck is gradcheck
