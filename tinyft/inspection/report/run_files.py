"""All that a run left behind, read for its report: whatever is missing is a sentence, not an error.

A run may be unfinished, its pictures moved, its head somebody's own, its ledger not kept. Each of
those costs the report one section, which then says why.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyft.data.loader import PictureData
from tinyft.errors import RunError, TinyftError
from tinyft.finetune.build import load_learner
from tinyft.finetune.run.reading import (
    MaybeMoved,
    left_out,
    pictures_of_run,
    read_description,
    read_metrics,
)
from tinyft.inspection.comparison.diff import Diff, diff_run
from tinyft.inspection.ledger.file import FILE_NAME
from tinyft.inspection.ledger.ledger import Ledger
from tinyft.inspection.ledger.reading import LedgerReading
from tinyft.inspection.report.learned import Judgements, judge_pictures

if TYPE_CHECKING:
    from tinyft.finetune.learner import Learner

REPORTED = {"phase", "loss", "smooth_loss", "valid_loss"}  # columns of metrics.csv
NETWORKS = ("learner.h5", "best.h5")  # the last one; of an unfinished run, its best epoch's


@dataclass
class RunFiles:
    """A run as its report needs it. `missing` says why a part is None, by the part's name;
    `judged_file` which of the run's networks `learner` is.

    `metrics` has the columns of metrics.csv, see `read_metrics`.
    """

    path: Path
    description: dict[str, Any]
    metrics: dict[str, Any]
    ledger: LedgerReading | None = None
    judged_file: str = ""
    learner: Learner | None = None
    judged: Judgements | None = None
    changes: Diff | None = None
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], data: MaybeMoved = None, *, device: str = "auto"
    ) -> RunFiles:
        """Read the run at `path`; its network judges its validation pictures again.

        `data` is as in `write_report`.
        Raises: RunError if it is no run or has made no step
        """
        path = Path(path)
        description, metrics = read_description(path), read_metrics(path / "metrics.csv")
        if not len(metrics.get("step", ())) or not set(metrics) >= REPORTED:
            raise RunError(f"{path} has no step to report yet: its metrics.csv is missing or empty")
        run = cls(path, description, metrics)
        run.ledger = run._part("ledger", lambda: _ledger(path))
        pictures = run._part("pictures", lambda: _pictures(path, data))
        for name in [n for n in NETWORKS if (path / n).exists()] or [""]:
            run.judged_file = name
            run.learner = run._part("learner", partial(_learner, path, name, device))
            if run.learner is not None:
                break
        if run.learner is not None and pictures is not None:
            run.learner.data = pictures
            run.judged = run._part("judged", partial(judge_pictures, run.learner))
        run.changes = run._part("changes", lambda: diff_run(path, pictures, device=device))
        if run.changes is not None and pictures is None:
            reason = run.missing["pictures"]
            run.changes.notices.append(f"features are not compared: {reason}")
        return run

    def _part(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` returns, or None and note why."""
        try:
            return make()
        except (TinyftError, OSError, ValueError) as error:
            # its remedy is an argument of a call that nobody made
            self.missing[name] = error.message if isinstance(error, TinyftError) else str(error)
            return None

    @property
    def steps(self) -> np.ndarray:
        """The numbers of the steps that were made: (steps,) float"""
        return self.metrics["step"]

    @property
    def groups(self) -> list[str]:
        """The layer groups' names, first to last."""
        return [name.removeprefix("lr ") for name in self.metrics if name.startswith("lr ")]

    @property
    def borders(self) -> list[tuple[float, str]]:
        """The first step of each phase and the phase's name, as charts mark them."""
        names = self.metrics["phase"]
        starts = [i for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
        return [(float(self.steps[start]), names[start]) for start in starts]


def _ledger(path: Path) -> LedgerReading:
    if not (path / FILE_NAME).exists():
        raise RunError("this run kept no ledger, so norms of gradients and updates are not known")
    return Ledger.read(path)


def _learner(path: Path, name: str, device: str) -> Learner:
    if not name:
        raise RunError("no epoch has ended with a finite loss, so there is no network to judge yet")
    return load_learner(path / name, device=device)


def _pictures(path: Path, data: MaybeMoved) -> PictureData:
    with warnings.catch_warnings(action="ignore"):  # they were said when the run began
        return pictures_of_run(path, data, without=left_out(read_description(path)))
