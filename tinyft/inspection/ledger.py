"""The ledger: what every step did to every layer, written down while it happens.

    learner.fine_tune(3, out="runs/a", observers=[ft.Ledger()])
    book = ft.Ledger.read("runs/a")           # at any time, also while it runs or after a kill
    book.steps["update_ratio"][:, 2]          # of the head (steps,)

What `read` gives (`LedgerReading`):

    groups       names of the layer groups, in order
    parameters   names of all parameters, in order; `group_of` has each one's group number
    phases       names of the phases; norms, tensors: names of batch norms and of all tensors
    steps        {column: array}. (steps,): step, epoch, phase (number), loss, smooth_loss.
                 (steps, groups): lr, momentum, weight_decay, frozen, gradient_norm,
                 weight_norm_before, weight_norm, update_norm, update_ratio, decay_share, cosine
                 (of update and negative gradient), moved (numbers that changed), updated (tensors),
                 weight_dot_update, gradient_dot_update, gradient_dot_weight, decay_norm, rest_norm
    layers       {column: (steps, parameters) float32}: gradient_norm, weight_norm, update_norm,
                 update_ratio, decay_share, cosine, moved, decay_norm, rest_norm
    epochs       {column: array}. (epochs,): epoch, phase, step (its last), valid_loss,
                 valid_accuracy. (epochs, parameters): the columns of `layers` (root mean squares of
                 norms, means of ratios; weight_norm at the end), lr, momentum, weight_decay, `path`
                 (the sum of the steps' lengths), `distance` from where the epoch began, and
                 `changed`, how many numbers ended elsewhere (both NaN where a resumed run does not
                 know its epoch's start)
    norm_drift   {column: (epochs, norms)}: mean and variance, how far a batch norm's running
                 statistics went in the epoch, and mean_since_start, variance_since_start. A mean
                 in old standard deviations, a variance as |ln(new / old)|; root mean squares
                 over the channels
    ids          (steps, batch size) int64: the pictures of each batch, -1 where it was shorter
    proofs       a `Changes` for each finished phase: what moved, how far and why
    balance()    the steps whose books do not balance, as sentences; none is as it should be

The file, `ledger.h5`, holds tables of plain numbers (rows, columns, ...), which h5py alone can
read; each table's attribute `columns` names them. The newest steps of a run that is at work, or was
killed, are in the table `recent` (ledger_file.py).

Next: tinyft/inspection/ledger_rows.py
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinyft import backends
from tinyft.display import Displayed
from tinyft.errors import RunError
from tinyft.finetune.run import CHECKPOINT
from tinyft.finetune.state import model_arrays
from tinyft.inspection import ledger_file
from tinyft.inspection.freeze import ROUNDING, Before, Changes, TensorChange, snapshot
from tinyft.inspection.ledger_file import LedgerFile
from tinyft.inspection.ledger_reading import LedgerReading
from tinyft.inspection.ledger_rows import (
    EPOCH_COLUMNS,
    LAYER_COLUMNS,
    by_group,
    epoch_layer_rows,
    group_rows,
    layer_rows,
    tables,
)

if TYPE_CHECKING:
    from tinyft.finetune.learner import Learner
    from tinyft.finetune.plan import Plan
    from tinyft.finetune.records import StepRecord


class Ledger(Displayed):
    """An observer that writes `ledger.h5` into a run's folder; in memory where there is none.

    It costs sums over the weights, while they are updated, in every step, and a copy of the
    weights in every epoch. With the sample run's network, whose steps are short, that is 3.6 to 4.5
    % of a step, with a ResNet-18 at 224 pixels 0.3 % (medians of 800 and of 60 steps, with and
    without in turn; Adam, batch 16, two threads of an idle Intel Xeon).
    """

    norms = True  # asks the learner for measured steps

    def __init__(self, run: str | os.PathLike[str] | None = None):
        """`run`: the run's folder; left out, it is the `out` of the call that it observes."""
        self.folder = None if run is None else Path(run)
        self.file: LedgerFile | None = None

    @staticmethod
    def read(run: str | os.PathLike[str]) -> LedgerReading:
        """The ledger of a run's folder, or of a file. Raises: RunError if it cannot be read"""
        path = Path(run)
        return LedgerReading(*ledger_file.read(path / "ledger.h5" if path.is_dir() else path))

    @property
    def reading(self) -> LedgerReading:
        """What was written so far. Raises: RunError before the first step"""
        if self.file is None:
            raise RunError("this ledger is empty: no step was made since it was handed in")
        return LedgerReading(*self.file.contents())

    def __str__(self) -> str:
        return str(self.reading) if self.file is not None else "an empty ledger: no step was made"

    # ----------------------------------------------------------------------------- what is observed

    def begin(self, learner: Learner, plan: Plan) -> None:
        """Look at the network before the first step. The file is made by the first step."""
        folder = self.folder or learner.run_folder
        self.path = None if folder is None else Path(folder) / "ledger.h5"
        self.file = None
        self.phases = [phase.name for phase in plan.phases]
        self.norms_of = {name: norm for g in learner.groups for name, norm in g.norms.items()}
        self.epoch_start: Before | None = snapshot(learner.model)
        self.phase_start: Before | None = self.epoch_start
        self.statistics_at_start = self._statistics()

    def after_step(self, learner: Learner, record: StepRecord) -> None:
        """Write the rows of a step, and at its end those of an epoch and of a phase."""
        if self.file is None:
            self.file = self._open(learner, record.step)
        phase = self.phases.index(record.phase)
        ids = np.full(learner.data.batch_size, -1)
        ids[: len(record.ids)] = record.ids
        self.file.append_step(
            steps=[record.step, record.epoch, phase, float(record.loss), record.smooth_loss],
            groups=group_rows(record, by_group(learner)),
            layers=layer_rows(learner.updates),
            ids=ids,
        )
        if record.validation:
            self._end_epoch(learner, record, phase)
        if record.proof:
            self._end_phase(learner, record, phase)
        if record.validation:
            self.file.settle()

    def end(self, learner: Learner) -> None:
        """The file is complete. One in memory can still be read."""
        if self.file is not None:
            self.file.close()

    def _end_epoch(self, learner: Learner, record: StepRecord, phase: int) -> None:
        now = snapshot(learner.model)
        self.file.append("epoch_layers", self._epoch_layers(now))
        self.file.append("statistics", self._statistics())
        judged = record.validation
        row = [record.epoch, phase, record.step, judged.loss, judged.accuracy]
        self.file.append("epochs", row)
        self.epoch_start = now

    def _end_phase(self, learner: Learner, record: StepRecord, phase: int) -> None:
        """Which tensors moved in the phase, how far, and why; by the proof's hashes alone where its
        start is not known.
        """
        done = self.file.rows("phases")
        first = int(done[-1, 1]) + 1 if len(done) else 0
        chosen = self.file.rows("steps")[:, 0] >= first
        reasons = _reasons(learner, self.file.rows("layers")[chosen])
        now = self.epoch_start  # a phase ends with an epoch
        if self.phase_start is None:
            changes = _by_hashes(record, learner, reasons)
        else:
            changes = Changes.between(self.phase_start.arrays, now.arrays, reasons, record.phase)
        self.file.append("tensors", changes.columns())
        self.file.append("phases", [phase, record.step])
        self.phase_start = now

    def _epoch_layers(self, now: Before) -> np.ndarray:
        """(columns, parameters) of the epoch that ended with the last step."""
        ended = self.file.rows("epochs")
        first = int(ended[-1, EPOCH_COLUMNS.index("step")]) + 1 if len(ended) else 0
        chosen = self.file.rows("steps")[:, 0] >= first
        group_of = self.description["group_of"]
        rates = self.file.rows("groups")[chosen][:, :3][:, :, group_of]  # (steps, 3, parameters)
        names = self.description["parameters"]
        rates[:, 2, [name in self.description["undecayed"] for name in names]] = 0
        travelled = {key: np.full(len(names), np.nan) for key in ("distance", "changed")}
        if self.epoch_start is not None:
            steps = [now.arrays[n] - self.epoch_start.arrays[n] for n in names]
            travelled["distance"] = np.array([np.linalg.norm(s.ravel()) for s in steps])
            travelled["changed"] = np.array([np.count_nonzero(s) for s in steps])
        return epoch_layer_rows(self.file.rows("layers")[chosen], rates, travelled)

    def _statistics(self) -> np.ndarray:
        """Every batch norm's running mean and variance: (2, channels)"""
        norms = self.norms_of.values()
        means = [backends.host(norm.running_mean) for norm in norms]
        variances = [backends.host(norm.running_var) for norm in norms]
        return np.array([np.concatenate(means), np.concatenate(variances)])

    # ------------------------------------------------------------------------------------- the file

    def _open(self, learner: Learner, step: int) -> LedgerFile:
        """A new file; where a run goes on, with the rows of the steps before this one."""
        self.description = {
            "arch": learner.arch,
            "optimizer": type(learner.optimizer).__name__,
            "has_momentum": learner.optimizer.has_momentum,
            "groups": [group.name for group in learner.groups],
            "parameters": [name for group in learner.groups for name in group.parameters],
            "group_of": [i for i, g in enumerate(learner.groups) for _ in g.parameters],
            "undecayed": sorted(name for group in learner.groups for name in group.undecayed),
            "norms": list(self.norms_of),
            "channels": [len(norm.running_mean) for norm in self.norms_of.values()],
            "tensors": list(learner.model.state_dict()),
            "phases": self.phases,
        }
        kept = self._kept(step) or {"statistics": self.statistics_at_start[None]}
        return LedgerFile(self.path, tables(learner), self.description, kept)

    def _kept(self, step: int) -> dict[str, np.ndarray]:
        """The rows of an earlier session that stay: those of steps before `step`.

        If this session began within an epoch or a phase, the weights at its start are read from
        that step's checkpoint, where there is one.
        """
        if self.path is None or not self.path.exists():
            return {}
        try:
            kept, description = ledger_file.read(self.path)
            if description["phases"] != self.phases:
                raise RunError(f"{self.path} is the ledger of another plan")
        except RunError as error:
            warnings.warn(f"{error}; a new ledger begins with step {step}", stacklevel=2)
            return {}
        ledger_file.close_written(self.path)
        count = int((kept["steps"][:, 0] < step).sum())
        epochs = int((kept["epochs"][:, EPOCH_COLUMNS.index("step")] < step).sum())
        phases = int((kept["phases"][:, 1] < step).sum())
        if count == 0:
            return {}
        lengths = {"epochs": epochs, "epoch_layers": epochs, "statistics": epochs + 1,
                   "phases": phases, "tensors": phases}  # fmt: skip
        kept = {name: rows[: lengths.get(name, count)] for name, rows in kept.items()}
        first = int(kept["steps"][0, 0])
        epoch_began = int(kept["epochs"][-1, EPOCH_COLUMNS.index("step")]) + 1 if epochs else first
        phase_began = int(kept["phases"][-1, 1]) + 1 if phases else first
        if epoch_began != step:
            self.epoch_start = _weights_at(self.path.parent, epoch_began)
        if phase_began != step:
            self.phase_start = _weights_at(self.path.parent, phase_began)
        return kept


