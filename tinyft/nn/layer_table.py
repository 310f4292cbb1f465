"""A network as a table: what each layer makes of a picture, what it costs, what of it trains.

No number is computed: a batch of no pictures runs through the network, which has every shape, and
an observer writes down each op.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyft import backends
from tinyft.display import Displayed, aligned
from tinyft.engine.tape import Node, no_grad, observe
from tinyft.engine.tensor import Tensor
from tinyft.nn.layers import BatchNorm
from tinyft.nn.module import Module

COLUMNS = ("layer", "op", "output shape", "FLOPs", "moves in training", "parameters")


@dataclass(frozen=True)
class SummaryRow:
    """One op of the forward pass, or one layer where no shape is known.

    `shape` begins with "N", the batch, and is empty where it is not known; `flops` are of one
    picture, and 0 for all but convolutions and linear layers: the rest is a hundredth of them.
    `parameters` are the layer's own.
    """

    layer: str
    op: str
    shape: tuple[str | int, ...]
    flops: int
    moves: str
    parameters: int


@dataclass(frozen=True, repr=False)
class Summary(Displayed):
    """A network's layers in the order in which they run. `print` shows a table."""

    rows: list[SummaryRow]
    parameters: int
    trainable: int
    shape: tuple[int, ...] | None = None  # of one input, if it was put through

    @property
    def flops(self) -> int:
        """Of one picture through the network, forward: multiplications and additions."""
        return sum(row.flops for row in self.rows)

    @property
    def total(self) -> str:
        """The sums, as a sentence."""
        counts = f"{self.parameters:,} parameters in all, {self.trainable:,} of them train"
        if not self.flops:
            return counts
        return f"{counts}; {_short(self.flops)}FLOP forward for one input {self.shape}"

    def cells(self) -> list[tuple[str, ...]]:
        """The table's lines as text, without COLUMNS."""
        return [
            (row.layer or "(network)", row.op,
             f"({', '.join(map(str, row.shape))})" if row.shape else "?",
             _short(row.flops) if row.flops else "-", row.moves, f"{row.parameters:,}")
            for row in self.rows
        ]  # fmt: skip

    def __str__(self) -> str:
        table = [COLUMNS, *self.cells()]
        width = max(len(row[-1]) for row in table)
        return "\n".join(
            [*aligned([(*row[:-1], row[-1].rjust(width)) for row in table]), self.total]
        )

    __repr__ = __str__  # what an interactive Python shows


class _Nodes(list):
    """An observer that collects the node of every op, in order."""

    def after_forward(self, node: Node) -> None:
        self.append(node)

    def after_backward(self, node: Node, gradient: Any, input_gradients: Any) -> None:
        """No backward comes here."""


def summary(model: Module, shape: tuple[int, ...] | None = None) -> Summary:
    """List what each op of `model` makes of an input of `shape`, without its batch: (H, W, 3) for a
    network. None is the size that a network is meant for; other modules then list their layers
    alone. Nothing in the model changes.
    """
    shape = shape if shape is not None else getattr(model, "input_shape", None)
    modules = dict(model.named_modules())
    counts = {  # of the parameters of a module itself, without those of its children
        name: sum(parameter.size for n, parameter in module.named_parameters() if "." not in n)
        for name, module in modules.items()
    }
    if shape is None:
        rows = [
            SummaryRow(name, type(module).__name__, (), 0, _moves(module), counts[name])
            for name, module in modules.items()
            if counts[name]
        ]
    else:
        rows = [
            SummaryRow(
                node.layer,
                node.op,
                ("N", *node.output_shape[1:]),
                _flops(node),
                _moves(modules[node.layer]) if node.layer in modules else "-",
                counts.pop(node.layer, 0),  # a layer of several ops counts once
            )
            for node in forward_nodes(model, shape)
        ]
    trainable = sum(p.size for _, p in model.named_parameters() if p.requires_grad)
    return Summary(rows, model.count_parameters(), trainable, shape)


def forward_nodes(
    model: Module, shape: tuple[int, ...], forward: Callable[[Tensor], Tensor] | None = None
) -> list[Node]:
    """The nodes of a forward pass (or of another function of it) of no pictures of `shape`, in
    evaluation; of one, where somebody's `reshape` needs one to know the other axes by.
    """
    first = next((parameter for _, parameter in model.named_parameters()), None)
    nodes = _Nodes()
    put_modes_back = model.remember_modes()
    model.eval()
    try:
        for N in (0, 1):
            nodes.clear()
            pictures = np.zeros((N, *shape), np.float32)
            if first is not None:  # of its type, and where it is
                pictures = backends.place_like(pictures.astype(first.dtype), first.data)
            try:
                with no_grad(), backends.use("reference"), observe(nodes):
                    (forward or model)(Tensor.wrap(pictures))
                break
            except (ValueError, ZeroDivisionError):
                if N:
                    raise
    finally:
        put_modes_back()
    return nodes


def halves(model: Module) -> tuple[Callable[[Tensor], Tensor], Module]:
    """A network's `features`, a part or a method, and its part `head`.

    Raises: ValueError for a network without one of them
    """
    body: Callable[[Tensor], Tensor] | None = getattr(model, "features", None)
    head = getattr(model, "head", None)
    if not callable(body) or not isinstance(head, Module):
        raise ValueError(f"{type(model).__name__} has no `features` and part `head`")
    return body, head


def feature_shape(model: Module, side: int) -> tuple[int, ...] | None:
    """The shape of one picture's features, (h, w, C) or (F,), for pictures of `side` pixels. None
    for a network that is not `head(features(x))`, op by op: somebody's `features` may be anything.
    """
    try:
        body, head = halves(model)
    except ValueError:
        return None
    features: list[Tensor] = []

    def one_by_one(x: Tensor) -> Tensor:
        features[:] = [body(x)]
        return head(*features)

    whole = forward_nodes(model, (side, side, 3))
    try:
        parts = forward_nodes(model, (side, side, 3), one_by_one)
    except Exception:
        return None
    same = [[(node.op, node.layer, node.output_shape) for node in n] for n in (whole, parts)]
    return features[0].shape[1:] if same[0] == same[1] else None


def _flops(node: Node) -> int:
    """2 for each product that a convolution or linear layer sums: out (N, P, Q, F), weight (F, C,
    R, S) or out (N, F), weight (F, C).
    """
    if node.op not in ("conv2d", "linear"):
        return 0
    _, weight = node.shapes[:2]
    return 2 * math.prod(node.output_shape[1:]) * math.prod(weight[1:])


def _moves(module: Module) -> str:
    """Say what a training step changes in a module itself: weights by gradients, a batch norm's
    running statistics without.
    """
    own = [p.requires_grad for name, p in module.named_parameters() if "." not in name]
    moving = ["weights"] if any(own) else []
    if isinstance(module, BatchNorm) and module.statistics_move:
        moving.append("statistics")
    return ", ".join(moving) or ("nothing" if own else "-")


def _short(number: int) -> str:
    """ "3.63 G", "118 M" """
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.3g} {letter}"
    return f"{number} "
