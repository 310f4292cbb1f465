"""Kernels that no op calls, by hand: the optimizers' steps and the pictures."""

import numpy as np
import pytest

from tinyft import backends

ADAM = {"lr": 0.1, "momentum": 0.9, "square_momentum": 0.99}


def test_the_first_step_of_adam(backend):
    """Both averages are corrected to the gradient itself: p - lr * g / (|g| + eps)."""
    parameter, average, square = (np.array([v], np.float32) for v in (1, 0, 0))
    gradient = np.array([2], np.float32)
    backends.get(backend).adam_step(
        parameter, gradient, average, square, step=1, eps=1.0, weight_decay=0.0, **ADAM
    )
    assert parameter[0] == pytest.approx(1 - 0.1 * 2 / 3)
    assert average[0] == pytest.approx(0.2) and square[0] == pytest.approx(0.04)
    assert gradient[0] == 2


def test_the_second_step_of_adam_with_weight_decay(backend):
    """Decay first and apart from the gradient; corrections by 1 - 0.81 and 1 - 0.9801."""
    parameter, average, square = (np.array([v], np.float32) for v in (1, 0.2, 0.04))
    backends.get(backend).adam_step(
        parameter, np.array([-1], np.float32), average, square,
        step=2, eps=0.5, weight_decay=0.5, **ADAM,
    )  # fmt: skip
    assert average[0] == pytest.approx(0.08) and square[0] == pytest.approx(0.0496)
    step = 0.1 * (0.08 / 0.19) / (np.sqrt(0.0496 / 0.0199) + 0.5)
    assert parameter[0] == pytest.approx(0.95 - step)


def test_sgd_with_and_without_momentum(backend):
    parameter, velocity = np.array([1], np.float32), np.array([10], np.float32)
    gradient, options = np.array([2], np.float32), {"lr": 0.1, "weight_decay": 0.5}
    backends.get(backend).sgd_step(parameter, gradient, velocity, momentum=0.9, **options)
    assert velocity[0] == pytest.approx(11) and parameter[0] == pytest.approx(0.95 - 1.1)
    backends.get(backend).sgd_step(parameter, gradient, None, momentum=0.9, **options)
    assert parameter[0] == pytest.approx(-0.15 * 0.95 - 0.2) and gradient[0] == 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pictures(backend, dtype):
    pixels = np.array([[[[0, 255, 51]]]], np.uint8)
    mean, std = np.array([0.5, 0.5, 0.1], np.float32), np.array([0.5, 0.25, 0.2], np.float32)
    out = backends.get(backend).images(pixels, mean, std, np.dtype(dtype))
    assert out.dtype == dtype and np.allclose(out, [[[[-1, 2, 0.5]]]], rtol=1e-6)


def test_sums_are_made_in_float64():
    x = np.array([1e8, 1, -1e8], np.float32)  # in float32, 1e8 + 1 is 1e8
    reference = backends.get("reference")
    assert reference.sum(x, None) == 1
    assert reference.mean(x, None) == np.float32(1 / 3)
