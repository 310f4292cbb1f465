"""A learner as a table: one line a layer, with all that decides whether and how it moves.

"Frozen" is three things, and a column each: whether the weights get gradients, at which rate, and
whether a batch norm's running statistics move without any.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from tinyft.display import Displayed, aligned
from tinyft.finetune.groups import Group
from tinyft.finetune.records import total
from tinyft.finetune.training import Training

COLUMNS = ("layer", "shape", "group", "lr now", "momentum", "decay", "weight", "statistics",
        "last update")  # fmt: skip


@dataclass(frozen=True)
class LayerLine:
    """One layer, in words. Of a layer whose weight does not train, the rate is that of its bias, or
    "-".

    `last_update`: |update| / |weights| of the last step if it was measured (`norms=True`, or a
    ledger), else "moved" or "at rest".
    """

    layer: str
    shape: str
    group: str
    lr: str
    momentum: str
    decay: str
    weight: str
    statistics: str
    last_update: str


@dataclass(frozen=True)
class Description(Displayed):
    """The result of `Learner.describe`; printing it gives the table."""

    lines: tuple[LayerLine, ...]

    def __str__(self) -> str:
        return "\n".join(aligned([COLUMNS, *map(astuple, self.lines)]))


def describe(training: Training) -> Description:
    """Every layer that has parameters, in the network's order."""
    lines = []
    for group in training.groups:
        layers: dict[str, list[str]] = {}
        for name in group.parameters:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
        lines += [_line(training, group, layer, names) for layer, names in layers.items()]
    return Description(tuple(lines))


def _line(training: Training, group: Group, layer: str, names: list[str]) -> LayerLine:
    weight = group.parameters[names[0]]
    trains = any(group.parameters[name].requires_grad for name in names)
    norm = group.batch_norms.get(layer)
    visited = [name for name in names if group.parameters[name].grad is not None]
    moves = trains or bool(visited)  # a frozen one with a stale gradient of zeros decays on
    decays = [name for name in names if name not in group.undecayed]
    momentum = f"{group.momentum:g}" if training.optimizer.has_momentum else "none"
    return LayerLine(
        layer,
        "x".join(map(str, weight.shape)),
        group.name,
        f"{group.lr:.2e}" if moves else "-",
        momentum if moves else "-",
        f"{group.weight_decay:g}" if moves and decays else "-",
        "trains" if weight.requires_grad else "frozen",
        "" if norm is None else "move" if norm.statistics_move else "stay",
        _last_update(training, names),
    )


def _last_update(training: Training, names: list[str]) -> str:
    if training.step == 0:
        return "none yet"
    if not training.optimizer.visited & set(names):
        return "at rest"
    if training.updates is None:
        return "moved"
    return f"{total(training.updates[name] for name in names).update_ratio:.1e}"
