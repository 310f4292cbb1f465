"""How a picture becomes numbers: validation and round trips."""

from __future__ import annotations

import json

import pytest

from tinyft.errors import WeightsError
from tinyft.weights import Preprocess


def test_round_trip_through_json():
    made = Preprocess(resize=235, crop=224, interpolation="bicubic", mean=(0.5, 0.5, 0.5))
    assert Preprocess.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_architectures_defaults_are_marked_as_assumed():
    imagenet = Preprocess.for_architecture("resnet50")
    assert (imagenet.resize, imagenet.crop, imagenet.assumed) == (256, 224, True)
    cifar = Preprocess.for_architecture("cifar_resnet20")
    assert (cifar.resize, cifar.crop, cifar.assumed) == (32, 32, True)
    assert cifar.mean == (0.485, 0.456, 0.406) and cifar.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("arch", "size", "resize"),
    [
        ("resnet18", 128, 146),
        ("resnet18", 90, 103),
        ("resnet18", 224, 256),
        ("cifar_resnet20", 64, 64),
    ],
)
def test_scaled_keeps_the_proportion(arch, size, resize):
    scaled = Preprocess.for_architecture(arch).scaled(size)
    assert (scaled.crop, scaled.resize) == (size, resize)


def test_a_size_whose_resize_would_be_too_large_is_refused():
    whole = Preprocess.for_architecture("resnet18")
    assert whole.scaled(3584).resize == 4096
    with pytest.raises(WeightsError, match="at most 3584 pixels here; got 3585"):
        whole.scaled(3585)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 300}, "crop is 300, expected at most resize, which is 256"),
        ({"resize": 0}, "resize is 0"),
        ({"resize": 256.0}, "whole number"),
        ({"interpolation": "nearest"}, "one of bilinear, bicubic"),
        ({"channel_order": "BGR"}, "one of RGB"),
        ({"mean": (1.0, 2.0)}, "three finite numbers"),
        ({"mean": (1.0, 2.0, float("nan"))}, "three finite numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "three numbers above 0"),
        ({"antialias": 1}, "true or false"),
    ],
)
def test_wrong_values_are_refused(change, message):
    with pytest.raises(WeightsError, match=message):
        Preprocess(**{"resize": 256, "crop": 224, **change})


def test_a_record_has_no_defaults():
    record = Preprocess(resize=256, crop=224).to_dict()
    del record["std"]
    with pytest.raises(WeightsError, match=r"missing \['std'\]"):
        Preprocess.from_dict(record)


def test_a_record_that_does_not_say_so_is_not_assumed():
    record = Preprocess(resize=256, crop=224).to_dict()
    del record["assumed"]
    assert not Preprocess.from_dict(record).assumed
