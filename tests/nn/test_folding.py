"""Folding: the same function in evaluation, nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from tinyft import nn
from tinyft.engine.tensor import Tensor
from tinyft.nn.layers import BatchNorm

DRAW = np.random.default_rng(0)


def with_random_statistics(network):
    for _, layer in network.named_modules():
        if isinstance(layer, BatchNorm):
            C = len(layer.running_mean)
            layer.weight.data[:] = DRAW.uniform(0.5, 2, C)
            layer.bias.data[:] = DRAW.normal(size=C)
            layer.running_mean = DRAW.normal(size=C).astype(np.float32)
            layer.running_var = DRAW.uniform(0.5, 2, C).astype(np.float32)
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "cifar_resnet20", "resnet10s"])
def test_a_folded_network_is_the_same_function(arch):
    network = with_random_statistics(nn.build(arch, 7, seed=1))
    before = {name: array.copy() for name, array in network.state_dict().items()}
    x = Tensor(DRAW.normal(size=(2, 40, 40, 3)).astype(np.float32))
    expected = network(x).data
    folded = nn.fold(network)
    np.testing.assert_allclose(folded(x).data, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())
    for name, array in network.state_dict().items():  # the original is untouched
        np.testing.assert_array_equal(array, before[name])


def test_weights_are_rounded_once():
    network = nn.build("cifar_resnet20").eval()
    draw, norm = np.random.default_rng(0), network.bn1
    norm.running_var[...] = draw.uniform(0.1, 9, 16)
    norm.weight.data[...] = draw.standard_normal(16)
    scale = norm.weight.data / np.sqrt(norm.running_var.astype(np.float64) + norm.eps)
    exact = network.conv1.weight.data * scale[:, None, None, None]
    folded = nn.fold(network).network.conv1.weight.data
    np.testing.assert_array_equal(folded, exact.astype(np.float32))


@pytest.mark.parametrize("shared", ["weight", "layer"])
def test_what_two_places_share_is_folded_for_each_or_not_at_all(shared):
    network = with_random_statistics(nn.build("cifar_resnet20", 7, seed=1))
    first, second = (getattr(network.layer1, number) for number in "01")
    if shared == "weight":
        second.conv1.weight = first.conv1.weight
    else:
        second.conv1 = first.conv1
    x = Tensor(DRAW.normal(size=(2, 16, 16, 3)).astype(np.float32))
    expected = network(x).data
    folded = nn.fold(network)(x).data
    np.testing.assert_allclose(folded, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


def test_a_convolutions_own_bias_is_kept():
    pair = with_random_statistics(nn.Sequential(nn.Conv2d(3, 4, 1, bias=True), nn.BatchNorm(4)))
    getattr(pair, "0").weight.data[:] = DRAW.normal(size=(4, 3, 1, 1))
    getattr(pair, "0").bias.data[:] = DRAW.normal(size=4)
    x = Tensor(DRAW.normal(size=(2, 5, 5, 3)).astype(np.float32))
    np.testing.assert_allclose(nn.fold(pair)(x).data, pair(x).data, rtol=1e-5, atol=1e-5)


def test_a_norms_own_eps_is_folded():
    pair = with_random_statistics(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm(4, eps=0.5)))
    getattr(pair, "0").weight.data[:] = DRAW.normal(size=(4, 3, 1, 1))
    x = Tensor(DRAW.normal(size=(2, 5, 5, 3)).astype(np.float32))
    np.testing.assert_allclose(nn.fold(pair)(x).data, pair(x).data, rtol=1e-5, atol=1e-5)


def test_a_head_of_the_callers_own_is_left_alone():
    class Head(nn.Module):
        """Uses its batch norm before its convolution, although it is registered behind it."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(64, 4, 1)
            self.norm = nn.BatchNorm(64)

        def forward(self, x):
            from tinyft.ops import global_average_pool

            return global_average_pool(self.conv(self.norm(x, relu=True)))

    network = nn.attach(nn.cut(nn.build("cifar_resnet20", seed=1)), Head())
    network.head.conv.weight.data[:] = DRAW.normal(size=(4, 64, 1, 1))
    with_random_statistics(network)
    x = Tensor(DRAW.normal(size=(2, 24, 24, 3)).astype(np.float32))
    np.testing.assert_allclose(nn.fold(network)(x).data, network(x).data, rtol=1e-3, atol=1e-3)


def test_a_folded_network_refuses_to_train():
    folded = nn.fold(nn.build("cifar_resnet20"))
    assert not any(parameter.requires_grad for _, parameter in folded.named_parameters())
    with pytest.raises(ValueError, match="train the original"):
        nn.fold(nn.build("cifar_resnet20")).train()
