"""`ft.compare_arrays`: exact, close, and what is wrong, where, and what it looks like."""

import numpy as np
import pytest

import tinyft as ft

X = np.arange(1.0, 7).reshape(2, 3)
SPOILT = X + np.eye(2, 3)


@pytest.mark.parametrize(
    ("yours", "right", "close", "said"),
    [
        (X, X, True, "dx: exact"),
        (X.tolist(), X, True, "dx: exact"),
        (X + 1e-9, X, True, "dx: close, within 1e-09"),
        (X + 1e-6, X, False, "dx: wrong, yours [["),
        ((X + 1e-6).astype(np.float32), X, True, "dx: close"),
        (X == 1, X == 1, True, "dx: exact"),
        (X == 1, X == 2, False, "yours [[ True False"),
        (..., X, False, "dx: not written yet"),
        (None, X, False, "dx: not written yet"),
        ("x", X, False, "dx: not numbers, expected numbers; got 'x'"),
        (X.T, X, False, "dx: another shape, yours has (3, 2), expected (2, 3)"),
        (-X, X, False, "the sign is wrong"),
        (0 * X, X, False, "all of yours is 0"),
        (X[::-1], X, False, "reversed along the axes (0,)"),
        (SPOILT, X, False, "yours [[2. 2. 3.]"),
        (np.where(X == 2, np.nan, X), X, False, "yours [[ 1. nan  3.]"),
        (np.where(X == 2, np.nan, X), np.where(X == 2, np.nan, X), True, "exact"),
        (2.0, 4.0, False, "dx: wrong, yours 2, right 4"),
        (np.zeros((0, 3)), np.zeros((0, 3)), True, "exact"),
    ],
)
def test_a_comparison_says_what_it_found(yours, right, close, said):
    comparison = ft.compare_arrays("dx", yours, right)
    assert bool(comparison) == close and said in str(comparison)


def test_of_a_large_array_the_worst_element_and_a_map_are_shown():
    right = np.arange(12.0).reshape(3, 4)
    said = str(ft.compare_arrays("dx", right + np.eye(3, 4), right))
    assert "dx: wrong, worst at (0, 0): yours 1, right 0" in said
    assert "right (.) and wrong (x):\n    x...\n    .x..\n    ..x." in said


def test_a_factor_that_is_missing_is_named():
    std = np.array([1.0, 2, 4])
    said = str(ft.compare_arrays("dstd", X, -X / std, known={"std": std, "w": std + 1}))
    assert "a factor is missing: 1 / std" in said


def test_the_worst_element_is_known():
    yours = SPOILT.copy()
    yours[1, 2] += 5
    comparison = ft.compare_arrays("dx", yours, X)
    assert comparison.worst == (1, 2) and comparison.difference == 5
