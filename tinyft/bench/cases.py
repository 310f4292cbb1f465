"""The cases of `tinyft bench` (networks with their batches), our side of each, and ONNX
Runtime's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyft import backends, ops
from tinyft.engine.tape import no_grad
from tinyft.engine.tensor import Tensor
from tinyft.finetune.groups import Group
from tinyft.finetune.optim import SGD
from tinyft.nn import build, fold
from tinyft.nn.layers import Linear
from tinyft.seeds import generator
from tinyft.weights.onnx_file import Graph, value_info

Side = Callable[[], Any]  # computes once; the loss, or the logits

OURS = "tinyft"
LR, MOMENTUM = 1e-3, 0.9


@dataclass(frozen=True)
class Case:
    """A network and the batch it is given. `size` in pixels."""

    arch: str
    batch_size: int
    size: int

    def __str__(self) -> str:
        return f"{self.arch}, batch {self.batch_size}, {self.size} px"


CASES = (
    Case("resnet18", 16, 224),
    Case("resnet50", 16, 224),
    Case("cifar_resnet20", 128, 32),
    Case("resnet18", 64, 64),
)
MODES = ("training", "inference")


def batch(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Noise as pictures (N, H, W, 3) and labels (N,) below 10, the same at each call."""
    draw = generator(0, "bench")
    shape = (case.batch_size, case.size, case.size, 3)
    return draw.standard_normal(shape, np.float32), draw.integers(0, 10, case.batch_size)


def our_side(case: Case, mode: str, *, device: str = "auto", frozen: bool = False) -> Side:
    """A training step (forward, loss, backward, SGD with momentum) of everything, or of the last
    layer if the others are `frozen`; or inference with folded batch norms.
    """
    network = build(case.arch, seed=0).to(device)
    pictures, labels = batch(case)
    x = Tensor.wrap(backends.place(pictures, device))
    if mode == "inference":
        folded = fold(network)

        def infer() -> np.ndarray:
            with no_grad():
                return folded(x).data

        return infer
    parameters = dict(network.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad = name.startswith("fc.") or not frozen
    group = Group("all", parameters, {}, frozenset(), lr=LR, momentum=MOMENTUM, weight_decay=0.0)
    optimizer = SGD([group], momentum=MOMENTUM)

    def step() -> np.ndarray:
        optimizer.zero_grad()
        loss = ops.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()
        return loss.data

    return step


def onnx_side(case: Case, threads: int) -> Side:
    """Inference by ONNX Runtime, of floats as our side's."""
    import onnxruntime

    pictures = np.ascontiguousarray(batch(case)[0].transpose(0, 3, 1, 2))
    graph, network = Graph(), fold(build(case.arch, seed=0)).network
    logits = graph.classify("pictures", network, output="logits")
    assert isinstance(network.fc, Linear)  # which a learner would have replaced
    classes, _ = network.fc.weight.shape
    outputs = [value_info(logits, (case.batch_size, classes))]
    file = graph.file([value_info("pictures", pictures.shape)], outputs, {})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"pictures": pictures})[0]


def convolutions(case: Case) -> Counter[tuple]:
    """The distinct convolutions of a network: ((H, W, C), (F, C, R, S), stride, padding) -> how
    often.
    """
    from tinyft.inspection.trace.kernel_watch import KernelWatch

    x = Tensor(np.zeros((1, case.size, case.size, 3), np.float32))
    watch = KernelWatch()
    with no_grad(), watch.watching():
        build(case.arch).eval()(x)
    calls = [call.whole for call in watch.take() if call.kernel == "conv2d"]
    return Counter(
        (x.shape[1:], weight.shape, options["stride"], options["padding"])
        for (x, weight, *_), options, _ in calls
    )


def algorithms(case: Case, precision: str | None = None) -> dict[str, dict[str, int]]:
    """Tell by which algorithm the CPU backend computes the network's convolutions: {"conv2d":
    {"Winograd stem": 1, "Winograd": 13, ...}, "conv2d_input_grad": ...}, in its table's order.
    """
    from tinyft.backends.cpu.conv.table import PASS_OF, TABLE, algorithm_of

    by_kernel = {kernel: dict.fromkeys((row.name for row in TABLE), 0) for kernel in PASS_OF}
    for (picture, weight_shape, stride, padding), count in convolutions(case).items():
        layer = (case.batch_size, *picture), weight_shape, stride, padding
        for kernel, counts in by_kernel.items():
            if kernel == "conv2d_input_grad" and picture[2] == 3:  # pictures need no gradient
                continue
            counts[algorithm_of(kernel, *layer, precision)] += count
    return {
        kernel: {name: count for name, count in counts.items() if count}
        for kernel, counts in by_kernel.items()
    }
