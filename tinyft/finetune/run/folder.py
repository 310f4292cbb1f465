"""A run on disk: what was asked, what happened, and from where it can go on.

    pictures.csv  split, class, sha256 and name of each picture; written first
    run.json      command, settings, versions, plan; written next
    metrics.csv   a line a step
    checkpoints/  STEP.h5: one a minute, of which the newest stays, and each epoch's within a budget
    learner.h5    the learner at the end; best.h5 the one of the best epoch

Every file but metrics.csv is written under another name and renamed, so that a kill leaves the old
one whole.
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import re
import secrets
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyft import backends
from tinyft.errors import RunError
from tinyft.finetune.groups import digests, grouping_of
from tinyft.finetune.in_words import decay, phases
from tinyft.finetune.plan import Plan
from tinyft.finetune.planning import is_made_by_its_arguments
from tinyft.finetune.records import StepRecord
from tinyft.finetune.run.reading import (
    CHECKPOINT,
    FORMAT,
    PICTURES,
    checkpoints,
    listing_sha256,
    read_description,
)
from tinyft.finetune.run.save import expect_savable, save
from tinyft.finetune.run.state import capture
from tinyft.finetune.training import Training, listed_class_weights
from tinyft.version import __version__, installed
from tinyft.weights import write_arrays
from tinyft.weights.files import flush_to_disk, replacing

if TYPE_CHECKING:
    from filelock import BaseFileLock

SECONDS_BETWEEN_CHECKPOINTS = 60.0
EPOCH_CHECKPOINT_BYTES = 1 << 30  # older epochs' checkpoints are dropped beyond this


@dataclass
class Run:
    """A run folder, as an observer of the learner that trains into it."""

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: secrets.token_hex(8))  # its checkpoints name it
    started: float = field(default_factory=time.monotonic)
    seconds_before: float = 0.0  # of the sessions before this one, when resumed
    best_accuracy: float = -1.0
    best_step: int = -1  # after which best.h5 was written in this session, and its words
    best_words: str = ""
    stop_requested: bool = False  # set by a signal handler: finish the step, save, stop
    lines_due: list[StepRecord] = field(default_factory=list)  # of metrics.csv
    epoch_steps: list[int] = field(default_factory=list)  # where epochs end; their checkpoints stay
    lock: BaseFileLock | None = None  # see `hold`

    @classmethod
    def create(cls, path: str | os.PathLike[str], **settings: Any) -> Run:
        """A new run folder. Raises: RunError if it exists and is not empty"""
        path = Path(path)
        _expect_free(path)
        path.mkdir(parents=True, exist_ok=True)
        lock = hold(path)
        try:
            _expect_free(path)  # another process may have begun, and ended, since
            drop_unfinished_files(path)
            (path / "checkpoints").mkdir(exist_ok=True)
        except BaseException:
            lock.release()
            raise
        return cls(path, settings, lock=lock)

    def begin(self, training: Training, plan: Plan) -> None:
        """Write run.json, unless the run goes on.

        Raises: ValueError if what it will save at its end is no file's to hold
        """
        expect_savable(training)
        if self.lock is None or not self.lock.is_locked:  # its session before this one has ended
            self.lock = hold(self.path)
        self.last_checkpoint = time.monotonic()
        if not (self.path / "run.json").exists():
            self.describe(training, plan)
            # trained or filled by hand before this run: a resumed one cannot begin at the file's
            if training.step or training.origin.digests != digests(training.model):
                self.checkpoint(training, keep=True)

    def describe(self, training: Training, plan: Plan) -> None:
        """Write pictures.csv and run.json."""
        data = training.own_data()
        pictures = data.listing()
        with replacing(self.path / PICTURES) as temporary:
            temporary.write_text(pictures, encoding="utf-8", errors="backslashreplace", newline="")
        description = {
            "format": FORMAT,
            "id": self.id,
            "settings": self.settings,
            "arch": training.arch,
            "weights_sha256": weights_sha256(training),
            "learner": arguments_of(training),
            "data": data.describe() | {"sha256": listing_sha256(pictures)},
            "plan": plan.arguments if is_made_by_its_arguments(plan, training) else {},
            "first_step": training.step,
            "steps": plan.steps,
            "plan_text": str(plan),
            "plan_in_words": {"phases": [*map(asdict, phases(plan))], "decay": decay(plan)},
            "classes": training.classes,
            "versions": versions(training.device),
            "finished": False,
        }
        write_json(self.path / "run.json", description)

    def after_step(self, training: Training, record: StepRecord) -> None:
        due = time.monotonic() - self.last_checkpoint > SECONDS_BETWEEN_CHECKPOINTS
        if due or self.stop_requested:  # what a checkpoint has behind it must be in metrics.csv
            training.read_losses()
        self._append(record)
        if record.validation and record.validation.accuracy > self.best_accuracy:
            self.best_accuracy = record.validation.accuracy
            self.best_step = training.step
            self.best_words = f"epoch {record.epoch} of {self.path.name}"
            # without what tells strangers, or each epoch would take a fifth longer; see `end`
            save(training, self.path / "best.h5", training=self.best_words, known=False)
        if record.validation or due or self.stop_requested:
            self.checkpoint(training, keep=record.validation is not None)
        if self.stop_requested:
            raise KeyboardInterrupt

    def end(self, training: Training) -> None:
        """Save the learner, and say in run.json that the run is complete."""
        save(training, self.path / "learner.h5", training=f"run {self.path.name}")
        if self.best_step == training.step:  # the last epoch is the best, and knows strangers too
            save(training, self.path / "best.h5", training=self.best_words)
        last = training.validation
        assert last is not None  # a run has an epoch at least, which ended with it
        description = read_description(self.path)
        description["finished"] = True
        description["seconds"] = round(self.seconds, 3)
        description["result"] = {
            "valid_accuracy": last.accuracy,
            "valid_loss": last.loss,
            "best_valid_accuracy": self.best_accuracy,
        }
        write_json(self.path / "run.json", description)

    def release(self) -> None:
        """Let others work on the run."""
        if self.lock is not None:
            self.lock.release()

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken, earlier sessions included."""
        return self.seconds_before + time.monotonic() - self.started

    def checkpoint(self, training: Training, keep: bool = False) -> None:
        """Write the learner's state, then drop what it replaces."""
        if keep:
            self.epoch_steps.append(training.step)
        arrays, values = capture(training)
        values |= {
            "run": self.id,
            "preprocess": training.adjusted_preprocess().to_dict(),
            "best_accuracy": self.best_accuracy,
            "seconds": self.seconds,
            "epoch_steps": self.epoch_steps,
        }
        if (metrics := self.path / "metrics.csv").exists():
            flush_to_disk(metrics)  # or a power failure leaves fewer lines than steps
        name = f"{training.step:06}.h5"
        write_arrays(
            self.path / "checkpoints" / name,
            CHECKPOINT,
            arrays,
            texts={"state": json.dumps(values)},
        )
        self.last_checkpoint = time.monotonic()
        self._drop_old(name)

    def _drop_old(self, newest: str) -> None:
        """Keep the newest checkpoint and, newest first, those of epochs, as many as the setting
        `keep` says ("all", "last" or a number), while they fit the budget.
        """
        kept, keep = 0, self.settings.get("keep", "all")
        epochs = {"all": math.inf, "last": 1}[keep] if isinstance(keep, str) else keep
        for step, path in reversed(checkpoints(self.path).items()):
            with_it = kept + path.stat().st_size
            fits = step in self.epoch_steps and with_it <= EPOCH_CHECKPOINT_BYTES and epochs > 0
            if path.name == newest or fits:
                kept, epochs = with_it, epochs - (step in self.epoch_steps)
            else:
                path.unlink()

    def _append(self, record: StepRecord) -> None:
        """A line of metrics.csv; as long as its loss is on the device, the line waits."""
        self.lines_due.append(record)
        if not record.is_fetched:
            return
        path = self.path / "metrics.csv"
        rows = [metrics_row(record) for record in self.lines_due]
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            if is_new:
                writer.writeheader()
            writer.writerows(rows)
        self.lines_due.clear()


