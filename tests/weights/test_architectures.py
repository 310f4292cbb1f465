"""Names and shapes of each architecture, and recognising one from them."""

from __future__ import annotations

import math

import pytest

from tinyft.errors import WeightsError
from tinyft.weights import ARCHITECTURES, expected_shapes, infer_architecture


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_architecture_is_recognised_from_its_shapes(arch):
    assert infer_architecture(expected_shapes(arch, 5)) == arch
    assert infer_architecture(expected_shapes(arch, None)) == arch


@pytest.mark.parametrize(  # as torchvision 0.29.1 states them
    ("arch", "parameters"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ],
)
def test_parameter_counts(arch, parameters):
    shapes = expected_shapes(arch, 1000)
    trained = [shape for name, shape in shapes.items() if "running" not in name]
    assert sum(map(math.prod, trained)) == parameters


def _resnext():
    shapes = expected_shapes("resnet50", 1000)
    return shapes | {"layer1.0.conv2.weight": (128, 4, 3, 3)}


def _wide():
    shapes = expected_shapes("resnet50", 1000)
    wide = {n: (128, *s[1:]) for n, s in shapes.items() if n.startswith("layer1.0.conv1")}
    return shapes | wide


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"conv1.0.weight": (32, 3, 3, 3)}, "stem of several convolutions"),
        ({"features.0.weight": (64, 3, 3, 3)}, "features.0.weight"),
        ({}, "no tensors"),
        (_resnext(), "ResNeXt"),
        (_wide(), r"bottleneck blocks \(3, 4, 6, 3\) of widths \(128"),
    ],
)
def test_relatives_are_refused_by_name(shapes, message):
    with pytest.raises(WeightsError, match=message):
        infer_architecture(shapes)


def test_unknown_name():
    with pytest.raises(WeightsError, match="choose one of resnet18, resnet34"):
        expected_shapes("resnet19", 10)
