"""Writes trained networks as ONNX files, which ONNX Runtime and many others run.

An ONNX file is a protocol buffer: fields, each a number that says which, then an integer or a
length and as many bytes. A dozen kinds of fields are enough for a residual network: 40 lines here,
where the package onnx takes 36 MB, and making a graph with it is no shorter. Batch norms are
folded, those of a head into the linear layer behind them.

**Pictures go in as decoded, RGB bytes (N, S, S, 3)**: what a decoder hands out, once resized and
cropped, a quarter of the bytes of floats, and nobody can mistake mean, deviation or channel order,
since these are in the graph. Resizing is not: ONNX's does not equal Pillow's.

Source: onnx/onnx `onnx.proto` (field numbers), operators of opset 13
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from tinyft.nn.folding import fold
from tinyft.nn.head import FastaiHead, LinearHead
from tinyft.nn.layers import BatchNorm, Conv2d, Linear
from tinyft.nn.resnet import BasicBlock, Bottleneck, PadShortcut, ResNet
from tinyft.version import __version__
from tinyft.weights.files import replacing
from tinyft.weights.model import Weights, facts, network_of
from tinyft.weights.preprocess import Preprocess

IR_VERSION, OPSET = 8, 13
FLOAT, UINT8, INT64 = 1, 2, 7  # TensorProto.DataType
ATTRIBUTE_INT, ATTRIBUTE_INTS = 2, 7  # AttributeProto.AttributeType

DESCRIPTION = """\
pictures: decoded, RGB, upright, transparency over white; the shorter side resized to `resize` by
Pillow's filter `interpolation`, which averages where it shrinks; then the middle `crop` x `crop`
cut out (half pixels to the even side), or if `whole_square` and `resize` is above `crop` the middle
square (half pixels to the left and to the top) sampled bilinearly to `crop` x `crop`, corner pixels
on corner pixels. The metadata has these numbers as `preprocess`, and `classes`, in JSON. Mean and
deviation are part of the graph.
"""


def export_onnx(weights: Weights, path: str | os.PathLike[str]) -> None:
    """Write a network with its classifier; an existing file is replaced whole.

    Input `pictures`, outputs `logits` and `probabilities`, any number of pictures. The
    metadata are those of `facts`.

    Shapes: pictures (N, S, S, 3) uint8, S = preprocess.crop; logits, probabilities (N, classes)
    Raises: WeightsError for weights without a classifier, or with a head that is none of HEADS;
    OSError if it cannot be written.
    """
    network, preprocess = fold(network_of(weights)).network, weights.preprocess
    graph, side = Graph(), preprocess.crop
    logits = graph.classify(graph.normalise("pictures", preprocess), network, output="logits")
    graph.node("Softmax", logits, output="probabilities", axis=1)
    inputs = [value_info("pictures", ("N", side, side, 3), UINT8)]
    results = ("N", weights.num_classes or 1)
    outputs = [value_info(name, results) for name in ("logits", "probabilities")]
    with replacing(path) as temporary:
        temporary.write_bytes(graph.file(inputs, outputs, facts(weights), DESCRIPTION))


# ------------------------------------------------------------------------------- protocol buffers


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | str | bytes) -> bytes:
    """One field: an integer, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str, array: np.ndarray) -> bytes:
    """TensorProto: dims 1, data_type 2, name 8, raw_data 9"""
    kind = FLOAT if array.dtype == np.float32 else INT64
    dims = b"".join(field(1, size) for size in array.shape)
    return dims + field(2, kind) + field(8, name) + field(9, array.tobytes())  # C order


def attribute(name: str, value: int | list[int]) -> bytes:
    """AttributeProto: name 1, i 3, ints 8, type 20"""
    if isinstance(value, int):
        return field(1, name) + field(3, value) + field(20, ATTRIBUTE_INT)
    return field(1, name) + b"".join(field(8, i) for i in value) + field(20, ATTRIBUTE_INTS)


def value_info(name: str, shape: tuple[int | str, ...], kind: int = FLOAT) -> bytes:
    """ValueInfoProto: name 1, type 2. A dimension is dim_value 1, or dim_param 2: any size."""
    dims = b"".join(field(1, field(2 if isinstance(size, str) else 1, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, dims)))


# ---------------------------------------------------------------------------------------- networks


