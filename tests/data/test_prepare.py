"""Resizing and cropping against torchvision, and the one preprocessing function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tinyft.data.picture import (
    centre_crop,
    centre_offset,
    prepare,
    printable,
    resize_short_side,
    working_picture,
)
from tinyft.errors import DataError
from tinyft.weights.preprocess import Preprocess

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "golden_decode.npz")


@pytest.mark.parametrize("key", [key for key in GOLDEN.files if "x" in key])
def test_equals_torchvision_to_the_last_bit(key, rough):
    size, interpolation = key.split("_")
    picture = rough(*map(int, size.split("x")))
    out = prepare(picture, Preprocess(resize=32, crop=28, interpolation=interpolation))
    np.testing.assert_array_equal(out, GOLDEN[key])


def test_centre_offsets_equal_torchvision():
    assert [centre_offset(margin) for margin in range(41)] == GOLDEN["offsets"].tolist()


def test_the_long_side_is_rounded_down(rough):
    assert resize_short_side(rough(333, 500), 256).shape == (256, 384, 3)
    assert resize_short_side(rough(500, 333), 256).shape == (384, 256, 3)


def test_a_narrow_picture_may_not_become_huge(rough):
    with pytest.raises(DataError, match="million pixels"):
        resize_short_side(rough(1, 19), 4000)


def test_a_crop_that_does_not_fit_says_so(rough):
    with pytest.raises(DataError, match="does not fit into a picture of 20x30"):
        centre_crop(rough(30, 20), 24)


def test_path_bytes_and_array_give_the_same(tmp_path, encode, rough):
    preprocess = Preprocess(resize=16, crop=12)
    path = tmp_path / "a.png"
    path.write_bytes(encode(rough(20, 30)))
    expected = prepare(rough(20, 30), preprocess)
    assert expected.shape == (12, 12, 3) and expected.flags.c_contiguous
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(prepare(source, preprocess), expected)


def test_the_given_array_stays_as_it_was(rough):
    picture = rough(20, 30)
    prepare(picture, Preprocess(resize=16, crop=12))
    np.testing.assert_array_equal(picture, rough(20, 30))


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"bad\.jpg: not a picture"):
        prepare(tmp_path / "bad.jpg", Preprocess(resize=16, crop=12))
    with pytest.raises(FileNotFoundError):
        prepare(tmp_path / "none.jpg", Preprocess(resize=16, crop=12))


@pytest.mark.parametrize(
    "array",
    [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)],
)
def test_a_wrong_array_says_what_is_expected(array):
    with pytest.raises(DataError, match=r"must be uint8 \(height, width, 3\)"):
        prepare(array, Preprocess(resize=16, crop=12))


def test_a_wrong_type_is_a_type_error():
    with pytest.raises(TypeError, match="path, bytes or a uint8 array"):
        prepare(3, Preprocess(resize=16, crop=12))


def test_shrinking_without_antialiasing_is_refused(rough):
    preprocess = Preprocess(resize=16, crop=12, antialias=False)
    with pytest.raises(DataError, match="without antialiasing"):
        working_picture(rough(20, 30), preprocess)
    assert working_picture(rough(16, 30), preprocess).shape == (16, 30, 3)


def test_undecodable_names_are_spelt_out():
    assert printable(b"caf\xe9.jpg".decode("utf-8", "surrogateescape")) == "caf\\udce9.jpg"
