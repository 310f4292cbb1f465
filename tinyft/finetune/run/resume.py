"""Going on with a run that was interrupted, so that it ends as if it had not been."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tinyft.data.folder import MovedPictures
from tinyft.data.loader import PictureData
from tinyft.errors import DataError, RunError, TinyftError, WeightsError
from tinyft.finetune.build import vision_learner
from tinyft.finetune.learner import Learner
from tinyft.finetune.plan import Plan
from tinyft.finetune.planning import remade
from tinyft.finetune.run.folder import (
    Run,
    drop_unfinished_files,
    hold,
    versions,
    weights_sha256,
    write_json,
)
from tinyft.finetune.run.reading import (
    LARGEST,
    MaybeMoved,
    checkpoints,
    left_out,
    metrics_lines,
    pictures_of_run,
    read_checkpoint,
    read_description,
)
from tinyft.finetune.run.state import remembered, restore
from tinyft.weights.files import replacing


class Resumed(NamedTuple):
    """The needs of `learner.execute(plan, start=start, observers=[run])` to finish a run."""

    learner: Learner
    plan: Plan
    run: Run
    start: int
    notices: list[str]


class Recreated(NamedTuple):
    """A run's learner at some step: `start` of the plan's steps are done. `progress` is what `Run`
    reports.
    """

    learner: Learner
    plan: Plan
    start: int
    notices: list[str]
    progress: dict[str, Any]


def resume(
    path: str | os.PathLike[str],
    data: MaybeMoved = None,
    device: str | None = None,
    on_error: str = "raise",
) -> Resumed:
    """Go back to the newest checkpoint of the run at `path`, to finish it.

    `data` is the folder that its pictures were moved to, or, where the run was made from arrays in
    memory, those. `device` may be another than the one that the run began on. A run without a
    checkpoint starts anew.

    With on_error="skip" pictures of a folder that are gone or have changed are left out from here
    on, also when the run is resumed again: run.json names them under "left_out". Batches have them
    no more, all other pictures are shown as they would have been.
    Raises: RunError if the run is finished, its data has changed, or it cannot be made again from
    run.json
    """
    if on_error not in ("raise", "skip"):
        raise DataError(f"on_error must be 'raise' or 'skip'; got {on_error!r}")
    path = Path(path)
    read_description(path)  # before anything is written into what is no run
    lock = hold(path)
    try:
        description = read_description(path)
        if description["finished"]:
            raise RunError(f"{path} is finished; there is nothing to resume")
        learner, plan, start, notices, progress = recreate(
            path, data, device=device, skip_lost=on_error == "skip"
        )
        if not progress:
            notices.append("no checkpoint: the run starts anew")
        (path / "checkpoints").mkdir(exist_ok=True)  # some programs do not copy empty folders
        drop_unfinished_files(path)
        _cut_metrics(path / "metrics.csv", description["first_step"], learner.step, notices)
        pictures = learner.data
        if isinstance(pictures, MovedPictures) and pictures.lost:
            since = description.get("left_out", {})
            since = {
                name: min(since.get(name, learner.step), learner.step) for name in pictures.lost
            }
            write_json(path / "run.json", description | {"left_out": since})
            notices.append(f"{pictures.words()}. The run will not end as it would with them")
    except BaseException:
        lock.release()
        raise
    run = Run(path, description["settings"], description["id"], lock=lock, **progress)
    return Resumed(learner, plan, run, start, notices)


def recreate(
    path: str | os.PathLike[str],
    data: MaybeMoved = None,
    last: int | None = None,
    device: str | None = None,
    *,
    skip_lost: bool = False,
) -> Recreated:
    """Make the learner of a run again as its newest checkpoint holds it, or the newest with at most
    `last` steps (in the numbers of metrics.csv), or as it began. Nothing is written.

    Pictures that the run left out before step `last` are left out, and with `skip_lost` those that
    are gone or have changed.
    Raises: RunError if the data has changed, or the run cannot be made again from run.json
    """
    path = Path(path)
    description = read_description(path)
    without = left_out(description, LARGEST if last is None else last)
    with _said_by_run_json(path):
        data = _pictures(path, description["data"]["arguments"], data, without, skip_lost)
    if description["learner"] is None:
        raise RunError(
            f"{path} was trained with a network, head or optimizer of its own; only its caller can "
            "make it again"
        )
    arguments = description["learner"] | ({} if device is None else {"device": device})
    learner = learner_at_start(path, data, arguments)
    # of fewer pictures the class means are others; the run has kept those that it began with
    others = isinstance(data, MovedPictures) and data.lost and arguments["head_init"] == "means"
    if not others and weights_sha256(learner) != description["weights_sha256"]:
        raise RunError(
            f"the weights that {path} began with ({learner.origin.weights}) have changed since, "
            "so it would not end the same; put the file back, or start a new run"
        )
    plan = _plan(path, description, learner)
    now = versions(learner.device)
    notices = [
        f"{name} was {old} and is {now.get(name, 'not used')} now: the bits may differ"
        for name, old in description["versions"].items()
        if now.get(name) != old
    ]
    progress = _restore_newest(path, description, learner, last, notices)
    start = learner.step - description["first_step"]
    if start < 0:
        raise RunError(
            f"{path} began with a learner that was trained before, and its checkpoint is lost; "
            "start a new run"
        )
    since = max((description["left_out"][name] for name in without), default=0)
    if last is not None and learner.step < since:
        raise RunError(
            f"{path} went on without some pictures from step {since} on, and has no checkpoint "
            f"between that step and step {last}, which can therefore not be made again"
        )
    return Recreated(learner, plan, start, notices, progress)


def learner_at_start(path: Path, data: PictureData, arguments: dict[str, Any]) -> Learner:
    """The learner that the run at `path` began with, made again from what run.json says of it.

    Raises: RunError if its weights cannot be read any more
    """
    try:
        with _said_by_run_json(path):
            return vision_learner(data, **arguments)
    except OSError as error:
        raise RunError(
            f"the weights that {path} began with cannot be read: {error}; put the file back"
        ) from None


def _plan(path: Path, description: dict[str, Any], learner: Learner) -> Plan:
    """The plan of the run, made again by its learner. Raises: RunError if it is another"""
    arguments, steps = description["plan"], description["steps"]
    epochs = arguments.get("epochs", 0) + arguments.get("freeze_epochs", 0)
    if epochs <= steps:  # or else it has none for each, and takes too long to be made
        with _said_by_run_json(path):
            plan = remade(learner, arguments, description["first_step"])
        epochs = plan.epochs
        if plan.steps == steps:
            return plan
    raise RunError(f"{path / 'run.json'} is damaged: {epochs} epochs do not have {steps} steps")


@contextlib.contextmanager
def _said_by_run_json(path: Path) -> Iterator[None]:
    """Within this block, an argument that a call refuses is damage of run.json."""
    try:
        yield
    except TinyftError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise RunError(f"{path / 'run.json'} is damaged: {error}") from None


def _pictures(
    path: Path,
    arguments: dict[str, Any],
    data: MaybeMoved,
    without: list[str],
    skip_lost: bool,
) -> PictureData:
    """The data of the run; what the caller gives has to be made as it was."""
    given = data.describe()["arguments"] if isinstance(data, PictureData) else {}
    differing = [name for name in given if name in arguments and given[name] != arguments[name]]
    if differing:
        raise RunError(
            f"{path} was trained with other options of its data; they differ in "
            f"{', '.join(differing)}: make the data as it was, {arguments}"
        )
    otherwise = "put them back as they were, or go on without what is gone or changed: {on_error}"
    return pictures_of_run(path, data, otherwise=otherwise, without=without, skip_lost=skip_lost)


def _restore_newest(
    path: Path, description: dict[str, Any], learner: Learner, last: int | None, notices: list[str]
) -> dict[str, Any]:
    """Restore the newest checkpoint that can be read, of those after at most `last` steps; the
    run's progress until then.

    Raises: OSError for one that the system does not open; an older one would begin more anew than
    has to be
    """
    most = description["first_step"] + description["steps"]
    for step, checkpoint in reversed(checkpoints(path).items()):
        if step > (most if last is None else last):
            continue
        try:
            arrays, values = read_checkpoint(checkpoint, description)
            _expect_whole_memory(learner, remembered(arrays, values))
            restore(learner, arrays, values)
        except WeightsError as error:
            notices.append(f"{checkpoint.name} cannot be read ({error}); an older one is tried")
            continue
        except RunError as error:
            notices.append(f"{checkpoint.name} is not of this run ({error}); an older one is tried")
            continue
        return {
            "best_accuracy": values["best_accuracy"],
            "seconds_before": values["seconds"],
            "epoch_steps": values["epoch_steps"],
        }
    return {}


def _expect_whole_memory(learner: Learner, memory: dict[str, dict[str, Any]]) -> None:
    """Raises: RunError if a checkpoint lacks something that the optimizer remembers"""
    expected = learner.optimizer.remembers
    if expected is not None and any(of_one.keys() != expected for of_one in memory.values()):
        raise RunError(f"the optimizer remembers {', '.join(sorted(expected)) or 'nothing'}")


def _cut_metrics(path: Path, first_step: int, step: int, notices: list[str]) -> None:
    """Drop the lines of steps that will be made again. A file that is none is set aside, and lines
    that are missing are noticed: a power failure may have taken them.
    """
    try:
        lines = metrics_lines(path)
        if lines and lines[0][:4] != ["step", "epoch", "phase", "loss"]:
            raise RunError(f"{path} is damaged: its first line names no steps")
    except RunError as error:
        aside = path.with_name(f"metrics.damaged.{len([*path.parent.glob('metrics.damaged.*')])}")
        path.replace(aside)
        notices.append(f"{error}; it is {aside.name} now")
        lines = []
    head, *rows = lines or [[]]
    kept = [row for row in rows if row[0].isdecimal() and int(row[0]) < step]
    missing = len(set(range(first_step, step)) - {int(row[0]) for row in kept})
    if missing:
        notices.append(f"metrics.csv lacks {missing} of the steps before step {step}")
    if not lines or step == first_step:  # or else its next line would have no head above it
        path.unlink(missing_ok=True)
        return
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([head, *kept])