class Graph:
    """Nodes and constants; methods append a node and return its output's name.

    Between them pictures are (N, C, H, W), as ONNX has them.
    """

    def __init__(self) -> None:
        self.nodes: list[bytes] = []
        self.constants: list[bytes] = []

    def constant(self, array: np.ndarray) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(field(5, tensor(name, array)))
        return name

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: int | list[int]) -> str:
        """NodeProto: input 1, output 2, op_type 4, attribute 5"""
        name = output or f"value{len(self.nodes)}"
        parts = [field(1, source) for source in inputs] + [field(2, name), field(4, kind)]
        parts += [field(5, attribute(*item)) for item in attributes.items()]
        self.nodes.append(field(1, b"".join(parts)))
        return name

    def normalise(self, x: str, preprocess: Preprocess) -> str:
        """(N, S, S, 3) uint8 -> (N, 3, S, S): (x / 255 - mean) / std. It cannot become part of the
        first convolution, which pads with zeros behind it.
        """
        x = self.node("Cast", self.node("Transpose", x, perm=[0, 3, 1, 2]), to=FLOAT)
        mean, std = (
            self.constant((255 * np.array(values)).astype(np.float32).reshape(3, 1, 1))
            for values in (preprocess.mean, preprocess.std)
        )
        return self.node("Div", self.node("Sub", x, mean), std)

    def conv(self, x: str, layer: Conv2d) -> str:
        assert layer.bias is not None  # folding a batch norm made one
        constants = self.constant(layer.weight.data), self.constant(layer.bias.data)
        strides, pads = [layer.stride] * 2, [layer.padding] * 4
        return self.node("Conv", x, *constants, strides=strides, pads=pads)

    def pad(self, x: str, shortcut: PadShortcut) -> str:
        """Every second pixel, and zeros for the channels that are missing."""
        F, C = shortcut.selection.shape[:2]
        before = (F - C) // 2
        sliced = [0, 0], [2**31] * 2, [2, 3], [shortcut.stride] * 2  # starts, ends, axes, steps
        x = self.node("Slice", x, *[self.constant(np.array(part)) for part in sliced])
        pads = np.array([0, before, 0, 0, 0, F - C - before, 0, 0])
        return self.node("Pad", x, self.constant(pads))

    def block(self, x: str, block: BasicBlock | Bottleneck) -> str:
        shortcut = x
        if isinstance(block.downsample, PadShortcut):
            shortcut = self.pad(x, block.downsample)
        elif block.downsample:
            first = next(iter(block.downsample._children.values()))
            assert isinstance(first, Conv2d)  # the norm behind it was folded into it
            shortcut = self.conv(x, first)
        convs = [getattr(block, f"conv{i}") for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
        for conv in convs[:-1]:
            x = self.node("Relu", self.conv(x, conv))
        return self.node("Relu", self.node("Add", self.conv(x, convs[-1]), shortcut))

    def linear(self, x: str, layer: Linear, norm: BatchNorm | None = None, output: str = "") -> str:
        """layer(norm(x)): the norm's scale and shift become part of the layer, in float64."""
        weight = layer.weight.data.astype(np.float64)  # (out, in)
        bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.data
        if norm:
            scale = norm.weight.data / (norm.running_var.astype(np.float64) + norm.eps) ** 0.5
            bias = bias + weight @ (norm.bias.data - norm.running_mean * scale)
            weight = weight * scale
        constants = [self.constant(array.astype(np.float32)) for array in (weight, bias)]
        return self.node("Gemm", x, *constants, output=output, transB=1)

    def classify(self, x: str, network: ResNet, output: str) -> str:
        """A network with folded batch norms: (N, 3, H, W) -> (N, classes)"""
        x = self.node("Relu", self.conv(x, network.conv1))
        if network.has_pool:
            x = self.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        for name in network.stages:
            for block in getattr(network, name)._children.values():
                x = self.block(x, block)
        head, mean = network.head, self.node("GlobalAveragePool", x)
        if not isinstance(head, FastaiHead):
            last = head.linear if isinstance(head, LinearHead) else network.fc
            assert last is not None  # a network has one or the other
            return self.linear(self.node("Flatten", mean), last, output=output)
        x = self.node("Concat", self.node("GlobalMaxPool", x), mean, axis=1)
        x = self.node("Relu", self.linear(self.node("Flatten", x), head.linear1, head.bn1))
        return self.linear(x, head.linear2, head.bn2, output)

    def file(
        self,
        inputs: list[bytes],
        outputs: list[bytes],
        metadata: Mapping[str, str],
        description: str = "",
    ) -> bytes:
        """ModelProto: ir_version 1, producer 2 and 3, doc_string 6, graph 7, opset_import 8,
        metadata_props 14. GraphProto: node 1, name 2, initializer 5, input 11, output 12
        """
        graph = [*self.nodes, field(2, "network"), *self.constants]
        graph += [field(11, info) for info in inputs] + [field(12, info) for info in outputs]
        # as field(7, ...) would begin, which would copy all of the graph twice
        begin = varint(7 << 3 | 2) + varint(sum(map(len, graph)))
        opset = field(1, "") + field(2, OPSET)
        described = [field(2, "tinyft"), field(3, __version__), field(6, description)]
        properties = [field(14, field(1, k) + field(2, v)) for k, v in metadata.items()]
        model = [field(1, IR_VERSION), *described, begin, *graph, field(8, opset), *properties]
        return b"".join(model)
