"""Random weights to start from, drawn from a seed and the layer's name."""

from __future__ import annotations

import math
import os
import zlib
from concurrent.futures import ThreadPoolExecutor

from tinyft.nn.layers import Conv2d, Linear
from tinyft.nn.module import Module
from tinyft.seeds import generator


def initialise(model: Module, seed: int) -> None:
    """What torchvision gives a new ResNet: batch norms stay at 1 and 0.

    Convolutions: normal, variance 2 / fan-out (He et al., Delving deep into rectifiers, 2015).
    Linear layers: uniform within 1 / sqrt(fan-in), PyTorch's default.
    """

    def fill(name: str, layer: Module) -> None:
        draw = generator(seed, "initialise", zlib.crc32(name.encode()))
        if isinstance(layer, Conv2d):
            F, _, R, S = layer.weight.shape
            layer.weight.data[...] = draw.normal(0, math.sqrt(2 / (F * R * S)), layer.weight.shape)
        elif isinstance(layer, Linear):
            bound = 1 / math.sqrt(layer.weight.shape[1])
            layer.weight.data[...] = draw.uniform(-bound, bound, layer.weight.shape)
            if layer.bias is not None:
                layer.bias.data[...] = draw.uniform(-bound, bound, layer.bias.shape)

    # NumPy draws without the GIL, and each layer has a generator of its own.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, *zip(*model.named_modules(), strict=True)))


def initialise_head(head: Module, seed: int) -> None:
    """What fastai gives a new head: linear weights normal with variance 2 / fan-in, no bias.

    Source: fastai 2.8.12 `apply_init(head, kaiming_normal_)`. The gain is for a ReLU, also where
    none follows.
    """
    for name, layer in head.named_modules():
        if isinstance(layer, Linear):
            draw = generator(seed, "initialise", zlib.crc32(f"head.{name}".encode()))
            layer.weight.data[...] = draw.normal(
                0, math.sqrt(2 / layer.weight.shape[1]), layer.weight.shape
            )
            if layer.bias is not None:
                layer.bias.data[...] = 0
