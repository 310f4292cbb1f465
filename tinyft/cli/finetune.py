"""`tinyft finetune`: the main job. Say what will be done, do it, show what came of it.

A run is a folder. Ctrl-C ends it after the step in progress with a checkpoint; `--resume` goes on
from there, and ends as if nothing had happened.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from tinyft.cli.failures import RequestError, Stopped, interrupt, stopping
from tinyft.cli.opening import (
    continued_learner,
    describe_backend,
    make_learner,
    make_plan,
    refuse_contradictions,
    resume_command,
)
from tinyft.cli.options import Parser, add_json, add_moved, add_training_options, given, keep
from tinyft.cli.output import RunLines, accuracies, answer, one_line, percent, say
from tinyft.display import counted, duration

if TYPE_CHECKING:
    from tinyft.data.loader import PictureData
    from tinyft.finetune import Learner, Plan
    from tinyft.finetune.loop import Observer
    from tinyft.finetune.run.folder import Run

HELP = "fine-tune a pretrained network on a folder of pictures"
EXAMPLE = """\
tinyft finetune
tinyft finetune photos/ --weights resnet18.pth --epochs 3
tinyft finetune --resume runs/photos-resnet18-1
tinyft finetune --continue runs/photos-resnet18-1 --epochs 5"""


def add_options(parser: Parser) -> None:
    add_training_options(parser)
    parser.add_argument("--out", metavar="RUN", help="the run's folder (runs/DIR-ARCH-NUMBER)")
    what = "checkpoints that stay: those of all epochs, up to 1 GiB, of the last, or of N (all)"
    parser.add_argument("--keep", type=keep, metavar="all|last|N", help=what)
    resume = parser.add_mutually_exclusive_group().add_argument
    what = "go on with a run that was interrupted; --on-error skip: without pictures lost since"
    resume("--resume", metavar="RUN", help=what)
    what = "train what a run ended with further, in a new run: on its pictures, or on DIR"
    resume("--continue", metavar="RUN", dest="continue_run", help=what)
    add_moved(parser, "with --resume: ")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.resume is None:
        if args.data is not None:
            raise RequestError("--data is for --resume; a new run takes its pictures as DIR")
        is_sample = args.dir is None and args.continue_run is None
        learner = continued_learner(args) if args.continue_run else make_learner(args)
        plan = make_plan(args, learner)
        _announce(learner, plan)
        learner.own_data().expect_whole(learner.preprocess)
        training = _create_run(args, learner)
        _train(args, learner, plan, training, 0)
        if is_sample:
            say("and with your own pictures, in a folder for each class: tinyft finetune photos/")
    else:
        _resume(args)
    return 0


def _resume(args: argparse.Namespace) -> None:
    """Rebuild the run from its folder, go back to its newest checkpoint, go on."""
    from tinyft.finetune.run.resume import resume

    path = Path(args.resume)
    refuse_contradictions(args, path)
    on_error = args.on_error or "raise"
    learner, plan, training, start, notices = resume(path, args.data, args.backend, on_error)
    if start and not any(path.glob("ledger.*")):
        notices.append("the steps before are in no ledger; it begins with this session")
    for notice in notices:
        say(f"note: {one_line(notice)}")
    _announce(learner, plan)
    say(f"{start} of {plan.steps} steps were made before")
    _train(args, learner, plan, training, start)


def _announce(learner: Learner, plan: Plan) -> None:
    from tinyft.finetune.in_words import story

    say(story(plan))
    say(describe_backend(learner.device))


def _train(
    args: argparse.Namespace, learner: Learner, plan: Plan, training: Run, start: int
) -> None:
    """Execute the plan into the run's folder, and report."""
    from tinyft.inspection import Ledger

    say(f"run: {one_line(str(training.path))}\n")
    args.on_interrupt = f"; go on with: {resume_command(training.path)}"
    args.working = True
    with noted_signals(training) as received:
        try:
            # The run comes last: where it ends a session, the others have seen the step.
            observers: list[Observer[Learner]] = [Ledger(training.path), RunLines(), training]
            learner.execute(plan, observers=observers, start=start, progress=False)
        except KeyboardInterrupt:
            raise Stopped(received[0] if received else signal.SIGINT) from None
    _report(args, learner, training)


