"""Residual networks: the published figures, as code.

`forward` reads as the figure; the table at the end has one line an architecture. Names are
torchvision's, so a published file's `layer3.0.conv1.weight` is the parameter of that name here.

Sources: He et al., Deep residual learning for image recognition (2016); torchvision 0.29.1
`models/resnet.py`, which puts the stride of a bottleneck into its 3x3 convolution where the paper
has it in the first 1x1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tinyft.display import did_you_mean
from tinyft.engine.tensor import Tensor
from tinyft.nn.layer_table import Summary, summary
from tinyft.nn.layers import BatchNorm, Conv2d, Linear, Sequential, conv_norm, initialise
from tinyft.nn.module import Module
from tinyft.ops import conv2d, global_average_pool, max_pool2d


class BasicBlock(Module):
    """Two 3x3 convolutions and a shortcut: x (N, H, W, C) -> (N, H / stride, W / stride, F)."""

    expansion = 1

    def __init__(self, C: int, F: int, stride: int, shortcut: Module | None):
        super().__init__()
        self.conv1: Conv2d = Conv2d(C, F, 3, stride=stride, padding=1)
        self.bn1: BatchNorm = BatchNorm(F)
        self.conv2: Conv2d = Conv2d(F, F, 3, padding=1)
        self.bn2: BatchNorm = BatchNorm(F)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x) if self.downsample else x
        out = conv_norm(self.conv1, self.bn1, x, relu=True)
        return conv_norm(self.conv2, self.bn2, out, residual=shortcut, relu=True)


class Bottleneck(Module):
    """1x1 down to F channels, 3x3, 1x1 up to 4 F, and a shortcut: (N, H, W, C) -> (N, H / stride,
    W / stride, 4 F).
    """

    expansion = 4

    def __init__(self, C: int, F: int, stride: int, shortcut: Module | None):
        super().__init__()
        self.conv1: Conv2d = Conv2d(C, F, 1)
        self.bn1: BatchNorm = BatchNorm(F)
        # as torchvision: the stride is here
        self.conv2: Conv2d = Conv2d(F, F, 3, stride=stride, padding=1)
        self.bn2: BatchNorm = BatchNorm(F)
        self.conv3: Conv2d = Conv2d(F, F * self.expansion, 1)
        self.bn3: BatchNorm = BatchNorm(F * self.expansion)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x) if self.downsample else x
        out = conv_norm(self.conv1, self.bn1, x, relu=True)
        out = conv_norm(self.conv2, self.bn2, out, relu=True)
        return conv_norm(self.conv3, self.bn3, out, residual=shortcut, relu=True)


class PadShortcut(Module):
    """The paper's option A: every second pixel, and zeros for the channels that are missing, half
    on each side.

    Choosing pixels and placing channels is a 1x1 convolution whose weight is fixed, so it has no
    parameters.
    """

    constant_names: tuple[str, ...] = ("selection",)

    def __init__(self, C: int, F: int, stride: int):
        super().__init__()
        self.stride = stride
        chosen = np.eye(F, C, k=-((F - C) // 2), dtype=np.float32)
        self.selection: np.ndarray = chosen.reshape(F, C, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = Tensor.wrap(self.selection.astype(x.dtype, copy=False))
        return conv2d(x, weight, stride=self.stride)


def projection(C: int, F: int, stride: int) -> Module:
    """The paper's option B: a 1x1 convolution with batch norm."""
    return Sequential(Conv2d(C, F, 1, stride=stride), BatchNorm(F))


