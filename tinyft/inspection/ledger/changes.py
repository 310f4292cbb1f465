"""Did anything move that was to stay? Every tensor before and after, bit by bit, and why it moved.

    before = ft.snapshot(learner)
    ...                                    # train, freeze, train
    print(ft.changed(before, learner))

A weight moves for one of four reasons: a gradient reached it; weight decay shrank it; an optimizer
went on with what it remembered (momentum); or, for a batch norm's running statistics, because
batches passed through the layer in training. The last three happen to frozen layers too, and no
setting called "frozen" shows them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinyft import backends
from tinyft.engine.tensor import Tensor
from tinyft.errors import WeightsError
from tinyft.finetune.groups import Group
from tinyft.finetune.learner import Learner
from tinyft.finetune.optim import Optimizer
from tinyft.inspection.html import table
from tinyft.nn.module import Module
from tinyft.nn.resnet import stage_of

REASONS = ("gradient", "weight decay", "momentum", "running statistics", "unknown")
COLUMNS = ("identical", "distance", "largest", "relative", *REASONS)

FROM_ZERO = "from 0"  # how far: no size before to compare with
ROUNDING = 2.0**-23  # of a float32 weight that is only scaled; a move has to be told from it
PROPORTIONAL = 0.01  # of the distance: what may be left of a move that is called pure decay


@dataclass(frozen=True)
class Before:
    """A network's tensors as they were, and which of them trained."""

    arrays: Mapping[str, np.ndarray]
    trained: frozenset[str]


@dataclass(frozen=True)
class TensorChange:
    """One tensor: how far it went (L2), its largest single change, the distance in parts of its
    norm before, and why. NaN where the state before is not known.
    """

    name: str
    identical: bool
    distance: float = 0.0
    largest: float = 0.0
    relative: float = 0.0
    reasons: tuple[str, ...] = ()


def snapshot(model: Module | Learner) -> Before:
    """A copy of every parameter and buffer, for `changed`."""
    model = model.model if isinstance(model, Learner) else model
    arrays = {n: np.array(backends.host(a), order="K") for n, a in model.state_dict().items()}
    return Before(arrays, _trained(model))


def changed(before: Before, model: Module | Learner, optimizer: Optimizer | None = None) -> Changes:
    """Compare a network with its snapshot: what moved, how far, and why.

    Why is read off the weights: a parameter that needs no gradient has decayed (then it is a
    multiple of itself) or was carried on by momentum. One that needed a gradient when the snapshot
    was taken, and moved otherwise, is said to have moved by it: take the snapshot after freezing.
    An optimizer, or a learner with its own, knows what it did in its last step: then a mixture is
    told apart, and a weight that somebody else wrote into is "unknown", if no memory explains it.
    Whether one does is tried out, whatever the optimizer calls it: would a gradient of zeros still
    move the weight?
    Raises: WeightsError if the tensors are not the same ones; TypeError if `before` is no snapshot
    """
    if not isinstance(before, Before):
        raise TypeError(f"changed(snapshot, model): the first is no snapshot but {before!r:.60}")
    if isinstance(model, Learner):
        optimizer = optimizer or model.optimizer
        model = model.model
    after = {name: backends.host(array) for name, array in model.state_dict().items()}
    if {n: a.shape for n, a in after.items()} != {n: a.shape for n, a in before.arrays.items()}:
        raise WeightsError(
            "the network has other tensors than the snapshot; take one of this network"
        )
    trains = _trained(model)
    parameters = {name for name, _ in model.named_parameters()}
    reasons = {
        name: _reasons(old, after[name], name in trains, name in before.trained, name, optimizer)
        if name in parameters
        else ("running statistics",)
        for name, old in before.arrays.items()
    }
    return Changes.between(before.arrays, after, reasons)