def _reasons(learner: Learner, layers: np.ndarray) -> dict[str, tuple[str, ...]]:
    """Why each tensor moved in a phase, if it did: by what the phase's steps measured.

    Shapes: layers (steps, columns, parameters)
    """
    column = {name: layers[:, i] for i, name in enumerate(LAYER_COLUMNS)}
    gradient = column["gradient_norm"] > 0
    rest = column["rest_norm"] > ROUNDING * column["weight_norm"]
    evidence = {
        "gradient": gradient.any(axis=0),
        "weight decay": (column["decay_norm"] > 0).any(axis=0),
        "momentum": (rest & ~gradient).any(axis=0),
    }
    names = [name for group in learner.groups for name in group.parameters]
    found = {
        name: tuple(reason for reason, there in evidence.items() if there[i])
        for i, name in enumerate(names)
    }
    state = learner.model.state_dict()
    return {name: found.get(name, ("running statistics",)) for name in state}


def _by_hashes(
    record: StepRecord, learner: Learner, reasons: dict[str, tuple[str, ...]]
) -> Changes:
    """What the learner's own proof says; how far is not known."""
    moved, unknown = set(record.proof.moved), float("nan")
    tensors = [
        TensorChange(name, False, unknown, unknown, unknown, reasons[name] or ("unknown",))
        if name in moved
        else TensorChange(name, True)
        for name in learner.model.state_dict()
    ]
    return Changes(tuple(tensors), record.phase)


def _weights_at(run: Path, step: int) -> Before | None:
    """The network after so many steps, if the run still has that checkpoint."""
    from tinyft.weights import read_arrays

    path = run / "checkpoints" / f"{step:06}.h5"
    if not path.exists():
        return None
    arrays, _, _ = read_arrays(path, CHECKPOINT)
    return Before(model_arrays(arrays), frozenset())
