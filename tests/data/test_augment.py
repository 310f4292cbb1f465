"""Draws and matrices against fastai; ranges and probabilities of the draws."""

from __future__ import annotations

import random
from dataclasses import astuple, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyft.data import augment
from tinyft.data.augment import AugmentDraw
from tinyft.data.picture import centre_crop, resize_to
from tinyft.data.resample import grid, light, sample

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "golden_augment.npz")
NEUTRAL = AugmentDraw()


def golden_draw(row: int) -> AugmentDraw:
    """The draws of picture `row` in the recorded batch of two."""
    value = {key[5:]: GOLDEN[key][row] for key in GOLDEN.files if key.startswith("draw_")}
    return AugmentDraw(
        flip=bool(value["flip"]),
        angle=value["rotate"],
        zoom=value["zoom"],
        centre=(value["zoom_x"], value["zoom_y"]),
        warp=(value["warp_x"], value["warp_y"]),
        brightness=value["brightness"],
        contrast=value["contrast"],
    )


def channels_last(batch: np.ndarray, row: int) -> np.ndarray:
    return batch[row].transpose(1, 2, 0).astype(np.float64)


def stretched(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """fastai's correction for pictures that are not square; ours always are."""
    matrix = matrix.copy()
    matrix[0, 1] *= height / width
    matrix[1, 0] *= width / height
    return matrix


def affine_of(drawn: AugmentDraw) -> np.ndarray:
    return augment.transform(replace(drawn, warp=(0.0, 0.0)))


@pytest.mark.slow
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize(
    ("name", "fields"),
    [("flip", ["flip"]), ("rotate", ["angle"]), ("zoom", ["zoom", "centre"])],
)
def test_affine_matrices_and_pixels_equal_fastai(name, fields, row):
    drawn = replace(NEUTRAL, **{field: getattr(golden_draw(row), field) for field in fields})
    matrix = stretched(augment.transform(drawn), 8, 10)
    np.testing.assert_allclose(matrix[:2], GOLDEN[f"{name}_mat"][row], atol=1e-7)
    out = sample(channels_last(GOLDEN["x"], row), grid(matrix, 8, 10))
    np.testing.assert_allclose(out, channels_last(GOLDEN[name], row), atol=2e-6)


@pytest.mark.parametrize("row", [0, 1])
def test_warp_equals_fastai(row):
    matrix = augment.warp_matrix(golden_draw(row).warp)
    out = sample(channels_last(GOLDEN["x"], row), grid(matrix, 8, 10))
    np.testing.assert_allclose(out, channels_last(GOLDEN["warp"], row), atol=2e-6)


@pytest.mark.parametrize("row", [0, 1])
def test_composition_equals_fastai(row):
    drawn = golden_draw(row)
    affine = stretched(affine_of(drawn), 8, 10)
    np.testing.assert_allclose(affine[:2], GOLDEN["composed_affine_mat"][row], atol=1e-7)
    matrix = augment.warp_matrix(drawn.warp) @ affine
    out = sample(channels_last(GOLDEN["x"], row), grid(matrix, 8, 10))
    np.testing.assert_allclose(out, channels_last(GOLDEN["composed_affine"], row), atol=2e-6)


@pytest.mark.parametrize("row", [0, 1])
def test_lighting_equals_fastai(row):
    drawn, x = golden_draw(row), channels_last(GOLDEN["x"], row)
    for name, values in {
        "brightness": (drawn.brightness, 1.0),
        "contrast": (0.5, drawn.contrast),
        "composed_light": (drawn.brightness, drawn.contrast),
    }.items():
        np.testing.assert_allclose(light(x, *values), channels_last(GOLDEN[name], row), atol=1e-6)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("name", ["usual", "reduced"])
def test_square_to_smaller_square_equals_fastai(name, row):
    drawn, expected = golden_draw(row), channels_last(GOLDEN[name], row)
    points = grid(augment.transform(drawn), *expected.shape[:2])
    out = sample(channels_last(GOLDEN[f"{name}_x"], row), points)
    out = light(out, drawn.brightness, drawn.contrast)
    # fastai's float32 places a sample to 32 * 6e-8 pixels, where neighbours differ by up to 0.8,
    # and reads through a contrast of up to 1.25.
    np.testing.assert_allclose(out, expected, atol=5e-6)


class PythonRandom:
    """Python's generator behind the methods that a draw uses: fastai draws crops from it."""

    def __init__(self, seed):
        self.generator = random.Random(seed)

    def uniform(self, low, high):
        return self.generator.uniform(low, high)

    def integers(self, low, high, endpoint):
        assert endpoint
        return self.generator.randint(low, high)


def test_random_resized_crop_equals_fastai():
    out = augment.random_resized_crop(GOLDEN["picture"], PythonRandom(7), 8)
    np.testing.assert_array_equal(out, GOLDEN["rrc_train_seed7"])


def test_fastai_resize_and_validation_crops_follow_from_the_same_parts():
    picture = GOLDEN["picture"]  # 17x23
    for key, position in (("valid", 0.5), ("train_seed7", random.Random(7).random())):
        left = int(position * 6)
        out = resize_to(picture[:17, left : left + 17], (8, 8))
        np.testing.assert_array_equal(out, GOLDEN[f"resize_crop_{key}"])
    out = centre_crop(resize_to(picture, (16, 16)), 8)
    np.testing.assert_array_equal(out, GOLDEN["rrc_valid"])


def test_the_neutral_draw_keeps_every_byte(rough):
    np.testing.assert_array_equal(augment.apply(rough(20, 20), NEUTRAL, 20), rough(20, 20))


@pytest.mark.parametrize(("position", "left"), [(0.0, 0), (0.5, 5), (0.999, 9)])
def test_the_square_lies_along_the_longer_side(position, left, rough):
    drawn = AugmentDraw(position=position)
    wide, tall = rough(20, 30), rough(30, 20)
    np.testing.assert_array_equal(augment.apply(wide, drawn, 20), wide[:, left : left + 20])
    np.testing.assert_array_equal(augment.apply(tall, drawn, 20), tall[left : left + 20])


def test_flip_mirrors_left_and_right(rough):
    out = augment.apply(rough(20, 20), AugmentDraw(flip=True), 20)
    np.testing.assert_array_equal(out, rough(20, 20)[:, ::-1])


def test_a_positive_angle_turns_clockwise():
    picture = np.zeros((21, 21, 3), np.uint8)
    picture[8:13, 16:] = 255  # a mark at the right
    out = augment.apply(picture, AugmentDraw(angle=90.0), 21)
    assert out[18:, 10].min() == 255 and out[:16].max() == 0  # is now below


def test_zoom_keeps_its_centre_in_place():
    picture = np.zeros((41, 41, 3), np.uint8)
    picture[10, 30] = 255
    out = augment.apply(picture, AugmentDraw(zoom=1.1, centre=(30 / 40, 10 / 40)), 41)
    assert out[10, 30].min() > 250


def test_brightness_and_contrast_at_the_middle_and_the_ends(rough):
    grey = np.full((8, 8, 3), 128, np.uint8)
    brighter = augment.apply(grey, AugmentDraw(brightness=0.6), 8)
    assert (brighter == 153).all()  # 0.6 * 255, since 128 is nearly the neutral half
    assert augment.apply(grey, AugmentDraw(brightness=0.4), 8).max() < 128
    flat = augment.apply(rough(8, 8), AugmentDraw(contrast=0.8), 8)
    assert np.abs(flat - 127.5).mean() < np.abs(rough(8, 8) - 127.5).mean()


def draws(count: int) -> list[AugmentDraw]:
    return [augment.draw(np.random.default_rng(i)) for i in range(count)]


def test_ranges_of_the_draws():
    for drawn in draws(500):
        assert 0 <= drawn.position < 1
        assert abs(drawn.angle) <= 10 and 1 <= drawn.zoom <= 1.1
        assert all(0 <= value < 1 for value in drawn.centre)
        assert all(abs(value) <= 0.2 for value in drawn.warp)
        assert 0.4 <= drawn.brightness <= 0.6 and 0.8 <= drawn.contrast <= 1.25


@pytest.mark.slow
def test_probabilities_of_the_draws():
    many, sigma = draws(4000), 0.0079  # the largest standard deviation of a share of 4000
    shares = {
        "flip": (np.mean([drawn.flip for drawn in many]), 0.5),
        "angle": (np.mean([drawn.angle != 0 for drawn in many]), 0.75),
        "zoom": (np.mean([drawn.zoom != 1 for drawn in many]), 0.75),
        "warp x": (np.mean([drawn.warp[0] != 0 for drawn in many]), 0.75),
        "warp y": (np.mean([drawn.warp[1] != 0 for drawn in many]), 0.75),
        "both warps": (np.mean([0 not in drawn.warp for drawn in many]), 0.75**2),
        "brightness": (np.mean([drawn.brightness != 0.5 for drawn in many]), 0.75),
        "contrast": (np.mean([drawn.contrast != 1 for drawn in many]), 0.75),
        "contrast up": (np.mean([drawn.contrast > 1 for drawn in many]), 0.375),
    }
    for name, (share, expected) in shares.items():
        assert abs(share - expected) < 4 * sigma, name


def test_drawn_values_spread_over_their_whole_range():
    angles = np.array([drawn.angle for drawn in draws(2000) if drawn.angle])
    assert angles.min() < -9.9 and angles.max() > 9.9 and abs(angles.mean()) < 0.6


def test_a_draw_takes_the_same_numbers_whatever_comes_out():
    """So a probability that is changed does not change the values of later draws."""
    streams = [np.random.default_rng(i) for i in range(50)]
    left_over = []
    for i, rng in enumerate(streams):
        augment.draw(rng)
        fresh = np.random.default_rng(i)
        fresh.random(16)
        left_over.append(rng.random() == fresh.random())
    assert all(left_over)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    min_scale=st.floats(0.08, 1.0),
)
def test_crops_lie_inside_the_picture(seed, height, width, min_scale):
    with mock.patch.object(augment, "MIN_SCALE", min_scale):
        drawn = augment.draw_crop(np.random.default_rng(seed), height, width)
    left, top, crop_width, crop_height = drawn
    assert left >= 0 and top >= 0 and crop_width > 0 and crop_height > 0
    assert left + crop_width <= width and top + crop_height <= height


