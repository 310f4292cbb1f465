"""PyTorch's side of `tinyft bench`. Imported only if PyTorch is there.

Networks are written as torchvision writes them, with copies of our weights, so that all sides
compute the same; training as PyTorch's users write it: eager, one optimizer, model.train() and
model.eval(), no kept features, no folded batch norms.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tinyft.bench.cases import LR, MOMENTUM, Case, Side, batch
from tinyft.nn import layers
from tinyft.nn.resnet import BasicBlock, Bottleneck, PadShortcut, ResNet, build

if TYPE_CHECKING:  # a process that measures PyTorch's memory loads no more than it must
    from tinyft.data.loader import Batch, PictureData
    from tinyft.finetune.groups import Group
    from tinyft.finetune.learner import Learner
    from tinyft.finetune.schedule import Phase
    from tinyft.inspection.trace.kernel_watch import KernelCall
    from tinyft.nn.head import FastaiHead

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

    def __init__(self, block: BasicBlock | Bottleneck, folded: bool):
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
            conv, norm = block.downsample._children.values()
            assert isinstance(conv, layers.Conv2d) and isinstance(norm, layers.BatchNorm)
            self.shortcut = _pair(conv, norm, folded)

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
        # cut off in a learner
        self.fc = copied_linear(network.fc) if network.fc else nn.Identity()

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.pool(self.relu(self.stem(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.average(self.features(x)), 1))


def _pictures(case: Case, layout: str) -> torch.Tensor:
    """(N, 3, H, W), in the order of memory that the layout names"""
    pictures = torch.from_numpy(batch(case)[0]).permute(0, 3, 1, 2)
    return pictures.contiguous(memory_format=LAYOUTS[layout])


def training_side(
    case: Case, layout: str, device: str = "cpu", *, frozen: bool = False, bf16: bool = False
) -> Side:
    """Train as `our_side` does, as PyTorch's tutorials write it; with `bf16`, by autocast."""
    network = Network(build(case.arch, seed=0)).to(device, memory_format=LAYOUTS[layout])
    for name, parameter in network.named_parameters():
        parameter.requires_grad = name.startswith("fc.") or not frozen
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM)
    pictures = _pictures(case, layout).to(device)
    labels = torch.from_numpy(batch(case)[1]).to(device)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(network(pictures), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def inference_side(case: Case, layout: str, *, folded: bool, bf16: bool = False) -> Side:
    """Eager inference, with the batch norms as they are or folded into the convolutions."""
    network = Network(build(case.arch, seed=0), folded).to(memory_format=LAYOUTS[layout]).eval()
    pictures = _pictures(case, layout)

    def infer() -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return network(pictures).float().numpy()

    return infer


def sides(case: Case, mode: str, threads: int, *, bf16: bool = False) -> Iterator[tuple[str, Side]]:
    """PyTorch's sides under the names of measure.RIVALS; with `bf16` also those by autocast."""
    torch.set_num_threads(threads)
    for layout, half in itertools.product(LAYOUTS, (False, True) if bf16 else (False,)):
        name = f"pytorch_{layout}{'_bf16' if half else ''}"
        if mode == "training":
            yield name, training_side(case, layout, bf16=half)
        else:
            yield name, inference_side(case, layout, folded=False, bf16=half)
            yield f"{name}_folded", inference_side(case, layout, folded=True, bf16=half)


# ------------------------------------------------------------------------------------- on a GPU


def device_sides(
    case: Case, frozen: bool, device: str = "cuda"
) -> Iterator[tuple[str, Side, Callable[[], None]]]:
    """Eager training steps on a device with PyTorch's defaults (TF32 in convolutions), and how to
    wait for it; each layout with cuDNN's choice of algorithms as it comes, and measured.
    """
    for layout, measured in itertools.product(LAYOUTS, (False, True)):
        torch.backends.cudnn.benchmark = measured
        step = training_side(case, layout, device, frozen=frozen)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        yield f"pytorch_{layout}{'_measured' if measured else ''}", step, _waiting_for(device)


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
) -> tuple[Any, Any]:
    """The gradients of a convolution's input and weight, None for one that is not wanted."""
    window = [stride, stride], [padding, padding], [1, 1], False, [0, 0], 1
    gradients = torch.ops.aten.convolution_backward(
        dout, x, weight, None, *window, (*wanted, False)
    )
    return gradients[:2]


def peak_bytes() -> int:
    """The most of the GPU's memory that PyTorch's tensors had at once."""
    return torch.cuda.max_memory_allocated()


def _waiting_for(device: str) -> Callable[[], None]:
    return torch.cuda.synchronize if device == "cuda" else lambda: None


# ------------------------------------------------------------------------------------ kernel calls


class TorchKernels:
    """Computes kernel calls from the same arrays, in one of PyTorch's layouts: the other side of
    `--accuracy`. Methods have the names, arguments and results of our backends' kernels.
    """

    def __init__(self, layout: str):
        self.memory = LAYOUTS[layout]

    def compute(self, call: KernelCall) -> list[np.ndarray]:
        """The results of the same call, in float32."""
        arguments, options, _ = call.whole
        return getattr(self, call.kernel)(*arguments, **options)

    def conv2d(self, x, weight, bias, *, stride, padding, residual, relu):
        if bias is not None or residual is not None or relu:
            raise ValueError("only what a training step computes: neither bias, residual nor ReLU")
        out = nn.functional.conv2d(self._give(x), self._weight(weight), None, stride, padding)
        return [_take(out)]

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
        gradients = torch.ops.aten.native_batch_norm_backward(
            arriving, self._give(x), torch.from_numpy(weight), None, None,
            torch.from_numpy(mean), inverse_std, True, eps, [True] * 3,
        )  # fmt: skip
        return [_take(gradient) for gradient in gradients]

    def _give(self, array: np.ndarray) -> torch.Tensor:
        """Pictures (N, H, W, C) as (N, C, H, W), rows as they are."""
        tensor = torch.from_numpy(array.copy())
        if array.ndim != 4:
            return tensor
        return tensor.permute(0, 3, 1, 2).contiguous(memory_format=self.memory)

    def _weight(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.copy()).contiguous(memory_format=self.memory)


