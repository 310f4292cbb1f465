"""The summary: published counts, what moves while frozen, and a model left as it was."""

import pytest

import tinyft as ft
from tests.finetune.conftest import bits, small_learner
from tinyft.nn import build, summary
from tinyft.nn.layers import Linear, Sequential


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "giga_products"),
    [
        # torchvision 0.29.1's weights say "_ops" of products alone; fc and convolutions
        ("resnet18", 1.814),
        ("resnet50", 4.089),
        ("cifar_resnet20", 0.0408),  # without the 1x1 selections of its shortcuts
    ],
)
def test_flops_are_twice_the_published_products(arch, giga_products):
    found = build(arch).summary()
    assert found.flops / 2 == pytest.approx(giga_products * 1e9, rel=0.01)


def test_each_layer_has_its_output_and_its_parameters():
    rows = {(row.layer, row.op): row for row in ft.cifar_resnet20().summary().rows}
    conv = rows["layer2.0.conv1", "conv2d"]
    assert conv.shape == ("N", 16, 16, 32) and conv.parameters == 32 * 16 * 9
    assert conv.flops == 2 * 16 * 16 * 32 * 16 * 9
    assert rows["fc", "linear"].flops == 2 * 64 * 10
    assert sum(row.parameters for row in rows.values()) == ft.cifar_resnet20().count_parameters()


def test_another_size_of_picture():
    model = build("resnet10s")
    assert model.summary().rows[0].shape == ("N", 32, 32, 32)
    assert model.summary((128, 96, 3)).rows[0].shape == ("N", 64, 48, 32)


@pytest.mark.parametrize(
    ("bn", "expected"),
    [("fastai", "weights, statistics"), ("torch", "statistics"), ("frozen", "nothing")],
)
def test_it_says_what_moves_in_a_frozen_body(bn, expected):
    learner = small_learner(bn=bn)
    learner.freeze()
    found = learner.model.summary((24, 24, 3))
    moves = {row.layer: row.moves for row in found.rows if row.parameters}
    assert moves["layer1.0.conv1"] == "nothing"
    assert moves["layer1.0.bn1"] == expected
    assert moves["head.linear1"] == "weights"
    assert found.trainable == sum(
        p.size for _, p in learner.model.named_parameters() if p.requires_grad
    )


def test_the_model_is_left_as_it_was():
    learner = small_learner()
    learner.model.layer1.eval()  # a mode of its own
    before = bits(learner)
    learner.model.summary()
    assert bits(learner) == before
    assert learner.model.training and not learner.model.layer1.training


def test_a_module_without_a_known_input_lists_its_layers():
    module = Sequential(Linear(3, 4), Linear(4, 2))
    assert [(row.layer, row.op, row.parameters) for row in summary(module).rows] == [
        ("0", "Linear", 16),
        ("1", "Linear", 10),
    ]
    assert summary(module, (3,)).rows[1].shape == ("N", 2)
    assert str(summary(module)).splitlines()[-1] == "26 parameters in all, 26 of them train"
    assert str(module) == "Sequential, 26 parameters"


def test_float64_networks_have_a_summary_too():
    assert ft.cifar_resnet20().astype("float64").summary().flops > 0


def test_printing_a_network_prints_its_summary():
    model = ft.cifar_resnet20()
    title, header, *rows, total = str(model).splitlines()
    assert title == "ResNet" and header.startswith("layer ") and "FLOPs" in header
    assert len({len(row) for row in [header, *rows]}) == 1  # columns are aligned
    assert total.startswith("269,722 parameters in all, 269,722 of them train; 81.6 MFLOP ")
    assert total.endswith("forward for one input (32, 32, 3)")
    assert repr(model.summary()) == str(model.summary())