def test_a_crop_without_luck_is_the_largest_in_the_middle():
    class Unlucky:
        def uniform(self, low, high):
            return high

    assert augment.draw_crop(Unlucky(), 10, 100) == (43, 0, 13, 10)
    assert augment.draw_crop(Unlucky(), 100, 10) == (0, 43, 10, 13)


@pytest.mark.parametrize(
    "augmentation", [augment.aug_transforms, augment.random_resized_crop, augment.random_shift]
)
def test_augmentation_is_a_pure_function(augmentation, rough):
    picture = rough(24, 31)
    picture.flags.writeable = False
    one = augmentation(picture, np.random.default_rng(5), 20)
    two = augmentation(picture, np.random.default_rng(5), 20)
    assert one.dtype == np.uint8 and one.shape == (20, 20, 3)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(picture, rough(24, 31))
    assert (one != augmentation(picture, np.random.default_rng(6), 20)).any()


def test_a_draw_can_be_printed():
    assert len(astuple(NEUTRAL)) == 8
    assert "angle=0.0" in repr(NEUTRAL)


def test_a_shift_moves_the_picture_and_mirrors_what_is_missing():
    column = np.arange(20, dtype=np.uint8)
    picture = np.repeat(np.broadcast_to(column, (20, 20))[..., None], 3, axis=2)
    seen = set()
    for seed in range(200):
        row = augment.random_shift(picture, np.random.default_rng(seed), 20)[0, :, 0].tolist()
        flipped = row[10] > row[11]
        row = row[::-1] if flipped else row
        shift = row[10] - 10
        expected = [abs(i + shift) if i + shift < 20 else 38 - i - shift for i in range(20)]
        assert row == expected
        seen.add((flipped, shift))
    assert seen == {(flipped, shift) for flipped in (False, True) for shift in range(-2, 3)}


def test_a_shift_finds_every_place_in_a_larger_picture():
    picture = np.zeros((24, 30, 3), np.uint8)
    picture[..., 0] = np.arange(30)
    lefts = [
        augment.random_shift(picture, np.random.default_rng(seed), 24)[0, :, 0]
        for seed in range(300)
    ]
    assert {min(int(row[5]), int(row[-6])) for row in lefts} == set(range(3, 14))
