"""What tells strangers from training pictures: kept with a learner, and only while it is true."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import pictures, small_data, small_learner
from tinyft.errors import DataError, WeightsError
from tinyft.finetune import known
from tinyft.weights import load_weights, save_weights


@pytest.fixture
def saved(tmp_path):
    learner = small_learner()
    learner.save(tmp_path / "a.h5")
    return tmp_path / "a.h5"


def test_a_training_picture_is_nearest_to_itself(saved):
    learner, (x, _) = ft.load_learner(saved), pictures()
    found = learner.predict(x[12:15])
    assert [each.nearest[0] for each in found] == ["train[12]", "train[13]", "train[14]"]
    features = learner.embed(x)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = np.sort(unit @ unit[12])[-3:].mean()
    assert found[0].similarity == pytest.approx(expected, abs=1e-3)
    assert small_learner().predict(x[0]).similarity is None


def test_the_threshold_flags_the_share_that_it_says(saved):
    learner, (x, _) = ft.load_learner(saved), pictures()
    seen = learner.answers.known
    assert seen.features.dtype == np.float16 and len(seen.files) == 24
    assert sum(each.unlike for each in learner.predict(x[:9])) == seen.flagged == 1
    assert seen.valid == 9


def test_a_stranger_is_unlike_them():
    rng = np.random.default_rng(0)
    near = np.eye(2, 8)[rng.integers(0, 2, 40)] + rng.normal(0, 0.05, (40, 8))
    seen = known.Known(
        known.of_length_1(near).astype(np.float16), [str(i) for i in range(40)], 0.9, 9, 0
    )
    like, unlike = seen.judge(np.stack([near[3], np.eye(8)[5]]))
    assert like["unlike"] is False and like["nearest"][0] == "3"
    assert unlike["unlike"] is True and unlike["similarity"] < 0.3


def test_it_is_forgotten_when_weights_change(saved):
    learner, (x, _) = ft.load_learner(saved), pictures()
    assert learner.predict(x[0]).nearest
    learner.model.conv1.weight.data *= 1.5
    assert learner.predict(x[0]).nearest is None


def test_saving_again_looks_at_no_picture_twice(saved, monkeypatch, tmp_path):
    learner = ft.load_learner(saved, data=small_data())
    learner.save(tmp_path / "b.h5")
    monkeypatch.setattr(known, "own_features", None)
    learner.save(tmp_path / "c.h5")
    assert ft.load_learner(tmp_path / "c.h5").answers.known.valid == 9


def test_what_validation_has_computed_is_not_computed_again(monkeypatch):
    learner = small_learner()
    learner.fine_tune(1)
    parts, own_features = [], known.own_features

    def noted(training, split, ids):
        parts.append(split)
        return own_features(training, split, ids)

    monkeypatch.setattr(known, "own_features", noted)
    seen = known.learn(learner)
    assert parts == ["train"]
    learner.answers.forget()
    again = known.learn(learner)
    assert parts == ["train", "train", "valid"]
    assert again.settings() == seen.settings() and np.array_equal(again.features, seen.features)

    learner.answers.known = None
    learner.evaluate()
    learner.data = small_data(size=16)  # other pictures than were validated
    known.learn(learner)
    learner.evaluate()
    learner.model.conv1.weight.data *= 1.5  # other weights
    known.learn(learner)
    assert parts[3:] == ["train", "valid"] * 2


def test_pictures_that_are_gone_are_no_reason_not_to_save(monkeypatch, tmp_path):
    learner = small_learner()

    def gone(*_):
        raise DataError("cat/1.png: it is gone")

    monkeypatch.setattr(known, "own_features", gone)
    with pytest.warns(UserWarning, match=r"cannot tell what is unlike .*: cat/1\.png: it is gone"):
        learner.save(tmp_path / "b.h5")
    assert ft.load_learner(tmp_path / "b.h5").answers.known is None


def test_older_files_are_read_and_damaged_ones_refused(saved):
    weights = load_weights(saved)
    settings = json.loads(weights.extra["learner"])
    old = {name: value for name, value in settings.items() if name != "known"}
    save_weights(saved, replace(weights, beside={}, extra={"learner": json.dumps(old)}))
    learner = ft.load_learner(saved)
    assert learner.answers.known is None and learner.predict(pictures()[0][0]).unlike is None
    save_weights(saved, replace(weights, beside={"known": weights.beside["known"][:5]}))
    with pytest.raises(WeightsError, match="features of 5 pictures and names 24"):
        ft.load_learner(saved)


def test_of_many_pictures_as_many_of_each_class_are_kept(monkeypatch):
    monkeypatch.setattr(known, "MOST", 12)
    labels = np.repeat([0, 1, 2], [100, 4, 50])
    chosen = known.evenly_chosen(np.arange(90, 154), labels, 0)
    assert np.bincount(labels[chosen]).tolist() == [4, 4, 4] and chosen.min() >= 90


def test_a_learner_without_validation_pictures_names_the_nearest_alone(tmp_path):
    x, y = pictures()
    data = ft.ImageArrays((x, y), (x[:0], y[:0]), size=24, batch_size=8)
    small_learner(data).save(tmp_path / "a.h5")
    found = ft.load_learner(tmp_path / "a.h5").predict(x[3])
    assert found.unlike is None and found.nearest[0] == "train[3]"
