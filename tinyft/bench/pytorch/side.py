"""The sides of another library in `tinyft bench`: PyTorch. Imported only if it is there.

The network is written as torchvision writes it, with a copy of our weights, so that all sides
compute the same.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tinyft.bench.cases import LR, MOMENTUM, Case, Side, batch
from tinyft.nn import layers
from tinyft.nn.module import Module
from tinyft.nn.resnet import PadShortcut, ResNet, build

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def _copied(array: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.array(array, order="C")))


def _pair(conv: layers.Conv2d, norm: layers.BatchNorm, folded: bool) -> nn.Module:
    """A convolution and its batch norm, or one convolution that does both."""
    F, C, R, _ = conv.weight.shape
    convolution = nn.Conv2d(C, F, R, conv.stride, conv.padding, bias=False)
    convolution.weight = _copied(conv.weight.data)
    batch_norm = copied_norm(norm, nn.BatchNorm2d)
    if folded:
        return fuse_conv_bn_eval(convolution.eval(), batch_norm.eval())
    return nn.Sequential(convolution, batch_norm)


def copied_norm(norm: layers.BatchNorm, kind: type[nn.Module]) -> nn.Module:
    """A batch norm of PyTorch's with a copy of our parameters and running statistics."""
    copy = kind(len(norm.weight.data), eps=norm.eps, momentum=norm.momentum)
    copy.weight, copy.bias = _copied(norm.weight.data), _copied(norm.bias.data)
    copy.running_mean = torch.from_numpy(norm.running_mean.copy())
    copy.running_var = torch.from_numpy(norm.running_var.copy())
    return copy


def copied_linear(linear: layers.Linear) -> nn.Linear:
    """A linear layer of PyTorch's with a copy of our parameters."""
    copy = nn.Linear(*reversed(linear.weight.shape), bias=linear.bias is not None)
    copy.weight = _copied(linear.weight.data)
    if linear.bias is not None:
        copy.bias = _copied(linear.bias.data)
    return copy


class Pad(nn.Module):
    """Every second pixel, and zeros for the channels that are missing."""

    def __init__(self, shortcut: PadShortcut):
        super().__init__()
        F, C = shortcut.selection.shape[:2]
        self.stride, before = shortcut.stride, (F - C) // 2
        self.padding = (0, 0, 0, 0, before, F - C - before)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class Block(nn.Module):
    """A basic block or a bottleneck."""

    def __init__(self, block: Module, folded: bool):
        super().__init__()
        numbers = [i for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
        pairs = [
            _pair(getattr(block, f"conv{i}"), getattr(block, f"bn{i}"), folded) for i in numbers
        ]
        relu = nn.ReLU(inplace=True)
        between = [layer for pair in pairs[:-1] for layer in (pair, relu)]
        self.branch, self.relu = nn.Sequential(*between, pairs[-1]), relu
        self.shortcut = nn.Identity()
        if isinstance(block.downsample, PadShortcut):
            self.shortcut = Pad(block.downsample)
        elif block.downsample:
            self.shortcut = _pair(*block.downsample._children.values(), folded)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.branch(x)
        out += self.shortcut(x)
        return self.relu(out)


class Network(nn.Module):
    """A residual network with a copy of our network's weights."""

    def __init__(self, network: ResNet, folded: bool = False):
        super().__init__()
        self.stem = _pair(network.conv1, network.bn1, folded)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1) if network.has_pool else nn.Identity()
        stages = [getattr(network, name) for name in network.stages]
        blocks = [block for stage in stages for block in stage._children.values()]
        self.blocks = nn.Sequential(*[Block(block, folded) for block in blocks])
        self.average = nn.AdaptiveAvgPool2d(1)
        self.fc = copied_linear(network.fc) if network.fc else None  # cut off in a learner

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.pool(self.relu(self.stem(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.average(self.features(x)), 1))


def _pictures(case: Case, layout: str) -> torch.Tensor:
    """(N, 3, H, W), in the order of memory that the layout names"""
    pictures = torch.from_numpy(batch(case)[0]).permute(0, 3, 1, 2)
    return pictures.contiguous(memory_format=LAYOUTS[layout])


def training_side(case: Case, layout: str) -> Side:
    """What `our_side` does in training, as PyTorch's tutorials write it."""
    network = Network(build(case.arch, seed=0)).to(memory_format=LAYOUTS[layout])
    pictures, labels = _pictures(case, layout), torch.from_numpy(batch(case)[1])
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)

    def step() -> np.ndarray:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(pictures), labels)
        loss.backward()
        optimizer.step()
        return loss.detach().numpy()

    return step


