"""Kernel calls computed by PyTorch from the same arrays: the other side of `--accuracy`. Imported
only if PyTorch is there.
"""

from __future__ import annotations

import torch
from numpy import ndarray as Array
from torch import Tensor, nn

from tinyft.bench.pytorch.side import LAYOUTS, convolution_gradients
from tinyft.inspection.trace.kernel_watch import KernelCall

aten = torch.ops.aten


class TorchKernels:
    """Kernels of our backends' names, arguments and results, in one of PyTorch's layouts."""

    def __init__(self, layout: str):
        self.memory = LAYOUTS[layout]

    def compute(self, call: KernelCall) -> list[Array]:
        """The results of the same call, in float32."""
        arguments, options, _ = call.arguments
        return getattr(self, call.kernel)(*arguments, **options)

    def conv2d(self, x, weight, bias, *, stride, padding, residual, relu):
        if bias is not None or residual is not None or relu:
            raise ValueError("only what a training step computes: neither bias, residual nor ReLU")
        found = nn.functional.conv2d(self._give(x), self._weight(weight), None, stride, padding)
        return [_take(found)]

    def conv2d_input_grad(self, dout, weight, x_shape, *, stride, padding):
        N, H, W, C = x_shape
        x = torch.empty(N, C, H, W).contiguous(memory_format=self.memory)  # its shape is asked for
        arrays = self._give(dout), x, self._weight(weight)
        return [_take(convolution_gradients(*arrays, stride, padding)[0])]

    def conv2d_weight_grad(self, dout, x, weight_shape, *, stride, padding):
        weight = torch.empty(weight_shape).contiguous(memory_format=self.memory)
        arrays = self._give(dout), self._give(x), weight
        return [convolution_gradients(*arrays, stride, padding)[1].numpy()]

    def batch_norm_train(self, x, weight, bias, eps, *, residual, relu):
        given = self._give(x), torch.from_numpy(weight), torch.from_numpy(bias)
        out = torch.native_batch_norm(*given, None, None, True, 0.1, eps)[0]
        if residual is not None:
            out = out + self._give(residual)
        return [_take(torch.relu(out) if relu else out)]

    def batch_norm_train_grad(self, dout, x, weight, mean, variance, eps, *, out, bias):
        arriving = self._give(dout)
        if out is not None:  # the same elements pass the ReLU on all sides
            arriving = torch.where(self._give(out) > 0, arriving, 0)
        inverse_std = (torch.from_numpy(variance) + eps).rsqrt()
        gradients = aten.native_batch_norm_backward(
            arriving, self._give(x), torch.from_numpy(weight), None, None,
            torch.from_numpy(mean), inverse_std, True, eps, [True] * 3,
        )  # fmt: skip
        return [_take(gradient) for gradient in gradients]

    def _give(self, array: Array) -> Tensor:
        """Pictures (N, H, W, C) as (N, C, H, W), rows as they are."""
        tensor = torch.from_numpy(array.copy())
        if array.ndim != 4:
            return tensor
        return tensor.permute(0, 3, 1, 2).contiguous(memory_format=self.memory)

    def _weight(self, array: Array) -> Tensor:
        return torch.from_numpy(array.copy()).contiguous(memory_format=self.memory)


def _take(tensor: Tensor) -> Array:
    """(N, C, H, W) as (N, H, W, C), all else as it is."""
    return (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).numpy()
