"""Our networks as ONNX files, for the side of ONNX Runtime in `tinyft bench`.

An ONNX file is a protocol buffer: fields, each a number that says which, then an integer or a
length and as many bytes. A dozen kinds of fields are enough for a residual network, so neither the
package onnx nor PyTorch is needed. Batch norms are folded before, as ONNX Runtime would by itself.

Source: onnx/onnx `onnx.proto` (field numbers), operators of opset 13
"""

from __future__ import annotations

import numpy as np

from tinyft.bench.cases import Case, Side, batch
from tinyft.nn import build, fold
from tinyft.nn.layers import Conv2d
from tinyft.nn.module import Module
from tinyft.nn.resnet import PadShortcut, ResNet

IR_VERSION, OPSET = 8, 13
FLOAT, INT64 = 1, 7  # TensorProto.DataType
ATTRIBUTE_INT, ATTRIBUTE_INTS = 2, 7  # AttributeProto.AttributeType


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


def value_info(name: str, shape: tuple[int, ...]) -> bytes:
    """ValueInfoProto of floats: name 1, type 2"""
    dims = b"".join(field(1, field(1, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, FLOAT) + field(2, dims)))


class Graph:
    """Nodes and constants; methods append a node and return its output's name."""

    def __init__(self) -> None:
        self.nodes: list[bytes] = []
        self.constants: list[bytes] = []

    def constant(self, array: np.ndarray) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(tensor(name, array))
        return name

    def node(self, kind: str, *inputs: str, **attributes: int | list[int]) -> str:
        """NodeProto: input 1, output 2, op_type 4, attribute 5"""
        name = f"value{len(self.nodes)}"
        parts = [field(1, source) for source in inputs] + [field(2, name), field(4, kind)]
        parts += [field(5, attribute(*item)) for item in attributes.items()]
        self.nodes.append(b"".join(parts))
        return name

    def conv(self, x: str, layer: Conv2d) -> str:
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

    def block(self, x: str, block: Module) -> str:
        """A basic block or a bottleneck."""
        shortcut = x
        if isinstance(block.downsample, PadShortcut):
            shortcut = self.pad(x, block.downsample)
        elif block.downsample:
            shortcut = self.conv(x, next(iter(block.downsample._children.values())))
        convs = [getattr(block, f"conv{i}") for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
        for conv in convs[:-1]:
            x = self.node("Relu", self.conv(x, conv))
        return self.node("Relu", self.node("Add", self.conv(x, convs[-1]), shortcut))


def onnx_file(network: ResNet, shape: tuple[int, ...]) -> bytes:
    """ModelProto of a network with folded batch norms, for pictures of `shape` (N, 3, H, W)."""
    graph = Graph()
    x = graph.node("Relu", graph.conv("pictures", network.conv1))
    if network.has_pool:
        x = graph.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for name in network.stages:
        for block in getattr(network, name)._children.values():
            x = graph.block(x, block)
    x = graph.node("Flatten", graph.node("GlobalAveragePool", x))
    weight, bias = network.fc.weight.data, network.fc.bias.data
    logits = graph.node("Gemm", x, graph.constant(weight), graph.constant(bias), transB=1)
    parts = [field(1, node) for node in graph.nodes] + [field(2, "network")]  # GraphProto
    parts += [field(5, constant) for constant in graph.constants]
    parts += [field(11, value_info("pictures", shape))]
    parts += [field(12, value_info(logits, (shape[0], bias.size)))]
    opset = field(1, "") + field(2, OPSET)
    return field(1, IR_VERSION) + field(7, b"".join(parts)) + field(8, opset)


def onnx_side(case: Case, threads: int) -> Side:
    """Inference by ONNX Runtime."""
    import onnxruntime

    pictures = np.ascontiguousarray(batch(case)[0].transpose(0, 3, 1, 2))
    file = onnx_file(fold(build(case.arch, seed=0)).network, pictures.shape)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"pictures": pictures})[0]
