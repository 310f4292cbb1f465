"""The columns of a ledger; and a ledger that was read: columns by name, the check that its books
balance, and a summary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyft.display import aligned, counted
from tinyft.errors import RunError
from tinyft.inspection.html import table as html_table
from tinyft.inspection.ledger.changes import COLUMNS as TENSOR_COLUMNS
from tinyft.inspection.ledger.changes import ROUNDING, Changes
from tinyft.inspection.ledger.file import Contents, Table

if TYPE_CHECKING:
    from tinyft.finetune.learner import Learner

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
DATED = {  # of a record the table that says when it was written, and the columns of that
    "step": ("steps", STEP_COLUMNS),
    "epoch": ("epochs", EPOCH_COLUMNS),
    "phase": ("phases", PHASE_COLUMNS),
}
SHOWN = ("gradient_norm", "weight_norm", "update_norm", "update_ratio", "decay_share", "cosine")
HEAD = ("steps", "group", "gradient", "weights", "update", "ratio", "decay", "cosine")

NUMBERS = ("step", "epoch", "phase")
COUNTS = ("moved", "updated")  # in an epoch, means over its steps
CONTINUES = 1e-9  # of a weight norm; both sides are float64 sums of the same float32 weights
BALANCES = 1e-6
LENGTHS = 1e-3  # an update is known to the rounding of the weights that it is added to
EPS = 1e-5  # batch norm's own: a variance of 0 has no standard deviation


# ------------------------------------------------------------------------------------- the columns


def description_of(learner: Learner, phases: list[str]) -> dict[str, Any]:
    """Describe the learner and the plan that a ledger is of."""
    return {
        "arch": learner.arch,
        "optimizer": type(learner.optimizer).__name__,
        "has_momentum": learner.optimizer.has_momentum,
        "batch_size": learner.own_data().batch_size,
        "groups": [group.name for group in learner.groups],
        "parameters": [name for group in learner.groups for name in group.parameters],
        "group_of": [i for i, g in enumerate(learner.groups) for _ in g.parameters],
        "undecayed": sorted(name for group in learner.groups for name in group.undecayed),
        "norms": [name for group in learner.groups for name in group.batch_norms],
        "channels": [len(n.running_mean) for g in learner.groups for n in g.batch_norms.values()],
        "tensors": list(learner.model.state_dict()),
        "phases": phases,
    }


def layout(description: dict[str, Any]) -> dict[str, list[Table]]:
    """The records of a ledger with that description, and the tables that each holds a row of.

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
    """The step with which each record of that name was written; -1 before the first."""
    if record == "begin":
        return np.full(len(rows), -1.0)
    table, columns = DATED[record]
    return rows[table][:, columns.index("step")]


# ------------------------------------------------------------------------------------- the reading