@dataclass(frozen=True)
class Changes:
    """Every tensor's change, in the network's order."""

    tensors: tuple[TensorChange, ...]
    title: str = ""

    @classmethod
    def between(
        cls,
        before: Mapping[str, np.ndarray],
        after: Mapping[str, np.ndarray],
        reasons: Mapping[str, tuple[str, ...]],
        title: str = "",
    ) -> Changes:
        """Compare bits, and measure in float64."""
        tensors = []
        for name, array in after.items():
            if _bits(before[name]) == _bits(array):
                tensors.append(TensorChange(name, True))
                continue
            # Row by row, or the last digit would depend on the order of memory.
            old = np.asarray(before[name], np.float64).ravel()
            step = np.asarray(array, np.float64).ravel() - old
            distance, size = float(np.linalg.norm(step)), float(np.linalg.norm(old))
            relative = distance / size if size else float("inf")
            largest = float(np.abs(step).max())
            measures = (distance, largest, relative)
            tensors.append(TensorChange(name, False, *measures, reasons[name] or ("unknown",)))
        return cls(tuple(tensors), title)

    @classmethod
    def from_columns(cls, names: Sequence[str], columns: np.ndarray, title: str) -> Changes:
        """From the ledger's table (columns, tensors)."""
        tensors = []
        for name, row in zip(names, columns.T, strict=True):
            of = dict(zip(COLUMNS, row.tolist(), strict=True))
            reasons = tuple(reason for reason in REASONS if of[reason])
            measures = (of["distance"], of["largest"], of["relative"])
            tensors.append(TensorChange(name, bool(of["identical"]), *measures, reasons))
        return cls(tuple(tensors), title)

    def columns(self) -> np.ndarray:
        """(columns, tensors), as `from_columns` takes it."""
        rows = [
            (t.identical, t.distance, t.largest, t.relative, *(r in t.reasons for r in REASONS))
            for t in self.tensors
        ]
        return np.array(rows, np.float64).T

    @property
    def identical(self) -> list[str]:
        return [t.name for t in self.tensors if t.identical]

    @property
    def moved(self) -> list[TensorChange]:
        return [t for t in self.tensors if not t.identical]

    def diagnosis(self) -> list[str]:
        """Tell a user who froze layers what moved without a gradient, a sentence each."""
        notes = []
        carried = [t for t in self.moved if {"weight decay", "momentum"} & set(t.reasons)]
        carried = [t for t in carried if "gradient" not in t.reasons]
        if carried:
            how = [r for r in REASONS if any(r in t.reasons for t in carried)]
            notes.append(
                f"the optimizer moved {len(carried)} frozen parameters by {' and '.join(how)}: "
                "their gradients are zeros instead of None, so it still visits them; when freezing "
                "them, set grad = None and forget its state"
            )
        norms = {_parent(t.name) for t in self.tensors if t.name.endswith(".running_mean")}
        trained = [t.name for t in self.moved if "gradient" in t.reasons]
        statistics = [
            t.name
            for t in self.moved
            if "running statistics" in t.reasons and _parent(t.name) not in map(_parent, trained)
        ]
        if statistics:
            notes.append(
                f"{len(statistics)} running statistics moved in layers where nothing trains: their "
                'batch norms still follow the batches, as in PyTorch; bn="frozen" stops them'
            )
        weights = [name for name in self.identical if name.endswith(".weight")]
        still = {stage_of(name) for name in weights if _parent(name) not in norms}
        scales = [n for n in trained if _parent(n) in norms and stage_of(n) in still]
        if scales:
            notes.append(
                f"{len(scales)} scales and shifts of batch norms train beside weights that are "
                'frozen, as in fastai; bn="torch" or "frozen" stops them'
            )
        return notes

    def rows(self) -> list[tuple[str, int, int, str, str]]:
        """A line per layer and reason: (layer, identical, moved, largest relative change, why)."""
        lines: dict[tuple[str, tuple[str, ...]], list[TensorChange]] = {}
        for tensor in self.tensors:
            lines.setdefault((stage_of(tensor.name), tensor.reasons), []).append(tensor)
        return [
            (
                layer,
                sum(t.identical for t in tensors),
                sum(not t.identical for t in tensors),
                _most([t.relative for t in tensors]),
                ", ".join(reasons) or "bit-identical",
            )
            for (layer, reasons), tensors in lines.items()
        ]

    def __str__(self) -> str:
        title = f"{self.title}: " if self.title else ""
        head = f"{title}{len(self.identical)} tensors bit-identical, {len(self.moved)} moved"
        lines = []
        for layer, identical, moved, most, why in self.rows():
            how = f"moved {most}" if most == FROM_ZERO else f"moved by up to {most}"
            lines.append(f"  {layer:8} {identical + moved:4} {how if moved else '':24}{why}")
        return "\n".join([head, *lines, *(f"note: {text}" for text in self.diagnosis())])

    def _repr_html_(self) -> str:
        return table(("layer", "identical", "moved", "by up to", "why"), self.rows())


