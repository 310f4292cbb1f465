"""Our results beside PyTorch's, recorded by tests/golden/make_golden_ops.py (no PyTorch here)."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tinyft import ops
from tinyft.engine.tensor import Tensor

PATH = Path(__file__).parents[1] / "golden" / "golden_ops.npz"
# stride and padding of the recorded convolutions
WINDOWS = {
    "3x3": (1, 1), "3x3s2": (2, 1), "1x1": (1, 0), "1x1s2": (2, 0), "7x7s2": (2, 3),
    "5x5p2": (1, 2), "2x3s3": (3, 1), "wide": (1, 1),
}  # fmt: skip
POOLS = {"3s2p1": (3, 2, 1), "2s2": (2, 2, 0), "3s1p1": (3, 1, 1)}
PICTURES = ["distinct", "ties", "constant", "negative", "nan"]
EPSILON = 2.0**-24


@cache
def golden():
    with np.load(PATH) as file:
        return {name: file[name] for name in file.files}


def recorded(name, array, bits="64"):
    return golden()[f"{name}/{array}.{bits}"]


def run(name, function, inputs, dtype):
    """Result and gradients, by the names under which they are recorded."""
    leaves = {n: Tensor(golden()[f"{name}/{n}"].astype(dtype), requires_grad=True) for n in inputs}
    result = function(**leaves)
    out = result[0] if isinstance(result, tuple) else result
    out.backward(golden()[f"{name}/upstream"].astype(dtype))
    return {"out": out.data, **{f"d{n}": x.grad for n, x in leaves.items()}}


def compare(name, function, inputs, limit=3):
    """In float64 to the last digits; in float32 with at most `limit` times PyTorch's own error, or
    two roundings where PyTorch happened to be exact.
    """
    for array, value in run(name, function, inputs, np.float64).items():
        exact = recorded(name, array)
        assert np.allclose(value, exact, rtol=1e-12, atol=1e-12, equal_nan=True), array
    for array, value in run(name, function, inputs, np.float32).items():
        exact = recorded(name, array)
        known = ~np.isnan(exact)
        assert np.array_equal(np.isnan(value), ~known), array
        error = np.linalg.norm((value - exact)[known])
        theirs = np.linalg.norm((recorded(name, array, "32") - exact)[known])
        assert error <= limit * theirs + 2 * EPSILON * np.linalg.norm(exact[known]), array


def test_where_the_numbers_come_from():
    assert "torch 2.14.1" in str(golden()["versions"])


@pytest.mark.parametrize("name", WINDOWS)
def test_conv2d(name):
    stride, padding = WINDOWS[name]

    def convolve(x, weight, bias):
        return ops.conv2d(x, weight, bias, stride=stride, padding=padding)

    # Winograd takes these, and may lose five times as much
    limit = 5 if name in ("3x3", "wide") else 3
    compare(f"conv2d {name}", convolve, ("x", "weight", "bias"), limit)


@pytest.mark.parametrize("name", ["pictures", "rows"])
def test_batch_norm_in_training(name):
    inputs = ("x", "weight", "bias")
    compare(f"batch_norm {name}", lambda **t: ops.batch_norm(**t), inputs)


@pytest.mark.parametrize("name", ["pictures", "rows"])
def test_batch_norm_with_running_statistics(name):
    mean = golden()[f"batch_norm {name}/start_mean"]
    variance = golden()[f"batch_norm {name}/start_variance"]

    def normalise(x, weight, bias):
        given = mean.astype(x.dtype), variance.astype(x.dtype)
        return ops.batch_norm_eval(x, weight, bias, *given)

    compare(f"batch_norm_eval {name}", normalise, ("x", "weight", "bias"))


@pytest.mark.parametrize("name", ["pictures", "rows"])
def test_the_statistics_that_come_out_are_those_that_running_ones_are_made_of(name):
    """running = 0.9 running + 0.1 batch, with the variance divided by n - 1 instead of n."""
    key = f"batch_norm {name}"
    x, weight, bias = (
        Tensor(golden()[f"{key}/{n}"].astype(float)) for n in ("x", "weight", "bias")
    )
    _, mean, variance = ops.batch_norm(x, weight, bias)
    n = x.size // x.shape[-1]
    start_mean, start_variance = golden()[f"{key}/start_mean"], golden()[f"{key}/start_variance"]
    expected_mean = 0.9 * start_mean.astype(float) + 0.1 * mean.data
    expected_variance = 0.9 * start_variance.astype(float) + 0.1 * variance.data * n / (n - 1)
    assert np.allclose(expected_mean, recorded(key, "running_mean"), rtol=1e-12)
    assert np.allclose(expected_variance, recorded(key, "running_variance"), rtol=1e-12)


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("pool", POOLS)
def test_max_pool2d(pool, picture):
    kernel, stride, padding = POOLS[pool]

    def largest(x):
        return ops.max_pool2d(x, kernel=kernel, stride=stride, padding=padding)

    compare(f"max_pool2d {pool} {picture}", largest, ("x",))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing, weighted):
    labels = golden()["cross_entropy/labels"]
    weights = golden()["cross_entropy/class_weights"] if weighted else None

    def loss(logits):
        return ops.cross_entropy(logits, labels, label_smoothing=smoothing, class_weights=weights)

    name = f"cross_entropy {smoothing} {'weighted' if weighted else 'plain'}"
    compare(name, loss, ("logits",))


def test_cross_entropy_of_huge_logits():
    compare("cross_entropy huge", lambda logits: ops.cross_entropy(logits, np.array([1, 2])),
            ("logits",))  # fmt: skip
