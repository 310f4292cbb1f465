"""Batch norms with a large mean, which a float rounds by more than what is normalised."""

from __future__ import annotations

import numpy as np
import pytest

from tinyft import backends

pytestmark = pytest.mark.slow


EPS = 1e-5
BOUND = 2e-6  # of the largest answer: the study's


@pytest.mark.parametrize("mean", [0, 1000, -20000])
def test_training_keeps_the_digits_beside_a_large_mean(gpu, mean):
    """100 shares of rows, three strips of channels, forward and backward, against float64. Where
    the mean is 1000, NumPy and the CPU backend in float32, which know no more of it than its float,
    are off by 6.8e-6 forward and 4.4e-4 in dweight.
    """
    draw = np.random.default_rng(0).standard_normal
    shape = (8, 28, 28, 70)
    x = (mean + draw(shape)).astype(np.float32)
    dout = (draw(shape) + 0.5).astype(np.float32)
    weight, bias = draw((2, 70)).astype(np.float32)
    results = []
    for backend, dtype in ((gpu, np.float32), (backends.get("reference"), np.float64)):
        arrays = [backend.upload(a.astype(dtype)) for a in (x, weight, bias, dout)]
        out, *statistics = backend.batch_norm_train(*arrays[:3], EPS)
        back = backend.batch_norm_train_grad(arrays[3], *arrays[:2], *statistics, EPS)
        results.append([backends.host(a) for a in (out, *statistics, *back[:3])])
    names = ("out", "mean", "variance", "dx", "dweight", "dbias")
    for name, found, exact in zip(names, *results, strict=True):
        off = np.abs(found - exact).max() / np.abs(exact).max()
        print(f"\nmean {mean}: {name} {off:.1e}", end="")
        assert off < BOUND, name


def test_evaluation_takes_the_mean_that_is_given(gpu):
    """Whatever the batch's own is: nothing is corrected."""
    x = np.full((2, 3, 3, 4), 5, np.float32)
    ones, three = np.ones(4, np.float32), np.full(4, 3, np.float32)
    x, ones, three = (gpu.upload(a) for a in (x, ones, three))
    out = gpu.batch_norm_eval(x, ones, ones, three, ones, 0.0)
    dx, dweight, dbias, _ = gpu.batch_norm_eval_grad(x, x, ones, three, ones, 0.0)
    np.testing.assert_array_equal(backends.host(out), 3)
    np.testing.assert_array_equal(backends.host(dweight), 5 * 2 * 18)
    np.testing.assert_array_equal(backends.host(dbias), 5 * 18)
    np.testing.assert_array_equal(backends.host(dx), 5)