def metrics_row(record: StepRecord) -> dict[str, Any]:
    """Make the line of metrics.csv for a step."""
    validation = record.validation
    return {
        "step": record.step,
        "epoch": record.epoch,
        "phase": record.phase,
        "loss": record.loss,
        "smooth_loss": record.smooth_loss,
        **{f"lr {group.name}": group.lr for group in record.groups},
        "momentum": record.groups[0].momentum,
        "valid_loss": validation.loss if validation else "",
        "valid_accuracy": validation.accuracy if validation else "",
    }


def settings_of(training: Training) -> dict[str, Any]:
    """Collect what a caller may set after `vision_learner` has made a learner, but for weights."""
    names = ("bn", "seed", "dtype", "label_smoothing", "mirrored", "preprocess", "classes")
    numbers = bool | int | float
    optimizer = {n: v for n, v in vars(training.optimizer).items() if isinstance(v, numbers)}
    return {
        **{name: getattr(training, name) for name in names},
        "shows_whole_squares": training.own_data().shows_whole_squares,
        "class_weights": listed_class_weights(training),
        "optimizer": type(training.optimizer),
        "optimizer's": optimizer,
        "batch norms": [(norm.momentum, norm.eps) for norm in training.batch_norms],
        "undecayed": {name for group in training.groups for name in group.undecayed},
        "of norms": {name for group in training.groups for name in group.norm_parameters},
        "loss": getattr(training.loss, "__func__", training.loss),
        "dropout": [dropout.probability for dropout in training.dropouts],
    }


