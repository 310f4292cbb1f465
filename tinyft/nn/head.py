"""Cutting off a pretrained network's classifier, and the random head that takes its place."""

from __future__ import annotations

from tinyft.engine.tensor import Tensor
from tinyft.nn.layers import BatchNorm, Dropout, Linear, initialise_head
from tinyft.nn.module import Module
from tinyft.nn.resnet import ResNet
from tinyft.ops import concatenate, global_average_pool, global_max_pool, relu


class FastaiHead(Module):
    """fastai's head: both pools, then two linear layers. Features (N, H, W, C) -> logits (N,
    num_classes)

    Source: fastai 2.8.12 `create_head`: max pool first, batch norms start at bias 0.001, half the
    dropout before the first linear layer, no linear biases.
    """

    last = "linear2"  # the layer that has a row for each class

    def __init__(self, C: int, num_classes: int, *, dropout: float = 0.5, seed: int = 0):
        super().__init__()
        hidden = 512
        self.bn1: BatchNorm = BatchNorm(2 * C)
        self.dropout1: Dropout = Dropout(dropout / 2, seed=seed, layer=1)
        self.linear1: Linear = Linear(2 * C, hidden, bias=False)
        self.bn2: BatchNorm = BatchNorm(hidden)
        self.dropout2: Dropout = Dropout(dropout, seed=seed, layer=2)
        self.linear2: Linear = Linear(hidden, num_classes, bias=False)
        for norm in (self.bn1, self.bn2):
            norm.bias.data[...] = 0.001
        initialise_head(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        x = concatenate(global_max_pool(x), global_average_pool(x))  # (N, 2 C)
        x = self.linear1(self.dropout1(self.bn1(x)))  # (N, 512)
        x = self.bn2(relu(x))
        return self.linear2(self.dropout2(x))  # (N, num_classes)


class LinearHead(Module):
    """The published classifier, anew: average pool, one linear layer.

    Features (N, H, W, C) -> logits (N, num_classes)
    """

    last = "linear"

    def __init__(self, C: int, num_classes: int, *, seed: int = 0):
        super().__init__()
        self.linear: Linear = Linear(C, num_classes)
        initialise_head(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(global_average_pool(x))


HEADS: dict[str, type[FastaiHead] | type[LinearHead]] = {"fastai": FastaiHead, "linear": LinearHead}


def cut(network: ResNet) -> ResNet:
    """Remove the classifier: the network then returns its features (N, H, W, num_features)."""
    network.fc = None
    network.head = None
    return network


def attach(body: ResNet, head: Module) -> ResNet:
    """Put a head onto a body that was cut."""
    body.head = head
    return body
