"""The contract itself is tested with backends that break it, each in one way."""

import contextlib
import functools
import re

import numpy as np
import pytest

import tinyft as ft
from tinyft import backends
from tinyft.backends import Backend
from tinyft.testing import contract as testing
from tinyft.testing.contract import (
    KERNEL_CASES,
    OP_CASES,
    ContractError,
    Refusal,
    Spread,
    check_backend,
    check_kernel,
    check_op,
    check_refusal,
    close_enough,
    layouts,
    rounding_spread,
)

KERNELS = {str(case): case for case in KERNEL_CASES}
OPS = {str(case): case for case in OP_CASES}


@pytest.fixture
def install(monkeypatch):
    """Makes a Backend available under the name `broken`."""
    real = backends.get

    def install(backend):
        backend.name = "broken"
        for module in (backends, backends.registry):
            monkeypatch.setattr(module, "get", lambda n: backend if n == "broken" else real(n))

    return install


def spoilt(name, change):
    """The reference backend with one kernel whose result is `change`d; of several results, each."""
    plain = getattr(Backend, name)

    @functools.wraps(plain)
    def kernel(self, *arguments, **options):
        result = plain(self, *arguments, **options)
        if isinstance(result, tuple):
            return tuple(change(r) for r in result)
        return change(result)

    return type("Broken", (Backend,), {name: kernel})()


def broken_promise(install, backend, case):
    install(backend)
    with pytest.raises(ContractError) as caught:
        check_kernel(KERNELS[case], "broken")
    assert case in str(caught.value) and "broken" in str(caught.value)
    return str(caught.value)


RELU, CONV, POOL = "relu (2, 5, 4, 3)", "conv2d 3x3", "max_pool2d 3x3 stride 2"


# --------------------------------------------------------------------- kernels that break a promise


def test_a_wrong_value(install):
    for case, name in ((CONV, "conv2d"), ("batch_norm_train 10 channels", "batch_norm_train")):
        message = broken_promise(install, spoilt(name, lambda r: r * (1 + 1e-4)), case)
        assert "differs from the float64 reference" in message
        assert "rounding explains" in message


def test_one_wrong_element(install):
    def change(result):
        result = result.copy()
        result.reshape(-1)[-1] += 1e-3
        return result

    assert "result 0 differs" in broken_promise(install, spoilt("conv2d", change), CONV)


def test_a_wrong_integer(install):
    def change(result):
        return result if result.dtype.kind == "f" else (result + 1).astype(result.dtype)

    message = broken_promise(install, spoilt("max_pool2d", change), POOL)
    assert "integers differ" in message


def test_another_dtype_shape_or_layout(install):
    double = spoilt("relu", lambda r: r.astype(np.float64))
    assert "is float64, expected float32" in broken_promise(install, double, RELU)
    flat = spoilt("relu", lambda r: r.reshape(-1))
    assert "shape (120,), expected (2, 5, 4, 3)" in broken_promise(install, flat, RELU)
    strided = spoilt("relu", lambda r: np.asfortranarray(r))
    assert "not C-contiguous" in broken_promise(install, strided, RELU)


def test_writing_into_an_input(install):
    class Rude(Backend):
        def relu(self, x):
            if x.flags.writeable:
                np.maximum(x, 0, out=x)
            return np.maximum(x, 0)

    assert "writes into x" in broken_promise(install, Rude(), RELU)


def test_giving_an_input_back(install):
    class Lazy(Backend):
        def dropout(self, x, probability, seed, stream):
            return super().dropout(x, probability, seed, stream) if probability else x

    message = broken_promise(install, Lazy(), "dropout (7, 37), none dropped")
    assert "shares memory with x" in message


def test_lending_one_buffer_twice(install):
    class Reusing(Backend):
        buffer = np.empty((2, 5, 4, 3), np.float32)

        def relu(self, x):
            if x.dtype != np.float32:
                return super().relu(x)
            self.buffer[...] = np.maximum(x, 0)
            return self.buffer

    assert "changes the first call's result" in broken_promise(install, Reusing(), RELU)


def test_ignoring_strides(install):
    class Blind(Backend):
        def relu(self, x):
            return np.maximum(np.ravel(x, order="K").reshape(x.shape), 0)

    assert "of transposed inputs differs" in broken_promise(install, Blind(), RELU)


def test_refusing_read_only_arrays(install):
    class Picky(Backend):
        def relu(self, x):
            x.reshape(-1)[:0] = 0
            return super().relu(x)

    install(Picky())
    with pytest.raises(ValueError, match="read-only"):
        check_kernel(KERNELS[RELU], "broken")


def test_hiding_nan(install):
    class Hiding(Backend):
        def relu(self, x):
            return np.fmax(x, 0).astype(x.dtype)

    assert "hides nan in x at 1 places" in broken_promise(install, Hiding(), RELU)


def test_computing_float64_in_float32(install):
    class Narrow(Backend):
        def conv2d(self, x, weight, *more, **options):
            narrow = [x.astype(np.float32), weight.astype(np.float32), *more]
            return super().conv2d(*narrow, **options).astype(x.dtype)

    assert "float64 does not give" in broken_promise(install, Narrow(), CONV)