def _report(args: argparse.Namespace, learner: Learner, training: Run) -> None:
    """Say where it ended, where it is, and what to type next."""
    from tinyft.finetune.run.reading import read_metrics

    args.on_interrupt = ""  # there is nothing to go on with
    last, data = learner.validation, learner.own_data()
    assert last is not None  # with which its last epoch ended
    figures = {
        "valid_accuracy": last.accuracy,
        "valid_balanced_accuracy": last.balanced_accuracy,
        "valid_loss": last.loss,
        "seconds": training.seconds,
        "run": str(training.path),
        "n_valid": last.n,
        "best_valid_accuracy": training.best_accuracy,
    }
    text = (
        f"{accuracies(last)}, loss {last.loss:.4f} on {counted(last.n, 'picture')} after "
        f"{duration(training.seconds)}; saved in {one_line(str(training.path))}"
    )
    answer(args, text, figures)
    metrics = read_metrics(training.path / "metrics.csv")
    if compared := comparison(metrics, last.accuracy, data):
        say(compared)
    run = str(training.path)
    say("\nnext, what it says of a picture, all of the run on one page, and one step taken apart:")
    for command in (
        ["predict", run, str(data.source("valid", 0))],
        ["report", run],
        ["inspect", run, "--step", str(learner.step // 2)],
    ):
        say(f"  {one_line(shlex.join(['tinyft', *command]))}")


def comparison(metrics: dict[str, Any], accuracy: float, data: PictureData) -> str:
    """The accuracy beside that of the head alone and that of guessing, or of always naming the
    largest class, from all of a run's `read_metrics`; "" if there is nothing to compare.
    """
    from tinyft.finetune.schedule import HEAD_ALONE

    judged = zip(metrics["phase"], metrics["valid_accuracy"], strict=True)
    of_head = [found for phase, found in judged if phase == HEAD_ALONE and not math.isnan(found)]
    if not of_head or metrics["phase"][-1] == HEAD_ALONE:
        return ""
    before, chance = of_head[-1], 1 / data.num_classes
    name, largest = data.always_largest()
    nothing = f"guessing: {percent(chance)}"
    if largest > chance:
        nothing = f"always naming {name}, the largest class: {percent(largest)}"
    advice = "; it has learnt nothing: try more --epochs, or a --lr from `tinyft lr-find`"
    return (
        f"the head alone had {percent(before)}; training everything made it {percent(accuracy)} "
        f"({nothing}){advice if accuracy <= max(largest, chance) else ''}"
    )


# ------------------------------------------------------------------------------- the run's folder


def _create_run(args: argparse.Namespace, learner: Learner) -> Run:
    """The folder that was asked for, or the next free one."""
    from tinyft.errors import RunError
    from tinyft.finetune.run.folder import Run

    settings = {"command": ["tinyft", *args.arguments], **given(args, ("keep",))}
    try:
        folder = _next_folder(learner) if args.out is None else args.out
        return Run.create(folder, **settings)
    except (RunError, OSError) as error:
        raise RequestError(f"the run cannot be written: {error}") from error


def _next_folder(learner: Learner) -> Path:
    """A new folder runs/DATA-ARCH-NUMBER. Making it is what reserves it, so that two processes
    never share one.
    """
    from tinyft.data import ImageFolder

    data = learner.own_data()
    assert isinstance(data, ImageFolder)  # as all that a command opens
    name = re.sub(r"[^\w.-]+", "_", Path(os.path.abspath(data.path)).name) or "data"
    stem = f"{name}-{learner.arch}-"
    Path("runs").mkdir(exist_ok=True)
    numbers = [path.name.removeprefix(stem) for path in Path("runs").glob(f"{stem}*")]
    number = max((int(n) for n in numbers if n.isdecimal()), default=0)
    while True:
        number += 1
        with contextlib.suppress(FileExistsError):
            folder = Path("runs", f"{stem}{number}")
            folder.mkdir()
            return folder


@contextlib.contextmanager
def noted_signals(training: Run) -> Iterator[list[int]]:
    """Ask the run to stop after its step at Ctrl-C or SIGTERM; the second one stops it at once.

    Yields a list of the signals that have come, as their numbers.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        training.stop_requested = True
        if len(received) > 1:
            interrupt(number, frame)
            return
        say("\nstopping after this step, with a checkpoint; once more stops at once")

    before = {number: signal.signal(number, stop) for number in stopping()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
