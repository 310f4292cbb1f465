"""The rows of the ledger: from what was measured to columns of numbers.

Next: tinyft/inspection/ledger_file.py
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyft.finetune.norms import UpdateSums, total
from tinyft.inspection.freeze import COLUMNS as TENSOR_COLUMNS
from tinyft.inspection.ledger_file import Table

if TYPE_CHECKING:
    from tinyft.finetune.learner import Learner
    from tinyft.finetune.records import StepRecord

STEP_COLUMNS = ("step", "epoch", "phase", "loss", "smooth_loss")
RATES = ("lr", "momentum", "weight_decay")
GROUP_COLUMNS = (*RATES, "frozen", "gradient_norm", "weight_norm_before", "weight_norm",
                 "update_norm", "weight_dot_update", "gradient_dot_update", "gradient_dot_weight",
                 "cosine", "decay_norm", "rest_norm", "moved", "updated")  # fmt: skip
LAYER_COLUMNS = ("gradient_norm", "weight_norm", "update_norm", "update_ratio", "cosine",
                 "decay_norm", "rest_norm", "moved")  # fmt: skip
EPOCH_COLUMNS = ("epoch", "phase", "step", "valid_loss", "valid_accuracy")
EPOCH_LAYER_COLUMNS = (*RATES, *LAYER_COLUMNS, "decay_share", "path", "distance", "changed")


def tables(learner: Learner) -> list[Table]:
    """The ledger's tables, sized for a learner."""
    parameters = sum(len(group.parameters) for group in learner.groups)
    channels = sum(len(norm.running_mean) for norm in learner.batch_norms)
    tensors = len(learner.model.state_dict())

    def table(name: str, columns: tuple[str, ...], *rest: int, **options: Any) -> Table:
        return Table(name, (len(columns), *rest), columns=columns, **options)

    return [
        table("steps", STEP_COLUMNS, each_step=True),
        table("groups", GROUP_COLUMNS, len(learner.groups), each_step=True),
        table("layers", LAYER_COLUMNS, parameters, dtype="<f4", each_step=True),
        Table("ids", (learner.data.batch_size,), "<i8", each_step=True),
        table("epochs", EPOCH_COLUMNS),
        table("epoch_layers", EPOCH_LAYER_COLUMNS, parameters),
        table("statistics", ("running_mean", "running_var"), channels, dtype="<f4"),
        table("phases", ("phase", "step")),
        table("tensors", TENSOR_COLUMNS, tensors),
    ]


def group_rows(record: StepRecord, by_group: list[UpdateSums]) -> np.ndarray:
    """(columns, groups)"""
    rows = [
        (
            *(group.lr, group.momentum, group.weight_decay, group.frozen),
            *(sums.gradient_norm, sums.weight_norm_before, sums.weight_norm, sums.update_norm),
            *(sums.before_update, sums.gradient_update, sums.gradient_before, sums.cosine),
            *(math.sqrt(sums.decay), math.sqrt(sums.rest), sums.moved, sums.visited),
        )
        for group, sums in zip(record.groups, by_group, strict=True)
    ]
    return np.array(rows, np.float64).T


def by_group(learner: Learner) -> list[UpdateSums]:
    """The last step's sums, over each group. Raises: ValueError if they were not measured"""
    if learner.updates is None:
        raise ValueError("a ledger needs norms: make the steps by learner.steps(plan, norms=True)")
    return [total(learner.updates[name] for name in g.parameters) for g in learner.groups]


def layer_rows(sums: Mapping[str, UpdateSums]) -> np.ndarray:
    """(columns, parameters)"""
    rows = [
        (
            *(one.gradient_norm, one.weight_norm, one.update_norm, one.update_ratio, one.cosine),
            *(math.sqrt(one.decay), math.sqrt(one.rest), one.moved),
        )
        for one in sums.values()
    ]
    return np.array(rows, np.float64).T


def epoch_layer_rows(
    layers: np.ndarray, rates: np.ndarray, travelled: Mapping[str, np.ndarray]
) -> np.ndarray:
    """An epoch's columns from those of its steps -> (columns, parameters).

    Shapes: layers (steps, columns, parameters), rates (steps, 3, parameters); travelled: distance
    and changed, (parameters,)
    """
    column = {name: layers[:, i].astype(np.float64) for i, name in enumerate(LAYER_COLUMNS)}
    mean = {name: values.mean(axis=0) for name, values in column.items()}
    found: dict[str, Any] = dict(zip(RATES, rates.mean(axis=0), strict=True))
    for name in ("gradient_norm", "update_norm", "decay_norm", "rest_norm"):
        found[name] = np.sqrt(np.square(column[name]).mean(axis=0))
    for name in ("update_ratio", "cosine", "moved"):
        found[name] = mean[name]
    found["weight_norm"] = column["weight_norm"][-1]
    found["decay_share"] = share(column["decay_norm"], column["rest_norm"]).mean(axis=0)
    found["path"] = column["update_norm"].sum(axis=0)
    found |= travelled
    return np.array([found[name] for name in EPOCH_LAYER_COLUMNS])


def share(decay: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """How much of an update's way is weight decay, from 0 to 1; 0 where nothing moved."""
    whole = decay + rest
    return np.divide(decay, whole, out=np.zeros_like(whole), where=whole > 0)
