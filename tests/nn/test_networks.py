"""Networks: published sizes, names, memory order, modes."""

from __future__ import annotations

import numpy as np
import pytest

import tinyft as ft
from tinyft import nn
from tinyft.engine.tensor import Tensor
from tinyft.errors import WeightsError


@pytest.mark.parametrize(  # torchvision 0.29.1; He et al. 2016, table 6
    ("arch", "parameters"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        pytest.param("resnet101", 44_549_160, marks=pytest.mark.slow),
        pytest.param("resnet152", 60_192_808, marks=pytest.mark.slow),
        ("cifar_resnet20", 269_722),
        ("cifar_resnet32", 464_154),
        ("cifar_resnet44", 658_586),
        ("cifar_resnet56", 853_018),
        ("cifar_resnet110", 1_727_962),
    ],
)
def test_parameter_totals_are_the_published_ones(arch, parameters):
    assert nn.build(arch).count_parameters() == parameters


def test_names_are_torchvisions():
    names = list(ft.resnet50().state_dict())
    assert names[:5] == [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "bn1.running_mean",
        "bn1.running_var",
    ]
    assert "layer1.0.downsample.0.weight" in names and "layer4.2.bn3.running_var" in names
    assert names[-2:] == ["fc.weight", "fc.bias"]


def test_convolution_weights_lie_in_the_order_of_the_kernels():
    weight = nn.Conv2d(3, 8, 5).weight.data
    assert weight.shape == (8, 3, 5, 5)
    assert weight.transpose(2, 3, 1, 0).flags.c_contiguous


class Scaled(nn.Module):
    """What is assigned, and what is a parameter of it."""

    def __init__(self):
        super().__init__()
        self.scale = Tensor([2.0], requires_grad=True)
        self.mean = Tensor([0.5])

    def forward(self, x):
        self.shown = (x - self.mean) * self.scale
        return self.shown


def parameters(module):
    return [name for name, _ in module.named_parameters()]


def test_a_tensor_that_requires_a_gradient_is_a_parameter_and_no_other():
    module = Scaled()
    module(Tensor([1.0], requires_grad=True)).backward()
    assert parameters(module) == list(module.state_dict()) == ["scale"]
    assert module.count_parameters() == 1
    assert module.astype("float64").mean.dtype == np.float32  # a constant is nobody's business


def test_a_layer_under_two_names_trains_once_and_is_saved_under_both():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module.last = getattr(module, "0")
    assert parameters(module) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert module.count_parameters() == 2 * 6
    assert {"0.weight", "last.weight"} <= set(module.state_dict())


def test_another_float_type_is_for_floats_alone():
    module = Scaled()
    module.order, module.buffer_names = np.array([2, 0, 1]), ("order",)
    module.scale.grad = np.ones(module.scale.shape, np.float32)
    assert module.astype("float64").order.dtype == np.int64
    assert module.scale.dtype == np.float64
    assert module.scale.grad is None


def test_another_leaf_takes_a_parameters_place_and_anything_else_ends_it():
    module = nn.Sequential(nn.Linear(2, 3))
    layer = getattr(module, "0")
    layer.weight = Tensor(np.ones((3, 2)))  # frozen
    assert parameters(module) == ["0.weight", "0.bias"]
    layer.weight = layer.bias = None
    assert parameters(module) == list(module.state_dict()) == []
    layer.bias = Tensor(np.zeros(3), requires_grad=True)
    assert parameters(module) == ["0.bias"]
    layer.bias = layer.bias * 2  # computed from others, as in weight normalisation
    assert parameters(module) == []
    layer.bias = Tensor(np.zeros(3), requires_grad=True)
    del layer.bias
    assert parameters(module) == [] and not hasattr(layer, "bias")
    with pytest.raises(AttributeError):
        del layer.bias
    setattr(module, "0", 3)
    assert [name for name, _ in module.named_modules()] == [""]


def test_a_convolution_without_its_bias_computes_and_is_saved():
    conv = nn.Conv2d(1, 2, 3, bias=True)
    conv.bias = None
    assert list(conv.state_dict()) == ["weight"]
    assert conv.count_parameters() == 18
    assert conv(Tensor(np.zeros((1, 3, 3, 1), np.float32))).shape == (1, 1, 1, 2)


