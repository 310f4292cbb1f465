"""The layers of a residual network, each an op with the parameters that it needs."""

from __future__ import annotations

import numpy as np

from tinyft import backends, ops
from tinyft.engine.tensor import Tensor
from tinyft.nn.module import Module
from tinyft.ops.dropout import dropout
from tinyft.ops.linear import linear


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
        self.stride, self.padding = stride, padding
        self.weight = parameter(np.zeros((kernel, kernel, C, F), np.float32).transpose(3, 2, 0, 1))
        self.bias = parameter(np.zeros(F, np.float32)) if bias else None

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        return ops.conv2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            residual=residual,
            relu=relu,
        )


class Linear(Module):
    """x (N, C) -> (N, F): x @ weight.T + bias, weight (F, C)."""

    def __init__(self, C: int, F: int, *, bias: bool = True):
        super().__init__()
        self.weight = parameter(np.zeros((F, C), np.float32))
        self.bias = parameter(np.zeros(F, np.float32)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class BatchNorm(Module):
    """Batch normalisation of (N, H, W, C) or (N, C), followed by an optional sum and ReLU.

    In training, `statistics` says what normalises ("batch", or "running" as in evaluation) and
    `updates` whether the running statistics move. They are settings of the layer and outlast
    `train()` and `eval()`.

    The running variance is updated with the unbiased variance of the batch, although the biased
    one normalises, as in PyTorch; `momentum` is the weight of the new value.
    """

    buffer_names = ("running_mean", "running_var")

    def __init__(self, C: int, *, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.statistics, self.updates = "batch", True
        self.weight = parameter(np.ones(C, np.float32))
        self.bias = parameter(np.zeros(C, np.float32))
        self.running_mean = np.zeros(C, np.float32)
        self.running_var = np.ones(C, np.float32)

    @property
    def statistics_move(self) -> bool:
        """Whether a training step moves the running statistics."""
        return self.statistics == "batch" and self.updates

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        options = {"eps": self.eps, "residual": residual, "relu": relu}
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
        self.probability, self.seed, self.layer, self.step = probability, seed, layer, 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        self.step += 1
        return dropout(x, self.probability, seed=self.seed, stream=(self.step - 1, self.layer))


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
    """What stands where a batch norm was folded into the convolution before it; see fold.py."""

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
