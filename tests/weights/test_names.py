"""Names and shapes: finding the state dict, taking prefixes off, comparing with a network's, and
recognising one.
"""

from __future__ import annotations

import math

import pytest

from tinyft.errors import WeightsError
from tinyft.weights import (
    ARCHITECTURES,
    LoadReport,
    compare,
    expected_shapes,
    infer_architecture,
)
from tinyft.weights.names import find_state_dict, strip_prefixes, to_torchvision_names
from tinyft.weights.torch.tensors import Inert, Storage, StoredTensor

TENSOR = StoredTensor(Storage("Float", "0", 4), 0, (4,), (1,))
STATE = {"conv1.weight": TENSOR, "bn1.weight": TENSOR}


def test_a_bare_state_dict():
    assert find_state_dict(STATE).tensors == STATE


def test_a_nested_one_and_what_lies_beside_it():
    optimizer = {"state": {}, "param_groups": []}
    found = find_state_dict({"epoch": 89, "optimizer": optimizer, "model": {"state_dict": STATE}})
    assert found.tensors == STATE and found.ignored == ["epoch=89", "optimizer"]


def test_tensors_beside_a_nested_one_are_no_weights():
    """An accuracy and an epoch may be tensors, and then they are most of the checkpoint."""
    found = find_state_dict({"state_dict": STATE, "best_acc1": TENSOR, "epoch": TENSOR})
    assert found.tensors == STATE and found.ignored == ["best_acc1", "epoch"]


def test_of_several_the_first_of_the_order_is_taken():
    found = find_state_dict({"state_dict_ema": {}, "model": {}, "state_dict": STATE})
    assert found.tensors == STATE
    assert found.notes == ["several state dicts (state_dict, model, state_dict_ema): "
                           "state_dict was taken"]  # fmt: skip


def test_a_number_among_the_tensors_is_left_aside():
    assert find_state_dict({**STATE, "version": 3}).ignored == ["version=3"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "expected a dict of tensors, found list"),
        ({}, "its keys are none"),
        ({"best": TENSOR, "epoch": 3}, "its keys are 'best', 'epoch'"),  # half of them
        ({"weight_list": [TENSOR]}, "its keys are 'weight_list'"),
        ({**STATE, "odd": Inert("numpy.ndarray")}, "'odd' of the state dict is a numpy.ndarray"),
        ({**STATE, 5: TENSOR}, "the entry 5"),
        ({**STATE, "odd": {}}, "'odd' of the state dict is a dict"),
    ],
)
def test_no_state_dict(content, message):
    with pytest.raises(WeightsError, match=message):
        find_state_dict(content)


def test_a_dict_within_itself():
    content: dict = {}
    content["model"] = content
    with pytest.raises(WeightsError, match="within 5 levels"):
        find_state_dict(content)


@pytest.mark.parametrize(
    ("names", "prefix", "expected"),
    [
        (["module.a.w", "module.b.w"], "module.", ["a.w", "b.w"]),
        (["_orig_mod.module.a.w"], "_orig_mod.module.", ["a.w"]),
        (["n_averaged", "module.a.w"], "module.", ["n_averaged", "a.w"]),
        (["module.w", "conv.w"], "", ["module.w", "conv.w"]),
        (["backbone.a.w", "fc.w"], "", ["backbone.a.w", "fc.w"]),
    ],
)
def test_prefixes(names, prefix, expected):
    found, removed = strip_prefixes(dict.fromkeys(names, 1))
    assert list(found) == expected and removed == prefix


def test_counters_go_and_linear_becomes_fc():
    names = ["bn1.num_batches_tracked", "n_averaged", "linear.weight", "linear.bias", "a.linear.b"]
    found, notes = to_torchvision_names(dict.fromkeys(names, 1))
    assert list(found) == ["fc.weight", "fc.bias", "a.linear.b"] and len(notes) == 2


def test_compare_lists_three_kinds_of_fault():
    report = compare({"a": (1,), "b": (2, 3)}, {"b": (3, 2), "c": (1,)})
    assert report.missing == ["a"] and report.unexpected == ["c"] and not report.fits
    assert report.mismatched == ["b: expected (2, 3), found (3, 2)"]
    assert "missing from the file: a\nnot in the network: c\nof another shape: b:" in str(report)


def test_an_announced_difference_is_no_fault():
    expected = {"a": (1,), "fc.weight": (10, 4), "fc.bias": (10,)}
    report = compare(expected, {"a": (1,), "fc.weight": (5, 4)}, expect_different=("fc.",))
    assert report.fits
    assert str(report) == ("different, as expected: missing fc.bias, "
                           "reshaped fc.weight: expected (10, 4), found (5, 4)")  # fmt: skip


def test_a_long_list_is_cut_in_the_text_only():
    report = LoadReport(
        missing=[f"n{i}" for i in range(9)], ignored=["optimizer"], prefix="module."
    )
    assert "n4 and 4 more" in str(report) and "prefix taken off each name: module." in str(report)
    assert str(LoadReport()) == "every name and shape is as expected"


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
    with pytest.raises(WeightsError, match=r"choose one of resnet18, .*cifar_resnet110"):
        expected_shapes("resnet19", 10)