@dataclass(frozen=True)
class LedgerReading:
    """See ledger.py for what each attribute holds."""

    tables: dict[str, np.ndarray] = field(repr=False)
    description: dict[str, Any] = field(repr=False)
    unfinished: int = 0  # bytes of a last record that is not whole, and not in the tables

    @classmethod
    def of(cls, contents: Contents) -> LedgerReading:
        """Raises: RunError for a phase that the description does not have"""
        tables, phases = contents.tables, len(contents.description["phases"])
        for name, columns in DATED.values():
            if not np.isin(tables[name][:, columns.index("phase")], range(phases)).all():
                raise RunError(
                    f"the ledger is damaged: {name} are of a phase that it does not have"
                )
        return cls(tables, contents.description, contents.unfinished)

    def __getattr__(self, name: str) -> Any:
        """groups, parameters, group_of, phases, norms, tensors ...: entries of the description."""
        if name.startswith("_") or name not in self.description:
            raise AttributeError(f"a ledger has no {name!r}")
        return self.description[name]

    @cached_property
    def steps(self) -> dict[str, np.ndarray]:
        columns = _columns(STEP_COLUMNS, self.tables["steps"], integers=NUMBERS)
        columns |= _columns(GROUP_COLUMNS, self.tables["groups"], integers=COUNTS)
        columns["frozen"] = columns["frozen"].astype(bool)
        columns["update_ratio"] = _ratio(columns["update_norm"], columns["weight_norm_before"])
        columns["decay_share"] = share(columns["decay_norm"], columns["rest_norm"])
        return columns

    @cached_property
    def layers(self) -> dict[str, np.ndarray]:
        columns = _columns(LAYER_COLUMNS, self.tables["layers"])
        columns["decay_share"] = share(columns["decay_norm"], columns["rest_norm"])
        return columns

    @cached_property
    def epochs(self) -> dict[str, np.ndarray]:
        columns = _columns(EPOCH_COLUMNS, self.tables["epochs"], integers=NUMBERS)
        return columns | _columns(EPOCH_LAYER_COLUMNS, self.tables["epoch_layers"])

    @property
    def ids(self) -> np.ndarray:
        return self.tables["ids"]

    @cached_property
    def norm_drift(self) -> dict[str, np.ndarray]:
        statistics = self.tables["statistics"].astype(np.float64)
        since_start = np.broadcast_to(statistics[:1], statistics[1:].shape)
        starts = np.cumsum([0, *self.channels[:-1]])
        columns = ("mean", "variance", "mean_since_start", "variance_since_start")
        pairs = (statistics[:-1], since_start)
        drifts = [part for old in pairs for part in _drift(old, statistics[1:], starts)]
        return dict(zip(columns, drifts, strict=True))

    @cached_property
    def proofs(self) -> list[Changes]:
        pairs = zip(self.tables["phases"], self.tables["tensors"], strict=True)
        return [
            Changes.from_columns(self.tensors, columns, title=self.phases[int(number)])
            for (number, _), columns in pairs
        ]

    def balance(self) -> list[str]:
        """Check the books; a sentence for each entry that does not balance.

        A step starts from the weight norms that the last one ended with; |w+d|^2 = |w|^2 + 2<w,d> +
        |d|^2; and SGD without momentum moves by lr times the gradient, weight decay apart.
        """
        s, wrong = self.steps, []
        begun, ended = s["weight_norm_before"][1:], s["weight_norm"][:-1]
        for i, g in np.argwhere(np.abs(begun - ended) > CONTINUES * ended):
            text = (
                f"starts with weights of norm {begun[i, g]:.9g}, but the step before ended with "
                f"{ended[i, g]:.9g}: something else wrote into them"
            )
            wrong.append((i + 1, g, text))
        ended = s["weight_norm"] ** 2
        summed = s["weight_norm_before"] ** 2 + 2 * s["weight_dot_update"] + s["update_norm"] ** 2
        for i, g in np.argwhere(~(np.abs(ended - summed) <= BALANCES * ended)):
            text = f"|w+d|^2 is {ended[i, g]:.9g}, but |w|^2 + 2<w,d> + |d|^2 {summed[i, g]:.9g}"
            wrong.append((i, g, text))
        if self.optimizer == "SGD" and not self.has_momentum:  # others' steps depend on a memory
            meant, moved = s["lr"] * s["gradient_norm"], s["rest_norm"]
            allowed = LENGTHS * meant + ROUNDING * s["weight_norm"]
            for i, g in np.argwhere(~(np.abs(moved - meant) <= allowed)):
                text = f"moved by {moved[i, g]:.6g}, but lr times the gradient is {meant[i, g]:.6g}"
                wrong.append((i, g, text))
        return [f"step {s['step'][i]}, {self.groups[g]}: {text}" for i, g, text in sorted(wrong)]

    def rows(self) -> list[list[str]]:
        """A line for each phase and group: steps, and means over them."""
        s, lines = self.steps, []
        for number, phase in enumerate(self.phases):
            chosen = s["phase"] == number
            for g, group in enumerate(self.groups if chosen.any() else ()):
                mean = {name: s[name][chosen, g].mean() for name in SHOWN}
                first, last = s["step"][chosen][[0, -1]]
                cells = [f"{mean[name]:.2e}" for name in SHOWN]
                lines.append([f"{phase}, {first} to {last}", group, *cells])
        return lines

    def __str__(self) -> str:
        problems = self.balance()
        books = "it balances" if not problems else f"{len(problems)} entries do not balance"
        count = len(self.tables["steps"])
        title = f"ledger of {counted(count, 'step')}, {len(self.parameters)} parameters; {books}"
        if self.unfinished:
            title += f"; {self.unfinished:,} bytes of a record that was cut off are left out"
        lines = aligned([HEAD, *self.rows()])
        return "\n".join([title, *lines, *(f"  {text}" for text in problems[:5])])

    def _repr_html_(self) -> str:
        return html_table(HEAD, self.rows())


def _columns(
    names: Sequence[str], rows: np.ndarray, integers: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """(rows, columns, ...) by name."""
    by_name = {name: rows[:, i] for i, name in enumerate(names)}
    with np.errstate(invalid="ignore"):  # NaN has no integer
        return by_name | {name: by_name[name].astype(np.int64) for name in integers}


def _drift(old: np.ndarray, new: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure how far mean and variance went: root mean squares over a batch norm's channels.

    Shapes: old, new (epochs, 2, channels), starts (norms,) -> two of (epochs, norms)
    """
    counts = np.diff([*starts, old.shape[2]])
    mean = np.square(new[:, 0] - old[:, 0]) / (old[:, 1] + EPS)
    variance = np.square(np.log((new[:, 1] + EPS) / (old[:, 1] + EPS)))
    mean, variance = (np.add.reduceat(each, starts, axis=1) for each in (mean, variance))
    return np.sqrt(mean / counts), np.sqrt(variance / counts)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def share(decay: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """The part of an update's length that is weight decay, from 0 to 1; 0 where nothing moved."""
    return _ratio(decay, decay + rest)
