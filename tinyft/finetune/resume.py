"""Going on with a run that was interrupted, so that it ends as if it had not been.

Next: tinyft/cli/finetune.py
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

from tinyft.data import ImageFolder
from tinyft.data.loader import PictureData
from tinyft.errors import RunError, WeightsError
from tinyft.finetune.build import vision_learner
from tinyft.finetune.learner import Learner
from tinyft.finetune.plan import Plan
from tinyft.finetune.run import CHECKPOINT, Run, read_description, versions, weights_sha256
from tinyft.finetune.state import restore


def resume(
    path: str | os.PathLike[str], data: PictureData | None = None
) -> tuple[Learner, Plan, Run, int, list[str]]:
    """What `learner.execute(plan, start=start, observers=[run])` needs to finish the run at
    `path`, and notices.

    `data` is needed where the run was made from arrays in memory. A run without a checkpoint
    starts anew.
    Raises: RunError if the run is finished, its data has changed, or it cannot be made again from
    run.json
    """
    path = Path(path)
    description = read_description(path)
    if description["finished"]:
        raise RunError(f"{path} is finished; there is nothing to resume")
    data = _data(path, description["data"], data)
    if description["learner"] is None:
        raise RunError(
            f"{path} was trained with a network or head of its own; only its caller can go on"
        )
    learner = vision_learner(data, **description["learner"])
    plan = _plan(learner, **description["plan"])
    _check_weights(path, description["weights_sha256"], learner)
    _drop_unfinished_files(path)
    run = Run(path, description["settings"])
    notices = [
        f"{name} was {old} and is {versions()[name]} now: the bits may differ"
        for name, old in description["versions"].items()
        if versions().get(name) != old
    ]
    start = _restore_newest(path, learner, run, notices) - description["first_step"]
    if start < 0:
        raise RunError(
            f"{path} began with a learner that was trained before, and its checkpoint is lost; "
            "start a new run"
        )
    _cut_metrics(path / "metrics.csv", learner.step)
    return learner, plan, run, start, notices


def _plan(learner: Learner, method: str, **arguments: Any) -> Plan:
    """The run's plan, made again."""
    makers = {"plan": learner.plan, "one_cycle_plan": learner.one_cycle_plan}
    return makers[method](**arguments)


def _data(path: Path, described: dict[str, Any], data: PictureData | None) -> PictureData:
    """The data of the run, checked to be the same."""
    if data is None:
        if described["kind"] != "folder":
            raise RunError(f"{path} was trained on arrays in memory; pass them as data=")
        data = ImageFolder(**described["arguments"])
    found = data.describe()
    differing = [
        name for name, value in described["arguments"].items() if found["arguments"][name] != value
    ]
    if differing:
        raise RunError(
            f"{path} was trained with other options of its data; they differ in "
            f"{', '.join(differing)}: make the data as it was, {described['arguments']}"
        )
    if found["sha256"] != described["sha256"]:
        raise RunError(
            f"the pictures of {path} have changed since it began, so it would not end the same; "
            "start a new run"
        )
    return data


def _check_weights(path: Path, recorded: str, learner: Learner) -> None:
    """Raises: RunError if the weights file was exchanged"""
    if weights_sha256(learner) != recorded:
        raise RunError(
            f"the weights that {path} began with ({learner.facts['weights']}) have changed since, "
            "so it would not end the same; put the file back, or start a new run"
        )


def _drop_unfinished_files(path: Path) -> None:
    """Delete what a kill left half written; see `replacing` in tinyft/weights/files.py."""
    for file in (*path.glob(".*.part"), *path.glob("checkpoints/.*.part")):
        file.unlink(missing_ok=True)


def _restore_newest(path: Path, learner: Learner, run: Run, notices: list[str]) -> int:
    """Restore the newest checkpoint that can be read; the number of steps that are done."""
    from tinyft.weights import read_arrays

    for checkpoint in sorted((path / "checkpoints").glob("*.h5"), reverse=True):
        try:
            arrays, _, texts = read_arrays(checkpoint, CHECKPOINT)
        except (WeightsError, OSError) as error:
            notices.append(f"{checkpoint.name} cannot be read ({error}); an older one is used")
            continue
        values = json.loads(texts["state"])
        restore(learner, arrays, values)
        run.best_accuracy, run.seconds_before = values["best_accuracy"], values["seconds"]
        run.epoch_steps = values["epoch_steps"]
        return learner.step
    notices.append("no checkpoint: the run starts anew")
    return 0


def _cut_metrics(path: Path, steps: int) -> None:
    """Drop the lines of steps that will be made again."""
    from tinyft.weights.files import replacing

    if steps == 0:
        path.unlink(missing_ok=True)
    if not path.exists():
        return
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    whole = [row for row in rows if len(row) == len(head) and row[0].isdigit()]
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([head, *(row for row in whole if int(row[0]) < steps)])
