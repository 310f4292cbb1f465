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
                 (of update and negative gradient), moved (elements that changed), updated
                 (tensors), weight_dot_update, gradient_dot_update, gradient_dot_weight, decay_norm,
                 rest_norm
    layers       {column: (steps, parameters) float32}: gradient_norm, weight_norm, update_norm,
                 update_ratio, decay_share, cosine, moved, decay_norm, rest_norm
    epochs       {column: array}. (epochs,): epoch, phase, step (its last), valid_loss,
                 valid_accuracy. (epochs, parameters): the columns of `layers` (root mean squares of
                 norms, means of ratios; weight_norm at the end), lr, momentum, weight_decay, `path`
                 (the sum of the steps' lengths), `distance` from where the epoch began, and
                 `changed`, how many elements ended elsewhere (both NaN where a resumed run has lost
                 the checkpoint of its epoch's start)
    norm_drift   {column: (epochs, norms)}: mean and variance, how far a batch norm's running
                 statistics went in the epoch, and mean_since_start, variance_since_start. A mean
                 in old standard deviations, a variance as |ln(new / old)|; root mean squares
                 over the channels
    ids          (steps, batch size) int64: the pictures of each batch, -1 where it was shorter
    proofs       a `Changes` for each finished phase: what moved, how far and why
    balance()    the steps whose books do not balance, as sentences; none is as it should be

The file, `ledger.bin`, holds these as plain tables, which NumPy alone can read: see
file.py.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyft import backends
from tinyft.display import Displayed, counted
from tinyft.errors import RunError, TinyftError
from tinyft.finetune.records import UpdateSums, total
from tinyft.inspection.ledger import file as ledger_file
from tinyft.inspection.ledger.changes import ROUNDING, Before, Changes, TensorChange, snapshot
from tinyft.inspection.ledger.file import FILE_NAME, LedgerFile
from tinyft.inspection.ledger.reading import (
    CONTINUES,
    EPOCH_LAYER_COLUMNS,
    GROUP_COLUMNS,
    LAYER_COLUMNS,
    RATES,
    LedgerReading,
    description_of,
    layout,
    share,
    step_numbers,
)

if TYPE_CHECKING:
    from tinyft.finetune.groups import Proof
    from tinyft.finetune.learner import Learner
    from tinyft.finetune.plan import Plan
    from tinyft.finetune.records import StepRecord
    from tinyft.nn.layers import BatchNorm


class Ledger(Displayed):
    """An observer that writes `ledger.bin` into a run's folder; in memory where there is none.

    It costs sums over the weights, while they are updated, in every step, and a copy of the
    weights in every epoch. With the sample run's network, whose steps are short, that is 3.6 to 4.5
    % of a step, with a ResNet-18 at 224 pixels 0.3 % (medians of 800 and of 60 steps, with and
    without in turn; Adam, batch 16, two threads of an idle Intel Xeon).
    """

    norms = True  # asks the learner for measured steps

    def __init__(self, run: str | os.PathLike[str] | None = None):
        """`run`: the run's folder; left out, it is the `out` of the call that it observes."""
        self.folder: Path | None = None if run is None else Path(run)
        self.file: LedgerFile | None = None

    @staticmethod
    def read(run: str | os.PathLike[str]) -> LedgerReading:
        """The ledger of a run's folder, or of a file. Raises: RunError if it cannot be read"""
        path = Path(run)
        return LedgerReading.of(
            ledger_file.read(path / FILE_NAME if path.is_dir() else path, layout)
        )

    @property
    def reading(self) -> LedgerReading:
        """Read what was written so far. Raises: RunError before the first step"""
        if self.file is None:
            raise RunError("this ledger is empty: no step was made since it was handed in")
        return LedgerReading.of(self.file.contents())

    def __str__(self) -> str:
        return str(self.reading) if self.file is not None else "an empty ledger: no step was made"

    # ----------------------------------------------------------------------------- what is observed

    def begin(self, learner: Learner, plan: Plan) -> None:
        """Look at the network before the first step. The file is made by the first step."""
        folder = self.folder or learner.run_folder
        self.path: Path | None = None if folder is None else Path(folder) / FILE_NAME
        self.file = None
        self.phases: list[str] = [phase.name for phase in plan.phases]
        self.batch_norms: list[BatchNorm] = learner.batch_norms
        self.epoch_start: Before | None = snapshot(learner.model)
        self.phase_start: Before | None = self.epoch_start
        self.statistics_at_start: np.ndarray = self._statistics()
        self.epoch_rows: list[tuple[np.ndarray, np.ndarray]] = []  # groups, layers: of each step
        self.evidence: Any = False  # of why tensors moved in the phase, from epochs that ended

    def after_step(self, learner: Learner, record: StepRecord) -> None:
        """Write the rows of a step, and at its end those of an epoch and of a phase.

        Raises: ValueError if the step was not measured
        """
        if learner.updates is None:
            how = "make the steps by learner.steps(plan, norms=True)"
            raise ValueError(f"a ledger needs norms: {how}")
        file = self.file = self.file or self._open(learner, record)
        phase = self.phases.index(record.phase)
        ids = np.full(learner.own_data().batch_size, -1)
        ids[: len(record.ids)] = record.ids
        groups = _group_rows(learner, record, learner.updates)
        layers = _layer_rows(learner.updates)
        steps = [record.step, record.epoch, phase, float(record.loss), record.smooth_loss]
        file.append("step", steps=steps, groups=groups, ids=ids, layers=layers)
        self.epoch_rows.append((groups, layers))
        if judged := record.validation:
            row = [record.epoch, phase, record.step, judged.loss, judged.accuracy]
            self._end_epoch(file, learner, row)
        if record.proof:
            self._end_phase(file, record, record.proof)
        if record.validation:
            file.sync()

    def end(self, learner: Learner) -> None:
        """The file is complete. One in memory can still be read."""
        if self.file is not None:
            self.file.close()

    def _end_epoch(self, file: LedgerFile, learner: Learner, row: list[float]) -> None:
        now = snapshot(learner.model)
        groups, layers = (np.array(rows) for rows in zip(*self.epoch_rows, strict=True))
        file.append(
            "epoch",
            epochs=row,
            epoch_layers=self._epoch_layers(groups, layers, now),
            statistics=self._statistics(),
        )
        self.evidence = self.evidence | _evidence(layers)
        self.epoch_rows.clear()
        self.epoch_start = now

    def _end_phase(self, file: LedgerFile, record: StepRecord, proof: Proof) -> None:
        """Write which tensors moved in the phase, how far, and why; by the proof's hashes alone
        where its start is not known.
        """
        causes = np.array(("gradient", "weight decay", "momentum"))
        names, tensors = self.description["parameters"], self.description["tensors"]
        of = {n: tuple(causes[row].tolist()) for n, row in zip(names, self.evidence.T, strict=True)}
        reasons = {name: of.get(name, ("running statistics",)) for name in tensors}
        now = self.epoch_start  # a phase ends with an epoch
        if self.phase_start is not None and now is not None:
            changes = Changes.between(self.phase_start.arrays, now.arrays, reasons, record.phase)
        else:
            moved, nan = set(proof.moved), math.nan
            tensor_changes = [
                TensorChange(name, False, nan, nan, nan, reasons[name] or ("unknown",))
                if name in moved
                else TensorChange(name, True)
                for name in tensors
            ]
            changes = Changes(tuple(tensor_changes), record.phase)
        phases = [self.phases.index(record.phase), record.step]
        file.append("phase", phases=phases, tensors=changes.columns())
        self.evidence = False
        self.phase_start = now

    def _epoch_layers(self, groups: np.ndarray, layers: np.ndarray, now: Before) -> np.ndarray:
        """(columns, parameters) of the epoch that ended with the last step."""
        rates = groups[:, :3][:, :, self.description["group_of"]]  # (steps, 3, parameters)
        names = self.description["parameters"]
        rates[:, 2, [name in self.description["undecayed"] for name in names]] = 0
        travelled = {key: np.full(len(names), np.nan) for key in ("distance", "changed")}
        if self.epoch_start is not None:
            steps = [now.arrays[n] - self.epoch_start.arrays[n] for n in names]
            travelled["distance"] = np.array([np.linalg.norm(s.ravel()) for s in steps])
            travelled["changed"] = np.array([np.count_nonzero(s) for s in steps])
        return epoch_layer_rows(layers, rates, travelled)

    def _statistics(self) -> np.ndarray:
        """Every batch norm's running mean and variance: (2, channels)"""
        means = [backends.host(norm.running_mean) for norm in self.batch_norms]
        variances = [backends.host(norm.running_var) for norm in self.batch_norms]
        return np.array([np.concatenate(means), np.concatenate(variances)])

    # ------------------------------------------------------------------------------------- the file

    def _open(self, learner: Learner, record: StepRecord) -> LedgerFile:
        """A new file; where a run goes on, with the records of the steps before this one."""
        self.description: dict[str, Any] = description_of(learner, self.phases)
        kept = self._kept(record.step)
        file = LedgerFile(self.path, layout, self.description, kept)
        if self.path is not None and kept:
            self._go_on(self.path, learner, record, kept)
        else:
            file.append("begin", statistics=self.statistics_at_start)
        return file

    def _kept(self, step: int) -> dict[str, np.ndarray]:
        """The records of an earlier session that stay; none if it made no step before `step`."""
        if self.path is None or not self.path.exists():
            return {}
        try:
            old = ledger_file.read(self.path, layout, damaged=True)
            if old.description != self.description:
                raise RunError(f"{self.path} is the ledger of another plan")
        except RunError as error:
            warnings.warn(f"{error}; a new ledger begins with step {step}", stacklevel=2)
            return {}
        if old.damage:
            warnings.warn(f"{self.path}: {old.damage}; what is before it is kept", stacklevel=2)
        kept = {n: rows[step_numbers(n, rows) < step] for n, rows in old.records.items()}
        return kept if len(kept["step"]) else {}

    def _go_on(
        self, path: Path, learner: Learner, record: StepRecord, kept: dict[str, np.ndarray]
    ) -> None:
        """Take up an epoch and a phase that have not ended: what was measured, and the weights that
        they began with. If the newest steps are lost, as by a crash of the system, nobody knows
        which these were.
        """
        rows, number = kept["step"], step_numbers("step", kept["step"])
        if lost := record.step - 1 - int(number[-1]):
            lack = f"{path} lacks {counted(lost, 'step')} before step {record.step}"
            warnings.warn(f"{lack} and goes on behind the gap", stacklevel=2)
        ended = [step_numbers(name, kept[name]) for name in ("epoch", "phase")]
        epoch, phase = (int(steps[-1] + 1 if len(steps) else number[0]) for steps in ended)
        _, of_epoch, of_phase = rows["steps"][:, :3].T
        in_epoch = (number >= epoch) & (of_epoch == record.epoch)
        in_phase = (number >= phase) & (of_phase == self.phases.index(record.phase))
        self.epoch_rows = [(row["groups"], row["layers"]) for row in rows[in_epoch]]
        self.evidence = _evidence(rows["layers"][in_phase & ~in_epoch])

        def start_of(step: int) -> Before | None:
            if number[-1] + 1 != record.step:
                return None
            norms = rows["groups"][number == step, GROUP_COLUMNS.index("weight_norm_before")]
            return _weights_before(learner, path.parent, step, norms[0])

        if epoch != record.step:
            self.epoch_start = start_of(epoch)
        if phase != record.step:
            self.phase_start = self.epoch_start if phase == epoch else start_of(phase)


# -------------------------------------------------------------------------------------------- rows


def _group_rows(
    learner: Learner, record: StepRecord, updates: Mapping[str, UpdateSums]
) -> np.ndarray:
    """(columns, groups)"""
    rows = []
    for group, of in zip(learner.groups, record.groups, strict=True):
        sums = total(updates[name] for name in group.parameters)
        rows.append((
            *(of.lr, of.momentum, of.weight_decay, of.frozen),
            *(sums.gradient_norm, sums.weight_norm_before, sums.weight_norm, sums.update_norm),
            *(sums.before_update, sums.gradient_update, sums.gradient_before, sums.cosine),
            *(math.sqrt(sums.decay), math.sqrt(sums.rest), sums.moved, sums.visited),
        ))  # fmt: skip
    return np.array(rows, np.float64).T


def _layer_rows(sums: Mapping[str, UpdateSums]) -> np.ndarray:
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
    """An epoch's columns from those of its steps.

    Shapes: layers (steps, columns, parameters), rates (steps, 3, parameters); travelled: distance
    and changed, (parameters,); out (columns, parameters)
    """
    column = {name: layers[:, i].astype(np.float64) for i, name in enumerate(LAYER_COLUMNS)}
    row: dict[str, Any] = dict(zip(RATES, rates.mean(axis=0), strict=True))
    for name in ("gradient_norm", "update_norm", "decay_norm", "rest_norm"):
        row[name] = np.sqrt(np.square(column[name]).mean(axis=0))
    for name in ("update_ratio", "cosine", "moved"):
        row[name] = column[name].mean(axis=0)
    row["weight_norm"] = column["weight_norm"][-1]
    row["decay_share"] = share(column["decay_norm"], column["rest_norm"]).mean(axis=0)
    row["path"] = column["update_norm"].sum(axis=0)
    row |= travelled
    return np.array([row[name] for name in EPOCH_LAYER_COLUMNS])


def _evidence(layers: np.ndarray) -> np.ndarray:
    """Find what steps gave each parameter to move: gradient, weight decay, momentum.

    Shapes: layers (steps, columns, parameters) -> (3, parameters) bool
    """
    column = {name: layers[:, i] for i, name in enumerate(LAYER_COLUMNS)}
    gradient = column["gradient_norm"] > 0
    rest = column["rest_norm"] > ROUNDING * column["weight_norm"]
    reasons = (gradient, column["decay_norm"] > 0, rest & ~gradient)
    return np.array([of_steps.any(axis=0) for of_steps in reasons])


def _weights_before(learner: Learner, run: Path, step: int, norms: np.ndarray) -> Before | None:
    """The network before a step of the run, if that is still kept or can be made again, and has the
    weights that the ledger saw.

    Shapes: norms (groups,), of each group's weights before that step
    """
    from tinyft.inspection.comparison.snapshots import before_step

    try:
        arrays = before_step(run, step).arrays
    except (TinyftError, OSError):
        return None
    lengths = {n: float(np.linalg.norm(a.astype(np.float64).ravel())) for n, a in arrays.items()}
    of_groups = [
        np.linalg.norm([lengths.get(n, 0.0) for n in g.parameters]) for g in learner.groups
    ]
    return Before(arrays, frozenset()) if np.allclose(of_groups, norms, CONTINUES, atol=0) else None
