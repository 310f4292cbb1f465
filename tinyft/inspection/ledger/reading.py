"""A ledger that was read: columns by name, the check that its books balance, and a summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tinyft.display import aligned
from tinyft.errors import RunError
from tinyft.inspection.html import table as html_table
from tinyft.inspection.ledger.changes import ROUNDING, Changes
from tinyft.inspection.ledger.file import Contents
from tinyft.inspection.ledger.rows import (
    EPOCH_COLUMNS,
    EPOCH_LAYER_COLUMNS,
    GROUP_COLUMNS,
    LAYER_COLUMNS,
    STEP_COLUMNS,
    share,
)

NUMBERS = ("step", "epoch", "phase")
COUNTS = ("moved", "updated")  # in an epoch, means over its steps
CONTINUES = 1e-9  # of a weight norm; both sides are float64 sums of the same float32 numbers
BALANCES = 1e-6
LENGTHS = 1e-3  # an update is known to the rounding of the weights that it is added to
EPS = 1e-5  # batch norm's own: a variance of 0 has no standard deviation


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
        for name, column in (("steps", 2), ("epochs", 1), ("phases", 0)):
            if not np.isin(tables[name][:, column], range(phases)).all():
                raise RunError(
                    f"the ledger is damaged: {name} are of a phase that it does not have"
                )
        return cls(tables, contents.description, contents.unfinished)

    def __getattr__(self, name: str) -> Any:
        """groups, parameters, group_of, phases, norms, tensors: as the description lists them."""
        if name.startswith("_") or name not in self.description:
            raise AttributeError(f"a ledger has no {name!r}")
        return self.description[name]

    @cached_property
    def steps(self) -> dict[str, np.ndarray]:
        found = _columns(STEP_COLUMNS, self.tables["steps"], integers=NUMBERS)
        found |= _columns(GROUP_COLUMNS, self.tables["groups"], integers=COUNTS)
        found["frozen"] = found["frozen"].astype(bool)
        found["update_ratio"] = _ratio(found["update_norm"], found["weight_norm_before"])
        found["decay_share"] = share(found["decay_norm"], found["rest_norm"])
        return found

    @cached_property
    def layers(self) -> dict[str, np.ndarray]:
        found = _columns(LAYER_COLUMNS, self.tables["layers"])
        found["decay_share"] = share(found["decay_norm"], found["rest_norm"])
        return found

    @cached_property
    def epochs(self) -> dict[str, np.ndarray]:
        found = _columns(EPOCH_COLUMNS, self.tables["epochs"], integers=NUMBERS)
        return found | _columns(EPOCH_LAYER_COLUMNS, self.tables["epoch_layers"])

    @property
    def ids(self) -> np.ndarray:
        return self.tables["ids"]

    @cached_property
    def norm_drift(self) -> dict[str, np.ndarray]:
        statistics = self.tables["statistics"].astype(np.float64)
        since_start = np.broadcast_to(statistics[:1], statistics[1:].shape)
        starts = np.cumsum([0, *self.description["channels"][:-1]])
        mean, variance = _drift(statistics[:-1], statistics[1:], starts)
        mean_since, variance_since = _drift(since_start, statistics[1:], starts)
        return {
            "mean": mean,
            "variance": variance,
            "mean_since_start": mean_since,
            "variance_since_start": variance_since,
        }

    @cached_property
    def proofs(self) -> list[Changes]:
        names, phases = self.description["tensors"], self.tables["phases"]
        return [
            Changes.from_columns(names, columns, title=self.description["phases"][int(number)])
            for (number, _), columns in zip(phases, self.tables["tensors"], strict=True)
        ]

    # ------------------------------------------------------------------------------------- checking

    def balance(self) -> list[str]:
        """What does not balance, a sentence each.

        A step starts from the weight norms that the last one ended with; |w+d|^2 = |w|^2 + 2<w,d> +
        |d|^2; and SGD without momentum moves by lr times the gradient, weight decay apart.
        """
        number, groups = self.steps["step"], self.description["groups"]
        found = sorted([*self._jumps(), *self._wrong_squares(), *self._wrong_lengths()])
        return [f"step {number[i]}, {groups[g]}: {text}" for i, g, text in found]

    def _jumps(self) -> Iterator[tuple[int, int, str]]:
        begun, ended = self.steps["weight_norm_before"][1:], self.steps["weight_norm"][:-1]
        for i, g in np.argwhere(np.abs(begun - ended) > CONTINUES * ended):
            yield (
                i + 1,
                g,
                f"starts with weights of norm {begun[i, g]:.9g}, but the step before ended with "
                f"{ended[i, g]:.9g}: something else wrote into them",
            )

    def _wrong_squares(self) -> Iterator[tuple[int, int, str]]:
        s = self.steps
        ended = s["weight_norm"] ** 2
        summed = s["weight_norm_before"] ** 2 + 2 * s["weight_dot_update"] + s["update_norm"] ** 2
        for i, g in np.argwhere(~(np.abs(ended - summed) <= BALANCES * ended)):
            yield (
                i,
                g,
                f"|w+d|^2 is {ended[i, g]:.9g}, but |w|^2 + 2<w,d> + |d|^2 {summed[i, g]:.9g}",
            )

    def _wrong_lengths(self) -> Iterator[tuple[int, int, str]]:
        if self.description["optimizer"] != "SGD" or self.description["has_momentum"]:
            return  # other optimizers' steps depend on what they remember
        s = self.steps
        meant = s["lr"] * s["gradient_norm"]
        rounding = ROUNDING * s["weight_norm"]
        for i, g in np.argwhere(~(np.abs(s["rest_norm"] - meant) <= LENGTHS * meant + rounding)):
            yield (
                i,
                g,
                f"moved by {s['rest_norm'][i, g]:.6g}, but lr times the gradient is "
                f"{meant[i, g]:.6g}",
            )

    # ------------------------------------------------------------------------------------- printing

    def rows(self) -> list[list[str]]:
        """A line for each phase and group: steps, and means over them."""
        s, lines = self.steps, []
        for number, phase in enumerate(self.description["phases"]):
            chosen = s["phase"] == number
            for g, group in enumerate(self.description["groups"] if chosen.any() else ()):
                mean = {name: s[name][chosen, g].mean() for name in SHOWN}
                first, last = s["step"][chosen][[0, -1]]
                cells = [f"{mean[name]:.2e}" for name in SHOWN]
                lines.append([f"{phase}, {first} to {last}", group, *cells])
        return lines

    def __str__(self) -> str:
        problems = self.balance()
        books = "it balances" if not problems else f"{len(problems)} entries do not balance"
        count = len(self.tables["steps"])
        title = f"ledger of {count} steps, {len(self.parameters)} parameters; {books}"
        if self.unfinished:
            title += f"; {self.unfinished:,} bytes of a record that was cut off are left out"
        lines = aligned([HEAD, *self.rows()])
        return "\n".join([title, *lines, *(f"  {text}" for text in problems[:5])])

    def _repr_html_(self) -> str:
        return html_table(HEAD, self.rows())


SHOWN = ("gradient_norm", "weight_norm", "update_norm", "update_ratio", "decay_share", "cosine")
HEAD = ("steps", "group", "gradient", "weights", "update", "ratio", "decay", "cosine")


def _columns(
    names: Sequence[str], rows: np.ndarray, integers: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """(rows, columns, ...) by name."""
    found = {name: rows[:, i] for i, name in enumerate(names)}
    with np.errstate(invalid="ignore"):  # what is no number there is none here
        return found | {name: found[name].astype(np.int64) for name in integers}


def _drift(old: np.ndarray, new: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far mean and variance went, root mean squares by norm.

    Shapes: old, new (epochs, 2, channels), starts (norms,) -> two of (epochs, norms)
    """
    counts = np.diff([*starts, old.shape[2]])
    mean = np.square(new[:, 0] - old[:, 0]) / (old[:, 1] + EPS)
    variance = np.square(np.log((new[:, 1] + EPS) / (old[:, 1] + EPS)))
    sums = (np.add.reduceat(squares, starts, axis=1) for squares in (mean, variance))
    first, second = (np.sqrt(one / counts) for one in sums)
    return first, second


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