def test_bits_that_depend_on_the_number_of_threads(install, monkeypatch):
    count = [1]

    @contextlib.contextmanager
    def threads(number):
        count[0] = number
        yield
        count[0] = 1

    monkeypatch.setattr(testing, "working_with_threads", threads)
    monkeypatch.setattr(testing, "THREADED", ("broken",))
    racing = spoilt("relu", lambda r: r if count[0] != 4 else np.nextafter(r, r.dtype.type(2)))
    assert "4 threads give other bits" in broken_promise(install, racing, RELU)


# ------------------------------------------------------------------------- ops over wrong gradients

GRADIENTS = {
    "conv2d_input_grad": CONV,
    "conv2d_weight_grad": CONV,
    "batch_norm_train_grad": "batch_norm 10 channels",
    "batch_norm_eval_grad": "batch_norm_eval 10 channels",
    "relu_grad": "relu (2, 5, 4, 3)",
    "max_pool2d_grad": POOL,
    "global_average_pool_grad": "global_average_pool (2, 4, 3, 10)",
    "global_max_pool_grad": "global_max_pool (2, 4, 3, 10)",
    "softmax_cross_entropy_grad": "cross_entropy 10 classes",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("factor", [-1, 0.5, 2])
def test_a_wrong_gradient_breaks_the_contract_of_the_op(install, name, factor):
    install(spoilt(name, lambda r: r * r.dtype.type(factor)))
    with pytest.raises(ContractError) as caught:
        check_op(OPS[GRADIENTS[name]], "broken")
    words = {-1: "sign is wrong", 0.5: "half of what", 2: "twice too large"}[factor]
    assert words in str(caught.value)


# ----------------------------------------------------------------------------------------- refusals


def refuse(call, error=ft.errors.ShapeError, words=("x should be",)):
    with pytest.raises(ContractError) as caught:
        check_refusal(Refusal("relu", "something", call, words, error))
    return str(caught.value)


def test_a_refusal_that_does_not_come_or_says_too_little():
    def short():
        raise ft.errors.ShapeError("no")

    def other():
        raise KeyError("x")

    assert "does not say ['relu:', 'x should be']" in refuse(short)
    assert "expected ShapeError, nothing was raised" in refuse(lambda: None)
    assert "expected ShapeError, got KeyError" in refuse(other)


# --------------------------------------------------------------------------------- whole, and parts


@pytest.mark.slow
def test_the_whole_contract_says_what_it_checked_and_what_failed(install, monkeypatch):
    # every twentieth case: all of them run in tests/contract
    monkeypatch.setattr(testing, "KERNEL_CASES", KERNEL_CASES[::20])
    monkeypatch.setattr(testing, "OP_CASES", OP_CASES[::20])
    counts = len(testing.KERNEL_CASES), len(testing.OP_CASES)
    sentence = check_backend("reference")
    assert sentence.startswith(f"reference: {counts[0]} kernel cases, {counts[1]} op cases")
    install(spoilt("conv2d", lambda r: -r))
    with pytest.raises(ContractError) as caught:
        check_backend("broken")
    assert re.match(r"\d+ cases failed on broken\n", str(caught.value))


@pytest.mark.slow
@pytest.mark.parametrize("terms", [9, 4608, 100_352])
def test_the_bound_is_derived_and_not_generous(terms):
    """A float32 sum, one term after the other, keeps it; three decimal digits lost do not."""
    rng = np.random.default_rng(terms)
    a = rng.standard_normal((terms, 20)).astype(np.float32)
    b = rng.standard_normal((terms, 20)).astype(np.float32)
    arrays = {"a": a.astype(np.float64), "b": b.astype(np.float64)}

    def exact(arrays):
        return [(arrays["a"] * arrays["b"]).sum(axis=0)]

    (spread,) = rounding_spread(exact, arrays, ())
    (truth,) = exact(arrays)
    plain = np.add.accumulate(a * b, axis=0)[-1]
    assert plain.dtype == np.float32
    assert close_enough(plain, truth, spread, terms) is None
    lost = 1000 * np.linalg.norm(plain - truth) / np.linalg.norm(truth)
    assert close_enough(truth * (1 + lost), truth, spread, terms) is not None


def test_a_result_keeps_the_bounds_of_its_norm_and_of_its_largest_error():
    """Of 10,000 numbers the norm's is 25 times that of the largest error."""
    exact = np.ones(10_000)
    spread, largest = Spread(0.0, 0.0), 5 * 4 * 2.0**-24
    one, every = exact.copy(), exact + 0.9 * largest
    one[7] += 0.9 * largest
    assert close_enough(one, exact, spread, 1) is None
    one[7] += 4 * largest
    assert "differs" in close_enough(one, exact, spread, 1)
    assert "differs" in close_enough(every, exact, spread, 1)


def test_every_layout_holds_the_same_values():
    array = np.arange(24.0).reshape(2, 3, 4)
    found = layouts(array)
    assert all(np.array_equal(a, array) for a in found.values())
    assert not found["transposed"].flags.c_contiguous and found["transposed"].flags.f_contiguous
    assert not found["sliced"].flags.contiguous and found["offset"].base is not None
    assert not found["read-only"].flags.writeable
    assert all(a.shape == () for a in layouts(np.array(2.0)).values())


def test_the_public_names():
    assert "check_op" in ft.testing.__all__
    for name in ft.testing.__all__:
        assert getattr(ft.testing, name) is not None