def _take(tensor: torch.Tensor) -> np.ndarray:
    """(N, C, H, W) as (N, H, W, C), all else as it is."""
    return (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).numpy()


# ---------------------------------------------------------------------------- a learner's training


class Head(nn.Module):
    """fastai's head with a copy of our head's weights; see tinyft/nn/head.py."""

    def __init__(self, head: FastaiHead):
        super().__init__()
        self.layers = nn.Sequential(
            copied_norm(head.bn1, nn.BatchNorm1d),
            nn.Dropout(head.dropout1.probability),
            copied_linear(head.linear1),
            nn.ReLU(inplace=True),
            copied_norm(head.bn2, nn.BatchNorm1d),
            nn.Dropout(head.dropout2.probability),
            copied_linear(head.linear2),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        largest = nn.functional.adaptive_max_pool2d(features, 1)
        average = nn.functional.adaptive_avg_pool2d(features, 1)
        return self.layers(torch.cat((largest, average), 1).flatten(1))


class TorchLearner:
    """Trains on from where a Learner with Adam is: the other side of `--frozen` and of the curves
    of `--accuracy`. A copy of its weights, the same layers frozen, the same batches at the same
    rates; in float64 to know what rounding does.
    """

    def __init__(self, learner: Learner, layout: str, dtype: torch.dtype = torch.float32):
        from tinyft.backends.cpu.runtime.threads import get_num_threads
        from tinyft.finetune.optim import Adam
        from tinyft.nn.head import FastaiHead

        body, optimizer = learner.model, learner.optimizer
        assert isinstance(body, ResNet) and isinstance(body.head, FastaiHead)
        assert isinstance(optimizer, Adam)
        torch.set_num_threads(get_num_threads())
        self.layout, self.dtype = LAYOUTS[layout], dtype
        self.preprocess = learner.preprocess
        scale = self.preprocess.mean, self.preprocess.std
        self.mean, self.std = (
            255 * torch.tensor(part, dtype=dtype).reshape(1, 3, 1, 1) for part in scale
        )
        self.body = Network(body).to(dtype, memory_format=self.layout)
        self.head = Head(body.head).to(dtype)
        norms = [norm for group in learner.groups[:-1] for norm in group.batch_norms.values()]
        self.fixed_body = all(norm.statistics == "running" for norm in norms)
        self.parameters, groups = self._parameters(learner), enumerate(learner.groups)
        self.optimizer = torch.optim.AdamW(
            [part for number, group in groups for part in _parts(number, group, self.parameters)],
            eps=optimizer.eps,
        )
        self.square_momentum = optimizer.square_momentum

    def _parameters(self, learner: Learner) -> dict[str, nn.Parameter]:
        """By our names: both networks list their layers in the same order."""
        ours = dict(learner.model.named_parameters())
        theirs = [*self.body.parameters(), *self.head.parameters()]
        for (name, our), their in zip(ours.items(), theirs, strict=True):
            if their.shape != our.shape:
                raise ValueError(f"{name} is {our.shape}; PyTorch's is {tuple(their.shape)}")
            their.requires_grad = our.requires_grad
        return dict(zip(ours, theirs, strict=True))

    def step(self, batch: Batch, phase: Phase, i: int) -> float:
        """Step number `i` of a phase: forward, loss, backward, update. The loss."""
        for part in self.optimizer.param_groups:
            part["lr"] = float(phase.lr[i][part["number"]])
            part["betas"] = (float(phase.momentum[i]), self.square_momentum)
        self.body.train(not self.fixed_body)
        self.head.train()
        loss = nn.functional.cross_entropy(self.logits(batch), torch.from_numpy(batch.labels))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def evaluate(self, data: PictureData) -> float:
        """The share of the validation pictures that are right."""
        self.body.eval()
        self.head.eval()
        right = 0
        with torch.inference_mode():
            for batch in data.valid_batches(self.preprocess):
                predicted = self.logits(batch).argmax(1)
                right += int((predicted == torch.from_numpy(batch.labels)).sum())
        return right / data.n_valid

    def logits(self, batch: Batch) -> torch.Tensor:
        """(N, classes), in the mode that the network is in"""
        pictures = torch.from_numpy(batch.images).permute(0, 3, 1, 2)  # channels_last as it is
        pictures = pictures.contiguous(memory_format=self.layout).to(self.dtype)
        return self.head(self.body.features((pictures - self.mean) / self.std))


def _parts(number: int, group: Group, parameters: dict[str, nn.Parameter]) -> list[dict]:
    """A layer group as AdamW takes it, in two: with weight decay and without."""
    parts = []
    for undecayed in (False, True):
        chosen = [parameters[n] for n in group.parameters if (n in group.undecayed) == undecayed]
        decay = 0.0 if undecayed else group.weight_decay
        parts.append({"params": chosen, "weight_decay": decay, "number": number})
    return [part for part in parts if part["params"]]