def arguments_of(training: Training) -> dict[str, Any] | None:
    """Return the arguments of `vision_learner`; None if they would not make this learner again."""
    arguments = training.origin.arguments
    if arguments is None or training.origin.settings != settings_of(training):
        return None
    return arguments | {"groups": grouping_of(training.model, training.groups)}


def weights_sha256(training: Training) -> str:
    """The hash of the arrays, or else of the file, that the body came from; empty for random
    weights.
    """
    metadata = training.origin.metadata
    return str(metadata.get("content_sha256") or metadata.get("source_sha256") or "")


def versions(device: str = "auto") -> dict[str, str]:
    """Collect the versions that the bits of a run on that backend may depend on."""
    packages = ("numpy", "numba", "llvmlite", "pillow")
    return {
        "tinyft": __version__,
        **{name: installed(name) or "not installed" for name in packages},
        "python": platform.python_version(),
        "processor": _processor(),
        **backends.numerics(device),
    }


def _processor() -> str:
    """The processor's model where the system tells it (Linux), else its family."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def hold(path: Path) -> BaseFileLock:
    """The lock of the run at `path`, which only one at a time has who writes into it. It ends with
    `release`, and with the process.

    Raises: RunError if another has it; OSError if the folder cannot be written
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path / ".lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(
            f"another process is at work on {path}, or a Run of this one is; wait for its end, or "
            "call its `release`"
        ) from None
    except NotImplementedError:  # of a file system that has no locks
        pass
    return lock


def _expect_free(path: Path) -> None:
    """Raises: RunError unless `path` can become a run: nothing is there, or an empty folder, or
    what a run leaves that was killed, or whose disk was full, before it had written run.json
    """
    if not path.exists():
        return
    left = {file.name for file in path.rglob("*")} if path.is_dir() else {path.name}
    part = re.compile(r"\.(run\.json|pictures\.csv)\.\w+\.part")
    first = {"checkpoints", ".lock", PICTURES, *filter(part.fullmatch, left)}
    if not path.is_dir() or not left <= first:
        raise RunError(f"{path} exists already; give another folder, or resume it")


def drop_unfinished_files(path: Path) -> None:
    """Delete what a kill left half written; see `replacing` in tinyft/weights/files.py."""
    for file in (*path.glob(".*.part"), *path.glob("checkpoints/.*.part")):
        file.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a JSON file whole."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """A NumPy number or array as JSON holds it."""
    return value.tolist()
