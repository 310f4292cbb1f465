"""Pictures in memory: what is accepted, what is refused and with which words."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tinyft.data import ImageArrays
from tinyft.errors import DataError
from tinyft.weights.preprocess import Preprocess

X, Y = np.zeros((6, 8, 8, 3), np.uint8), np.array([0, 1, 2, 0, 1, 2])


def test_names_and_counts():
    data = ImageArrays((X, Y), (X[:3], Y[:3]), batch_size=2)
    assert data.classes == ["0", "1", "2"] and data.num_classes == 3
    assert (data.n_train, data.n_valid, data.steps_per_epoch) == (6, 3, 3)
    assert data.files("valid") == ["valid[0]", "valid[1]", "valid[2]"]
    assert ImageArrays((X, Y), (X, Y), ["a", "b", "c"]).classes == ["a", "b", "c"]


def test_pictures_come_out_as_they_went_in(rough):
    pictures = np.stack([np.roll(rough(16, 16), i, axis=1) for i in range(6)])
    pictures.flags.writeable = False
    data = ImageArrays((pictures, Y), (pictures, Y), batch_size=4, shuffle=False, augment=None)
    batch = next(data.train_batches(0, Preprocess(resize=16, crop=16)))
    np.testing.assert_array_equal(batch.images, pictures[:4])
    assert batch.labels.tolist() == [0, 1, 2, 0] and batch.labels.dtype == np.int64
    assert batch.ids.tolist() == [0, 1, 2, 3] and batch.ids.dtype == np.int64


def test_the_given_arrays_stay_writable_and_unchanged(rough):
    pictures = np.stack([rough(16, 16)] * 6)
    data = ImageArrays((pictures, Y), (pictures, Y), batch_size=2)
    list(data.train_batches(0, Preprocess(resize=16, crop=16)))
    assert pictures.flags.writeable and (pictures == rough(16, 16)).all()


def test_any_integer_labels_will_do():
    data = ImageArrays((X, Y.astype(np.uint8)), (X, list(Y)), batch_size=2)
    assert data.labels["train"].dtype == data.labels["valid"].dtype == np.int64


@pytest.mark.parametrize(
    ("pictures", "labels", "message"),
    [
        (X.astype(np.float32), Y, r"must be uint8 .* got float32 \(6, 8, 8, 3\)"),
        (X[..., 0], Y, r"must be uint8 \(N, height, width, 3\)"),
        (X.transpose(0, 3, 1, 2), Y, r"got uint8 \(6, 3, 8, 8\)"),
        (X, Y[:5], r"6 integers, one for each picture; got int64 \(5,\)"),
        (X, Y / 1, "6 integers"),
        (X, Y - 1, "count from 0; the lowest is -1"),
        (X, Y * 0 - 1, "count from 0; the lowest is -1"),
        (X, [[0], [0, 1]], "labels are no array"),
        ([[1], [1, 2]], Y, r"must be uint8 .* got list"),
        (np.zeros((6, 2, 80, 3), np.uint8), Y, "more than 20 times"),
        (np.zeros((6, 0, 8, 3), np.uint8), Y, "no pixels"),
    ],
)
def test_wrong_arrays_say_what_is_expected(pictures, labels, message):
    with pytest.raises(DataError, match=message):
        ImageArrays((pictures, labels), (X[:0], Y[:0]), batch_size=2)


def test_validation_labels_must_be_known():
    with pytest.raises(DataError, match=r"valid labels must lie in 0\.\.2 .* the highest is 3"):
        ImageArrays((X, Y), (X[:1], np.array([3])), batch_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["a", "b", "a"]}, "'a' comes twice"),
        ({"classes": [10, 20, 30]}, r"classes must be names, as text; got 10: give str\(10\)"),
        ({"classes": ["a\0", "a", "b"]}, "a character that no file can keep"),
        ({"classes": ["\ud800", "a", "b"]}, "a character that no file can keep"),
        ({"augment": ["crop"]}, r"one of default, crop, shift, or None; got \['crop'\]"),
        ({"augment": 1.5}, "one of default"),
    ],
)
def test_wrong_options_say_what_is_expected(options, message):
    with pytest.raises(DataError, match=message):
        ImageArrays((X, Y), (X, Y), batch_size=2, **options)


def test_a_lone_array_is_no_pair():
    with pytest.raises(DataError, match="must be a pair"):
        ImageArrays(X, (X, Y))


def test_the_listing_tells_different_pictures_apart():
    described = ImageArrays((X, Y), (X, Y), batch_size=2).describe()
    json.dumps(described)
    again = ImageArrays((X, Y), (X, Y), **described["arguments"])
    assert again.describe() == described
    other = X.copy()
    other[5, 7, 7, 2] = 1
    assert ImageArrays((other, Y), (X, Y), batch_size=2).listing() != again.listing()
