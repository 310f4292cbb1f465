"""`tinyft evaluate`: accuracy and loss of a trained network on a folder of pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tinyft.cli.failures import RequestError
from tinyft.cli.opening import open_folder, open_trained
from tinyft.cli.options import LABELS, Parser, add_backend, add_json, add_reading_options, given
from tinyft.cli.output import answer, one_line, percent, say
from tinyft.errors import RunError

if TYPE_CHECKING:
    from tinyft.data import PictureData
    from tinyft.finetune import Learner
    from tinyft.weights import Weights

HELP = "measure accuracy and loss of a trained network on pictures"
EXAMPLE = """\
tinyft evaluate runs/photos-resnet18-1 more_photos/
tinyft evaluate resnet20.h5 cifar10/"""

ALL = {"valid_fraction": 1.0}  # of a folder without a split


def add_options(parser: Parser) -> None:
    parser.add_argument(
        "source", metavar="RUN|WEIGHTS", help="a run's folder, a saved learner, or a weights file"
    )
    parser.add_argument(
        "dir", metavar="DIR", nargs="?", help="CLASS/*.jpg: all, or with a split its validation "
        "part (default: the run's own)",
    )  # fmt: skip
    parser.add_argument("--best", action="store_true", help="the run's best epoch, not its last")
    add_reading_options(parser, "; of a run's own pictures as in the run")
    add_backend(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    learner = open_trained(
        args.source,
        best=args.best,
        device=args.backend or "auto",
        name_classes=lambda weights: _names_from_folder(weights, args),
    )
    data = _data(args, learner)
    args.working = True
    found = learner.evaluate(data)
    wrong = found.n - round(found.accuracy * found.n)
    text = (
        f"accuracy {percent(found.accuracy)}, error {percent(1 - found.accuracy)} ({wrong} wrong "
        f"of {found.n}), loss {found.loss:.4f}"
    )
    answer(args, text, found)
    return 0


def _data(args: argparse.Namespace, learner: Learner) -> PictureData:
    """The folder's pictures, or those that the run set aside."""
    options, labels = given(args, ("batch_size", "on_error")), given(args, LABELS)
    if labels:
        return open_folder(_folder(args), classes=learner.classes, **ALL, **options, **labels)
    if args.dir is not None:
        from tinyft.data.split import find_parts

        valid = find_parts(Path(args.dir)).get("valid")
        if valid is not None:
            say(f"of {one_line(args.dir)}, the pictures in {valid.name}/")
        return open_folder(args.dir, classes=learner.classes, **ALL, **options)
    if not Path(args.source).is_dir():
        raise RequestError("which pictures? Only a run has its own; give a folder")
    from tinyft.finetune.run.reading import pictures_of_run

    try:
        return pictures_of_run(
            args.source,
            otherwise=", so its validation part may now hold pictures that it has learnt",
            **options,
        )
    except RunError as error:
        raise RequestError(f"{error}; give a folder of others") from None


def _folder(args: argparse.Namespace) -> str:
    if args.dir is None:
        raise RequestError("which pictures? Give a folder: tinyft evaluate WEIGHTS DIR")
    return args.dir


def _names_from_folder(weights: Weights, args: argparse.Namespace) -> list[str]:
    """The class names of weights: their own if the folder uses them, else the folder's, sorted.

    Raises: RequestError if neither fits
    """
    from tinyft.data.split import find_parts, scan_part

    path = _folder(args)
    if labels := given(args, LABELS):
        names = open_folder(path, **ALL, **labels).classes
    else:
        parts = find_parts(Path(path)).values()
        names = sorted({name for part in parts for name in scan_part(part).pictures})
    if weights.classes and set(names) <= set(weights.classes):
        return weights.classes
    if not weights.num_classes:
        remedy = ""
        if any(name.startswith("head.") for name in weights.arrays):
            remedy = "; their head is tinyft's, so give the learner.h5 that they came from"
        raise RequestError(f"these weights have no classifier (fc.weight and fc.bias){remedy}")
    if len(names) != weights.num_classes:
        raise RequestError(
            f"{path} has {len(names)} classes and the weights tell {weights.num_classes} apart: "
            "each class needs a folder, and their sorted names stand for the network's classes"
        )
    say(f"the sorted names of the folders stand for the {len(names)} classes of the weights")
    return names