@dataclass(frozen=True)
class Architecture:
    """One line of the table: what makes one residual network differ from another."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, ...]  # blocks in each stage
    widths: tuple[int, ...] = (64, 128, 256, 512)  # F of each stage's blocks
    stem: tuple[int, int, bool] = (7, 2, True)  # first layer's kernel and stride; max-pool behind?
    shortcut: Callable[[int, int, int], Module] = projection
    side: int = 224  # of the pictures that it was published for, in pixels


class ResNet(Module):
    """A residual network for pictures (N, H, W, 3): stem, stages of blocks, then a classifier (N,
    num_classes).

    `fc` is the published classifier, behind a global average pool. Fine-tuning cuts it off and
    attaches a `head`, which pools for itself; a network that has neither returns its features.
    """

    def __init__(self, architecture: Architecture, num_classes: int = 1000):
        super().__init__()
        kernel, stride, has_pool = architecture.stem
        self.has_pool: bool = has_pool
        self.input_shape: tuple[int, int, int] = (architecture.side, architecture.side, 3)
        F = architecture.widths[0]
        self.conv1: Conv2d = Conv2d(3, F, kernel, stride=stride, padding=kernel // 2)
        self.bn1: BatchNorm = BatchNorm(F)
        self.stages: list[str] = []
        for i, depth in enumerate(architecture.depths):
            name, width = f"layer{i + 1}", architecture.widths[i]
            stage = self._stage(architecture, F, width, depth, stride=1 if i == 0 else 2)
            setattr(self, name, stage)
            self.stages.append(name)
            F = width * architecture.block.expansion
        self.num_features = F
        self.fc: Linear | None = Linear(F, num_classes)
        self.head: Module | None = None

    @staticmethod
    def _stage(
        architecture: Architecture, C: int, width: int, depth: int, stride: int
    ) -> Sequential:
        """`depth` blocks; the first changes the number of channels and, with stride 2, halves the
        picture.
        """
        F = width * architecture.block.expansion
        shortcut = architecture.shortcut(C, F, stride) if stride != 1 or C != F else None
        blocks = [architecture.block(C, width, stride, shortcut)]
        blocks += [architecture.block(F, width, 1, None) for _ in range(depth - 1)]
        return Sequential(*blocks)

    def features(self, x: Tensor) -> Tensor:
        """(N, H, W, 3) -> (N, H / 32, W / 32, num_features) for the ImageNet networks"""
        x = conv_norm(self.conv1, self.bn1, x, relu=True)  # (N, H/2, W/2, 64)
        if self.has_pool:
            x = max_pool2d(x, kernel=3, stride=2, padding=1)  # (N, H/4, W/4, 64)
        for name in self.stages:
            x = getattr(self, name)(x)  # halves H and W, doubles the channels, from layer2 on
        return x

    def summary(self, shape: tuple[int, ...] | None = None) -> Summary:
        """List what each layer makes of an input of `shape` (H, W, 3), its cost, what of it trains;
        see layer_table.py.
        """
        return summary(self, shape)

    def __str__(self) -> str:
        return f"{type(self).__name__}\n{self.summary()}"

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        if self.head:
            return self.head(features)
        if self.fc:
            return self.fc(global_average_pool(features))
        return features


_cifar = functools.partial(
    Architecture, BasicBlock, widths=(16, 32, 64), stem=(3, 1, False), shortcut=PadShortcut, side=32
)

ARCHITECTURES = {
    "resnet18": Architecture(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Architecture(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Architecture(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Architecture(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Architecture(Bottleneck, (3, 8, 36, 3)),
    "resnet10s": Architecture(
        BasicBlock, (1, 1, 1, 1), widths=(32, 64, 128, 256), stem=(3, 2, False), side=64
    ),
    "cifar_resnet20": _cifar(depths=(3, 3, 3)),
    "cifar_resnet32": _cifar(depths=(5, 5, 5)),
    "cifar_resnet44": _cifar(depths=(7, 7, 7)),
    "cifar_resnet56": _cifar(depths=(9, 9, 9)),
    "cifar_resnet110": _cifar(depths=(18, 18, 18)),
}


def build(arch: str, num_classes: int | None = None, seed: int | None = 0) -> ResNet:
    """The network called `arch`, with random weights drawn from `seed`.

    With seed=None convolutions and linear layers are zeros, to be loaded: drawing 11 million
    parameters takes longer than reading them. `num_classes` defaults to that of the published
    weights: 1000, for the CIFAR networks 10.
    Raises: ValueError for a name that is not in ARCHITECTURES
    """
    expect_architecture(arch)
    if num_classes is None:
        num_classes = 10 if arch.startswith("cifar") else 1000
    model = ResNet(ARCHITECTURES[arch], num_classes)
    if seed is not None:
        initialise(model, seed)
    return model


def stage_of(name: str) -> str:
    """The part of a ResNet that the parameter of that name is in: stem, layer1, ..., head."""
    first = name.split(".")[0]
    return "stem" if first in ("conv1", "bn1") else first


def expect_architecture(arch: str) -> None:
    """Raises: ValueError for a name that is not in ARCHITECTURES"""
    if arch not in ARCHITECTURES:
        known, meant = ", ".join(ARCHITECTURES), did_you_mean(str(arch), ARCHITECTURES)
        raise ValueError(f"architecture must be one of {known}; got {arch!r}{meant}")


class Builder(Protocol):
    """A function that builds one of the networks."""

    def __call__(self, num_classes: int | None = None, seed: int | None = 0) -> ResNet: ...


def _builder(arch: str) -> Builder:
    def make(num_classes: int | None = None, seed: int | None = 0) -> ResNet:
        return build(arch, num_classes, seed)

    make.__name__ = make.__qualname__ = arch
    make.__doc__ = f"The network {arch} with random weights drawn from `seed`; see `build`."
    return make


resnet18: Builder = _builder("resnet18")
resnet34: Builder = _builder("resnet34")
resnet50: Builder = _builder("resnet50")
resnet101: Builder = _builder("resnet101")
resnet152: Builder = _builder("resnet152")
cifar_resnet20: Builder = _builder("cifar_resnet20")
cifar_resnet32: Builder = _builder("cifar_resnet32")
cifar_resnet44: Builder = _builder("cifar_resnet44")
cifar_resnet56: Builder = _builder("cifar_resnet56")
cifar_resnet110: Builder = _builder("cifar_resnet110")
