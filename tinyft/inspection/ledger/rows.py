"""The rows of the ledger: from what was measured to columns of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyft.finetune.norms import UpdateSums, total
from tinyft.inspection.ledger.changes import COLUMNS as TENSOR_COLUMNS
from tinyft.inspection.ledger.file import Table

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
PHASE_COLUMNS = ("phase", "step")
EPOCH_COLUMNS = ("epoch", "phase", "step", "valid_loss", "valid_accuracy")
EPOCH_LAYER_COLUMNS = (*RATES, *LAYER_COLUMNS, "decay_share", "path", "distance", "changed")


def description_of(learner: Learner, phases: list[str]) -> dict[str, Any]:
    """What a ledger says of the learner and the plan that it is of."""
    return {
        "arch": learner.arch,
        "optimizer": type(learner.optimizer).__name__,
        "has_momentum": learner.optimizer.has_momentum,
        "batch_size": learner.data.batch_size,
        "groups": [group.name for group in learner.groups],
        "parameters": [name for group in learner.groups for name in group.parameters],
        "group_of": [i for i, g in enumerate(learner.groups) for _ in g.parameters],
        "undecayed": sorted(name for group in learner.groups for name in group.undecayed),
        "norms": [name for group in learner.groups for name in group.norms],
        "channels": [len(n.running_mean) for g in learner.groups for n in g.norms.values()],
        "tensors": list(learner.model.state_dict()),
        "phases": phases,
    }


def layout(description: dict[str, Any]) -> dict[str, list[Table]]:
    """The records of a ledger with that description, and the tables of which each has a row.

    Raises: ValueError for a description that no ledger has
    """
    d = description
    names = [d[of] for of in ("groups", "parameters", "undecayed", "norms", "tensors", "phases")]
    counts = (d["batch_size"], *d["group_of"], *d["channels"])
    if not all(type(of) is list and {str}.issuperset(map(type, of)) for of in names):
        raise ValueError("a name is no text")
    if type(d["optimizer"]) is not str or type(d["has_momentum"]) is not bool:
        raise ValueError("it does not say which optimizer")
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("a count is no whole number")
    groups, parameters, channels = len(d["groups"]), len(d["parameters"]), sum(d["channels"])
    if len(d["group_of"]) != parameters or max(d["group_of"], default=0) >= max(groups, 1):
        raise ValueError("not every parameter has a group")
    if len(d["channels"]) != len(d["norms"]) or 0 in d["channels"]:
        raise ValueError("not every batch norm has channels")

    def table(name: str, columns: tuple[str, ...], *rest: int, **options: Any) -> Table:
        return Table(name, (len(columns), *rest), columns=columns, **options)

    statistics = table("statistics", ("running_mean", "running_var"), channels, dtype="<f4")
    return {
        "begin": [statistics],
        "step": [
            table("steps", STEP_COLUMNS),
            table("groups", GROUP_COLUMNS, groups),
            Table("ids", (d["batch_size"],), "<i8"),
            table("layers", LAYER_COLUMNS, parameters, dtype="<f4"),
        ],
        "epoch": [
            table("epochs", EPOCH_COLUMNS),
            table("epoch_layers", EPOCH_LAYER_COLUMNS, parameters),
            statistics,
        ],
        "phase": [
            table("phases", PHASE_COLUMNS),
            table("tensors", TENSOR_COLUMNS, len(d["tensors"])),
        ],
    }


def step_numbers(record: str, rows: np.ndarray) -> np.ndarray:
    """Of each record of that name, the step with which it was written; -1 before the first."""
    if record == "begin":
        return np.full(len(rows), -1.0)
    table, columns = {
        "step": ("steps", STEP_COLUMNS),
        "epoch": ("epochs", EPOCH_COLUMNS),
        "phase": ("phases", PHASE_COLUMNS),
    }[record]
    return rows[table][:, columns.index("step")]


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
    return np.array(rows, np.float32).T


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
