"""How large a step was: sums over each parameter, taken around its update, on request.

With w the weights before, v those after, d = v - w and g the gradient, eight sums say everything
that the ledger prints. They add up: those of a layer group are the sums of its parameters' sums.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from tinyft.finetune.groups import Group
from tinyft.finetune.records import GroupRecord

if TYPE_CHECKING:
    import numpy as np

    from tinyft.engine.tensor import Tensor


class UpdateSums(NamedTuple):
    """Sums over the elements of a parameter, or of several; norms are L2 over all of them.

    The update has two parts: `decay` is the square of what weight decay took from the weights,
    `rest` that of what is left, which came from the gradient, past ones included.
    """

    before_before: float = 0.0  # w * w
    after_after: float = 0.0  # v * v
    update_update: float = 0.0  # d * d
    before_update: float = 0.0  # w * d
    gradient_gradient: float = 0.0  # g * g
    gradient_update: float = 0.0  # g * d
    gradient_before: float = 0.0  # g * w
    moved: float = 0.0  # how many elements have d != 0
    decay: float = 0.0
    rest: float = 0.0
    visited: int = 0  # parameters that the optimizer updated

    @property
    def weight_norm_before(self) -> float:
        return math.sqrt(self.before_before)

    @property
    def weight_norm(self) -> float:
        return math.sqrt(self.after_after)

    @property
    def update_norm(self) -> float:
        return math.sqrt(self.update_update)

    @property
    def gradient_norm(self) -> float:
        return math.sqrt(self.gradient_gradient)

    @property
    def update_ratio(self) -> float:
        """|update| / |weights before|; 0 / 0 is 0."""
        return _ratio(self.update_norm, self.weight_norm_before)

    @property
    def cosine(self) -> float:
        """Of the update and the negative gradient: 1 if the step goes straight downhill."""
        return -_ratio(self.gradient_update, self.gradient_norm * self.update_norm)


class UpdateMeasure:
    """Told by the optimizer of each parameter's update.

    The norm of a parameter that is not updated is taken once and remembered.
    """

    def __init__(self, groups: list[Group]):
        self.groups = groups
        self.measured: dict[str, tuple[np.ndarray, float]] = {}
        self.resting: dict[str, UpdateSums] = {}

    @contextlib.contextmanager
    def update(self, name: str, parameter: Tensor, decay: float) -> Iterator[None]:
        """Within this block the parameter is updated. `decay` is lr * weight_decay. What it takes
        is rounded as the optimizer rounds it: 1 - 2e-8 is 1 in float32, and then nothing decays.
        """
        with parameter.backend.measured(parameter.data, parameter.grad) as found:
            yield
        rounded = 1 - float(parameter.data.dtype.type(1 - decay))
        self.measured[name] = _one_after_the_other(found), rounded

    def take(self) -> dict[str, UpdateSums]:
        """The sums of every parameter over the step that was measured, by name."""
        found = {}
        for group in self.groups:
            for name, parameter in group.parameters.items():
                if name in self.measured:
                    self.resting.pop(name, None)
                    found[name] = _sums(*self.measured.pop(name))
                else:
                    if name not in self.resting:
                        self.resting[name] = _at_rest(parameter)
                    found[name] = self.resting[name]
        return found


def group_records(groups: list[Group], found: dict[str, UpdateSums] | None) -> list[GroupRecord]:
    """What a step did to each group; norms only where they were measured."""
    records = []
    for group in groups:
        record = group.name, group.lr, group.momentum, group.weight_decay, group.frozen
        if found is None:
            records.append(GroupRecord(*record))
            continue
        sums = total(found[name] for name in group.parameters)
        norms = sums.gradient_norm, sums.update_norm, sums.weight_norm, sums.visited
        records.append(GroupRecord(*record, *norms))
    return records


def total(sums: Iterable[UpdateSums]) -> UpdateSums:
    """The sums of several parameters together."""
    return UpdateSums(*map(sum, zip(*sums, strict=True)))


def _one_after_the_other(updates: list[np.ndarray]) -> np.ndarray:
    """The sums of several updates of one parameter: from where the first began to where the last
    ended. There is only one unless something is wrong, and then the ledger's books say so.
    """
    if len(updates) == 1:
        return updates[0]
    whole, of_start = sum(updates), [0, 4, 6]  # before_before and what only has gradient and before
    whole[of_start], whole[1] = updates[0][of_start], updates[-1][1]
    return whole


def _sums(array: np.ndarray, decay: float) -> UpdateSums:
    """The kernel's eight sums, and from them both parts of the update: -decay * w, and the rest."""
    values = array.tolist()
    before, _, update, before_update = values[:4]
    rest = update + 2 * decay * before_update + decay**2 * before
    return UpdateSums(*values, decay**2 * before, max(rest, 0.0), 1)


def _at_rest(parameter: Tensor) -> UpdateSums:
    data = parameter.data
    square = parameter.backend.update_sums(data, data, data).tolist()[0]
    return UpdateSums(before_before=square, after_after=square)


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0
