"""The first layer's filters as pictures."""

import math

import numpy as np
import pytest

from tinyft.errors import ShapeError
from tinyft.inspection.comparison.result import before_and_after, filter_grid


def test_each_filter_has_its_place_and_zero_is_grey():
    weight = np.zeros((5, 3, 2, 2))
    weight[4, 0, 1, 0] = 2.0  # red below left, in the fifth filter
    weight[4, 2, 0, 1] = -2.0
    grid = filter_grid(weight, np.full(5, 2.0))
    assert grid.shape == (2 * 3 + 1, 3 * 3 + 1, 4)  # two rows of three
    fifth = grid[4:6, 4:6]
    assert fifth[1, 0].tolist() == [255, 128, 128, 255]
    assert fifth[0, 1].tolist() == [128, 128, 1, 255]
    assert (grid[1:3, 1:3, :3] == 128).all()
    assert not grid[0].any() and not grid[4:, 7:].any()  # gaps, and the missing sixth


def test_before_and_after_share_a_scale_and_the_change_has_its_own():
    before = np.zeros((2, 3, 3, 3), np.float32)
    before[:, 1, 1, 1] = 1.0
    after = before.copy()
    after[0, 1, 1, 1] = 0.5
    after[1, 0, 0, 0] = 0.125
    first, second, change, enlarged = before_and_after(before, after)
    assert first[2, 2, 1] == 255 and second[2, 2, 1] == 192  # 128 + 127 / 2, rounded to even
    assert change[2, 2, 1] == 1  # the largest change, downwards, is darkest
    assert change[1, 5, 0] == 160  # the other filter's, a quarter of it, on the same scale
    assert enlarged == 2.0


def test_a_dead_filter_stays_grey():
    weight = np.zeros((2, 3, 3, 3))
    weight[0], weight[1] = 1.0, 1e-4
    before, _, _, _ = before_and_after(weight, weight)
    assert (before[1:4, 1:4] == 255).all() and (before[1:4, 5:8, :3] == 128).all()


def test_no_change_is_grey_everywhere():
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3))
    first, second, change, enlarged = before_and_after(weight, weight)
    assert (first == second).all() and math.isinf(enlarged)
    assert set(np.unique(change[..., :3])) == {0, 128}


def test_another_layer_has_no_pictures():
    with pytest.raises(ShapeError, match=r"first layer's weight \(F, 3, R, S\), got \(4, 16, 3, 3"):
        filter_grid(np.zeros((4, 16, 3, 3)), np.ones(4))
