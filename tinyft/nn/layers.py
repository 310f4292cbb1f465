"""The layers of a residual network, each an op with the parameters that it needs, and the random
weights that they start from.
"""

from __future__ import annotations

import math
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tinyft import backends, ops
from tinyft.engine.tensor import Tensor
from tinyft.nn.module import Module
from tinyft.seeds import generator


def parameter(array: np.ndarray) -> Tensor:
    """A trainable Tensor around `array`."""
    tensor = Tensor.wrap(array)
    tensor.requires_grad = True
    return tensor


class Conv2d(Module):
    """A convolution: x (N, H, W, C) -> (N, P, Q, F), weight (F, C, R, R).

    In memory the weight is ordered (R, R, C, F), as the kernels read it; what is shown is a
    transposed view.
    """

    def __init__(
        self, C: int, F: int, kernel: int, *, stride: int = 1, padding: int = 0, bias: bool = False
    ):
        super().__init__()
        self.stride = stride
        self.padding = padding
        weight = np.zeros((kernel, kernel, C, F), np.float32).transpose(3, 2, 0, 1)
        self.weight: Tensor = parameter(weight)
        self.bias: Tensor | None = parameter(np.zeros(F, np.float32)) if bias else None

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        window = {"stride": self.stride, "padding": self.padding}
        return ops.conv2d(x, self.weight, self.bias, residual=residual, relu=relu, **window)


class Linear(Module):
    """x (N, C) -> (N, F): x @ weight.T + bias, weight (F, C)."""

    def __init__(self, C: int, F: int, *, bias: bool = True):
        super().__init__()
        self.weight: Tensor = parameter(np.zeros((F, C), np.float32))
        self.bias: Tensor | None = parameter(np.zeros(F, np.float32)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


class BatchNorm(Module):
    """Batch normalisation of (N, H, W, C) or (N, C), followed by an optional sum and ReLU.

    In training, `statistics` says what normalises ("batch", or "running" as in evaluation) and
    `updates` whether the running statistics move. They are settings of the layer and outlast
    `train()` and `eval()`.

    The running variance is updated with the unbiased variance of the batch, although the biased
    one normalises, as in PyTorch; `momentum` is the weight of the new value.
    """

    buffer_names: tuple[str, ...] = ("running_mean", "running_var")

    def __init__(self, C: int, *, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.statistics: str = "batch"
        self.updates: bool = True
        self.weight: Tensor = parameter(np.ones(C, np.float32))
        self.bias: Tensor = parameter(np.zeros(C, np.float32))
        self.running_mean: np.ndarray = np.zeros(C, np.float32)
        self.running_var: np.ndarray = np.ones(C, np.float32)

    @property
    def statistics_move(self) -> bool:
        """True if a training step moves the running statistics."""
        return self.statistics == "batch" and self.updates

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        options: dict[str, Any] = {"eps": self.eps, "residual": residual, "relu": relu}
        if not self.training or self.statistics == "running":
            running = self.running_mean, self.running_var
            return ops.batch_norm_eval(x, self.weight, self.bias, *running, **options)
        out, mean, variance = ops.batch_norm(x, self.weight, self.bias, **options)
        if self.updates:
            self._update(mean.data, variance.data, count=x.size // x.shape[-1])
        return out

    def _update(self, mean: np.ndarray, variance: np.ndarray, count: int) -> None:
        """Move the running statistics towards the batch's: new arrays, since a node may keep the
        old ones.
        """
        keep, unbias = 1 - self.momentum, count / (count - 1)
        move = backends.of(mean).running_average
        self.running_mean = move(self.running_mean, mean, keep, self.momentum)
        self.running_var = move(self.running_var, variance, keep, self.momentum * unbias)


class Dropout(Module):
    """Zeroes each element with `probability` in training. The mask depends on (seed, step, layer)
    alone.

    The step counts up by itself; a learner sets it, so that any step can be made again. Two layers
    of one seed and one `layer` draw the same masks, so number them; a learner does.
    Raises: ValueError unless 0 <= probability < 1
    """

    def __init__(self, probability: float, *, seed: int = 0, layer: int = 0):
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"a dropout probability is at least 0 and below 1; got {probability}")
        self.probability = probability
        self.seed = seed
        self.layer = layer
        self.step: int = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        self.step += 1
        return ops.dropout(x, self.probability, seed=self.seed, stream=(self.step - 1, self.layer))


class Sequential(Module):
    """Modules one after the other, called 0, 1, 2, ..."""

    def __init__(self, *modules: Module):
        super().__init__()
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def forward(self, x: Tensor) -> Tensor:
        for module in self._children.values():
            x = module(x)
        return x


class Folded(Module):
    """Takes the place of a batch norm that was folded into the convolution before it; see
    folding.py.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x


def conv_norm(
    conv: Conv2d,
    norm: BatchNorm | Folded,
    x: Tensor,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """relu(norm(conv(x)) + residual): what a residual network consists of."""
    if isinstance(norm, Folded):
        return conv(x, residual=residual, relu=relu)
    return norm(conv(x), residual=residual, relu=relu)


# ---------------------------------------------------------------------------------- random weights


def initialise(model: Module, seed: int) -> None:
    """Draw what torchvision gives a new ResNet, by seed and layer name. Batch norms stay at 1
    and 0.

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
    """Draw what fastai gives a new head: linear weights normal, variance 2 / fan-in; biases 0.

    Source: fastai 2.8.12 `apply_init(head, kaiming_normal_)`. The gain is for a ReLU, also where
    none follows.
    """
    for name, layer in head.named_modules():
        if isinstance(layer, Linear):
            draw = generator(seed, "initialise", zlib.crc32(f"head.{name}".encode()))
            spread = math.sqrt(2 / layer.weight.shape[1])
            layer.weight.data[...] = draw.normal(0, spread, layer.weight.shape)
            if layer.bias is not None:
                layer.bias.data[...] = 0