def test_the_shortcut_without_weights_takes_every_second_pixel():
    shortcut = getattr(nn.build("cifar_resnet20").layer2, "0").downsample
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 16)).astype(np.float32)
    out = shortcut(Tensor(x)).data
    np.testing.assert_array_equal(out[..., 8:24], x[:, ::2, ::2])
    assert not out[..., :8].any() and not out[..., 24:].any()


def test_running_statistics_follow_pytorchs_rule():
    norm = nn.BatchNorm(3)
    x = np.random.default_rng(0).normal(2, 3, size=(4, 2, 2, 3)).astype(np.float32)
    norm(Tensor(x))
    rows = x.reshape(-1, 3)
    np.testing.assert_allclose(norm.running_mean, 0.1 * rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.running_var, 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-5)
    before = norm.running_mean
    norm.eval()(Tensor(x))
    norm.train().updates = False
    norm(Tensor(x))
    assert norm.running_mean is before


def test_wrong_arrays_are_all_listed_and_change_nothing():
    network = ft.cifar_resnet20(seed=1)
    state = {name: array.copy() for name, array in network.state_dict().items()}
    wrong = {**state, "extra": state["bn1.bias"], "fc.weight": state["fc.weight"].T}
    wrong["fc.bias"] = Tensor(state["fc.bias"])
    wrong["bn1.bias"] = np.array(["a"] * 16)
    wrong["bn1.running_mean"] = [0.0] * 16
    del wrong["bn1.weight"]
    with pytest.raises(WeightsError) as error:
        network.load_state_dict(wrong)
    for part in (
        "missing: bn1.weight",
        "unexpected: extra",
        "fc.weight: expected (10, 64)",
        "fc.bias: expected an array, got a Tensor",
        "bn1.bias: expected an array of numbers, got <U1",
        "bn1.running_mean: expected an array of numbers, got list",
    ):
        assert part in str(error.value)
    for name, array in network.state_dict().items():
        np.testing.assert_array_equal(array, state[name])


def test_a_part_of_the_arrays_may_be_loaded():
    network, other = ft.cifar_resnet20(seed=1), ft.cifar_resnet20(seed=2)
    body = {n: a for n, a in other.state_dict().items() if not n.startswith("fc.")}
    head = network.fc.weight.data.copy()
    network.load_state_dict({**body, "extra": head}, strict=False)
    np.testing.assert_array_equal(network.conv1.weight.data, other.conv1.weight.data)
    np.testing.assert_array_equal(network.fc.weight.data, head)


def test_each_layer_is_drawn_for_itself():
    first, again, other = (ft.cifar_resnet20(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["conv1.weight"] != other["conv1.weight"]).any()
    more_classes = nn.build("cifar_resnet20", 100, seed=1).state_dict()
    np.testing.assert_array_equal(more_classes["conv1.weight"], first["conv1.weight"])


def test_without_a_seed_nothing_is_drawn():
    bare, drawn = (nn.build("cifar_resnet20", seed=seed) for seed in (None, 1))
    assert not any(bare.state_dict()[name].any() for name in ("conv1.weight", "fc.weight"))
    bare.load_state_dict(drawn.state_dict())
    for name, array in bare.state_dict().items():
        np.testing.assert_array_equal(array, drawn.state_dict()[name])


def test_a_new_convolution_has_torchvisions_spread():
    """Of 64 to 128 channels: variance 2 / fan-out, which is half of 2 / fan-in here."""
    weight = ft.resnet18(seed=0).state_dict()["layer2.0.conv1.weight"]
    assert weight.shape[:2] == (128, 64)
    assert weight.std() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(("C", "std"), [(512, 0.0442), (2048, 0.0221)])
def test_a_new_head_has_fastais_spread(C, std):
    head = nn.FastaiHead(C, 10)
    assert head.linear1.weight.data.std() == pytest.approx(std, rel=0.01)
    assert head.linear2.weight.data.std() == pytest.approx(0.0625, rel=0.05)
    assert (head.bn1.bias.data == np.float32(0.001)).all()
    assert head.linear1.bias is None and head.linear2.bias is None