# ------------------------------------------------------------------------------------------ reasons


def _trained(model: Module) -> frozenset[str]:
    return frozenset(name for name, p in model.named_parameters() if p.requires_grad)


def _reasons(
    before: np.ndarray,
    after: np.ndarray,
    trains: bool,
    trained: bool,
    name: str,
    optimizer: Optimizer | None,
) -> tuple[str, ...]:
    """Find why a parameter moved, if it did: one that needs a gradient now, or did before. Without
    an optimizer to ask, by its weights alone.
    """
    group = None  # with which the optimizer's last step visited the parameter
    if optimizer is not None and name in optimizer.visited:
        group = next((group for group in optimizer.groups if name in group.parameters), None)
    decays = group is not None and group.weight_decay * group.lr > 0 and name not in group.undecayed
    by_gradient = ("gradient", "weight decay") if decays else ("gradient",)
    if trains:
        return by_gradient
    only_shrunk = _is_multiple(before, after)
    if trained and not only_shrunk:
        return by_gradient
    if (
        optimizer is not None
        and group is not None
        and _bits(before) != _bits(after)
        and _carries_on(optimizer, group, name)
    ):
        return ("weight decay", "momentum") if decays else ("momentum",)
    if only_shrunk:
        return ("weight decay",)
    return ("momentum",) if optimizer is None else ("unknown",)


def _carries_on(optimizer: Optimizer, group: Group, name: str) -> bool:
    """Would the optimizer's memory move a parameter that has a gradient of zeros, apart from decay?
    Tried on copies, at a rate at which rounding hides no update.
    """
    parameter = group.parameters[name]
    trial = copy.copy(optimizer)
    trial.state = {n: copy.deepcopy(s) for n, s in optimizer.state.items() if n == name}
    weights = Tensor.wrap(parameter.data.copy("K"))
    weights.grad = weights.backend.zeros_like(weights.data)
    try:
        trial.update(name, weights, replace(group, lr=1.0 if group.lr else 0.0), 0.0)
    except NotImplementedError:  # it makes whole steps of its own
        return False
    return _bits(backends.host(weights.data)) != _bits(backends.host(parameter.data))


def _is_multiple(before: np.ndarray, after: np.ndarray) -> bool:
    """Is `after` `before` times a factor below 1, but for rounding?"""
    old = np.asarray(before, np.float64).ravel()
    step = np.asarray(after, np.float64).ravel() - old
    shrunk = -float(old @ step) / max(float(old @ old), 1e-300)
    left = float(np.linalg.norm(step + shrunk * old))
    rounding = ROUNDING * float(np.linalg.norm(old))
    return shrunk > 0 and left <= max(rounding, PROPORTIONAL * float(np.linalg.norm(step)))


# -------------------------------------------------------------------------------------------- names


def _bits(array: Any) -> bytes:
    return np.asarray(array).tobytes()


def _most(relative: list[float]) -> str:
    """The largest, of those that had a size before."""
    finite = [value for value in relative if np.isfinite(value)]
    return f"{max(finite):.1e}" if finite else "?" if np.isnan(relative).any() else FROM_ZERO


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
