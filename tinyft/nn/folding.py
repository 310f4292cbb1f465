"""Folding batch norms into convolutions, for evaluation: the same function with half the passes
over memory.

In evaluation a batch norm multiplies and shifts each channel by constants, which a convolution can
do by itself:

    norm(conv(x)) = conv(x) * scale + (bias - mean * scale),  scale = weight / sqrt(variance + eps)
"""

from __future__ import annotations

import copy
import itertools
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Generic, Self, TypeVar

import numpy as np

from tinyft import backends
from tinyft.engine.tensor import Tensor
from tinyft.nn.layer_table import halves
from tinyft.nn.layers import BatchNorm, Conv2d, Folded, Sequential, parameter
from tinyft.nn.module import Module
from tinyft.nn.resnet import BasicBlock, Bottleneck, ResNet

IN_ORDER = (Sequential, BasicBlock, Bottleneck, ResNet)  # in which a norm runs behind its neighbour
Network = TypeVar("Network", bound=Module)


class FoldedNetwork(Module, Generic[Network]):
    """A network whose batch norms are folded. It cannot be trained."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network
        super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise ValueError(
                "a folded network has no batch norms left to train; train the original"
            )
        return super().train(False)


def fold(network: Network, *, mirrored: bool = False) -> FoldedNetwork[Network]:
    """A copy of `network` for evaluation, with batch norms of the body folded into the convolution
    before them, whose weight then never changes. A head, which may be anybody's, stays as it is. No
    parameter requires a gradient.

    Before it means: registered right before it in a module of IN_ORDER, which runs them so. In
    others, whose forward may do anything, and where a convolution stands in two places, they stay
    as they are.

    With `mirrored` the copy's `features` are means of those of a picture and of its mirror image.
    """
    network = copy.deepcopy(network)
    used = Counter(module for _, module in network.named_modules())
    for path, module in network.named_modules():
        if path.split(".")[0] == "head" or type(module) not in IN_ORDER:
            continue
        children = list(module._children.items())
        for (_, first), (name, second) in itertools.pairwise(children):
            if not (isinstance(first, Conv2d) and isinstance(second, BatchNorm)):
                continue
            changed = "forward" in vars(first) | vars(second)  # see inspection/trace/activations.py
            if used[first] == 1 and not changed:  # or its other norm would be lost
                _fold_pair(first, second)
                setattr(module, name, Folded())
    for _, weights in network.named_parameters():
        weights.requires_grad = False
    if mirrored:
        body, _ = halves(network)
        vars(network)["features"] = _mirrored(body)
    return FoldedNetwork(network)


def _mirrored(features: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The mean of what `features` says of each place in a picture and in its mirror image. A linear
    head makes of it the mean of both pictures' logits.
    """

    def mirror(x: Tensor) -> Tensor:  # (N, H, W, C)
        return Tensor.wrap(x.data[:, :, ::-1].copy())

    return lambda x: (features(x) + mirror(features(mirror(x)))) * 0.5


def _fold_pair(conv: Conv2d, norm: BatchNorm) -> None:
    """In float64, rounded once, so that folding costs as little precision as it can."""
    variance = norm.running_var.astype(np.float64)
    scale = norm.weight.data / (variance + norm.eps) ** 0.5  # (F,)
    own = 0 if conv.bias is None else conv.bias.data
    shift = norm.bias.data + (own - norm.running_mean) * scale
    scaled = (conv.weight.data * scale.reshape(-1, 1, 1, 1)).astype(conv.weight.dtype)
    conv.bias = parameter(shift.astype(scaled.dtype))
    conv.weight = Tensor.wrap(conv.weight.backend.constant(scaled))  # another layer may share it


# -------------------------------------------------------------------- is a folded copy still right?

# A sum of 8-byte words for each of so many columns: 3 ms for the 45 MB of a ResNet-18, where CRC-32
# of all takes 12 and BLAKE2b 40. The number is prime, so filters, channels or places of a kernel
# that change places, which are powers of two apart, come to lie in other columns.
COLUMNS = 1021
PASSING = ("training", "step", "statistics", "updates")  # attributes that evaluation does not read


def fingerprint(network: Module) -> int:
    """A number that is another one after any change of what `fold` copies: of each parameter and
    buffer, wherever it came from (an optimizer, a file, a caller who wrote into `.data`), of a
    module, or of its settings. Only a change made to deceive it can go unnoticed.
    """
    checksum = 0
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if name in PASSING:
                continue
            value = value.data if isinstance(value, Tensor) else value
            if hasattr(value, "dtype"):
                said = f"{value.dtype.str} {value.shape} {value.strides}"
                checksum = _sums(value, checksum)
            else:
                plain = isinstance(value, str | int | float | tuple | list | None)
                said = repr(value) if plain else str(id(getattr(value, "__func__", value)))
            checksum = zlib.crc32(f"{path}.{name} {said}".encode(), checksum)
    return checksum


def _sums(array: np.ndarray, start: int) -> int:
    """CRC-32 of an array's column sums, going on from `start`; a small array's of all its bytes."""
    array = backends.host(array)
    row = array.ravel(order="K").view(np.uint8)  # as it lies in memory
    words = row[: row.size // (8 * COLUMNS) * 8 * COLUMNS].view(np.uint64)
    if words.size:
        start = zlib.crc32(np.add.reduce(words.reshape(-1, COLUMNS), axis=0).data, start)
    return zlib.crc32(row[words.nbytes :].data, start)