def inference_side(case: Case, layout: str, folded: bool) -> Side:
    """Eager inference, with the batch norms as they are or folded into the convolutions."""
    network = Network(build(case.arch, seed=0), folded).to(memory_format=LAYOUTS[layout]).eval()
    pictures = _pictures(case, layout)

    def infer() -> np.ndarray:
        with torch.inference_mode():
            return network(pictures).numpy()

    return infer


def sides(case: Case, mode: str, threads: int) -> Iterator[tuple[str, Side]]:
    """PyTorch's sides under the names of `bench.RIVALS`."""
    torch.set_num_threads(threads)
    for layout in LAYOUTS:
        if mode == "training":
            yield f"pytorch_{layout}", training_side(case, layout)
        else:
            yield f"pytorch_{layout}", inference_side(case, layout, folded=False)
            yield f"pytorch_{layout}_folded", inference_side(case, layout, folded=True)


# ------------------------------------------------------------------------------------- on a GPU


def device_sides(
    case: Case, frozen: bool, device: str = "cuda"
) -> Iterator[tuple[str, Side, Callable[[], None]]]:
    """Eager training steps on a device with PyTorch's defaults (TF32 in convolutions), and how to
    wait for it; each layout with cuDNN's choice of algorithms as it comes, and measured.
    """
    labels = torch.from_numpy(batch(case)[1]).to(device)
    for layout, measured in itertools.product(LAYOUTS, (False, True)):
        torch.backends.cudnn.benchmark = measured
        network = Network(build(case.arch, seed=0)).to(device, memory_format=LAYOUTS[layout])
        for name, parameter in network.named_parameters():
            parameter.requires_grad = name.startswith("fc.") or not frozen
        trained = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM)
        pictures = _pictures(case, layout).to(device)

        def step(network=network, optimizer=optimizer, pictures=pictures) -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(pictures), labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        suffix = "_measured" if measured else ""
        yield f"pytorch_{layout}{suffix}", step, _waiting_for(device)


def layer_sides(
    N: int, picture: tuple, weight_shape: tuple, stride: int, padding: int, device: str = "cuda"
) -> dict[str, tuple]:
    """Forward, input gradient and weight gradient of one convolution, and how to wait for them."""
    (H, W, C), sides = picture, {}
    for layout, memory in LAYOUTS.items():
        x = torch.randn(N, C, H, W, device=device).contiguous(memory_format=memory)
        weight = torch.randn(weight_shape, device=device).contiguous(memory_format=memory)
        dout = torch.randn_like(nn.functional.conv2d(x, weight, None, stride, padding))

        gradient = functools.partial(convolution_gradients, dout, x, weight, stride, padding)
        passes = (
            lambda x=x, weight=weight: nn.functional.conv2d(x, weight, None, stride, padding),
            functools.partial(gradient, wanted=(True, False)),
            functools.partial(gradient, wanted=(False, True)),
        )
        sides[f"pytorch_{layout}"] = passes, _waiting_for(device)
    return sides


def convolution_gradients(
    dout: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: int,
    padding: int,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of a convolution's input and weight, None for one that is not wanted."""
    window = [stride, stride], [padding, padding], [1, 1], False, [0, 0], 1
    found = torch.ops.aten.convolution_backward(dout, x, weight, None, *window, (*wanted, False))
    return found[:2]


def peak_bytes() -> int:
    """The most of the GPU's memory that PyTorch's tensors had at once."""
    return torch.cuda.max_memory_allocated()


def _waiting_for(device: str) -> Callable[[], None]:
    return torch.cuda.synchronize if device == "cuda" else lambda: None
