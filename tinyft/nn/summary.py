"""A network as a table: one picture is sent through it, and an observer writes down each op.

Next: tinyft/nn/fold.py
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tinyft import backends
from tinyft.nn.module import Module
from tinyft.nn.resnet import ResNet
from tinyft.tensor import Array, Node, Tensor, observe

COLUMNS = ("layer", "op", "output shape", "parameters")


@dataclass
class _Listener:
    """Collects (layer, op, output shape) of every op, in order."""

    seen: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)

    def after_forward(self, node: Node) -> None:
        self.seen.append((node.layer, node.op, node.output_shape))

    def after_backward(
        self, node: Node, gradient: Array, input_gradients: tuple[Array | None, ...]
    ) -> None:
        """There is no backward here."""


def summary(model: ResNet, size: int) -> str:
    """One line a layer for a picture of `size` pixels: name, op, output shape (N, H, W, C),
    parameters.
    """
    listener = _Listener()
    training = model.training
    model.eval()
    try:
        with backends.use("reference"), observe(listener):
            model(Tensor(np.zeros((1, size, size, 3), np.float32)))
    finally:
        model.train(training)
    counts = {name: _own_parameters(module) for name, module in model.named_modules()}
    rows = [
        (layer or "(network)", op, str(shape), f"{counts.pop(layer, 0):,}")
        for layer, op, shape in listener.seen
    ]
    total = f"{model.count_parameters():,} parameters in all"
    return "\n".join([*_aligned([COLUMNS, *rows]), total])


def _own_parameters(module: Module) -> int:
    """How many numbers the module holds itself, not counting those of its children."""
    return sum(parameter.size for name, parameter in module.named_parameters() if "." not in name)


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns of equal width, the last one flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    return [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row[:-1], widths, strict=False)),
                   row[-1].rjust(widths[-1])])
        for row in rows
    ]  # fmt: skip
