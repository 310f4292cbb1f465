"""`tinyft predict`: the classes of pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tinyft.cli.failures import RequestError
from tinyft.cli.opening import open_trained
from tinyft.cli.options import Parser, add_backend, add_json
from tinyft.cli.output import answer, one_line, percent, say
from tinyft.errors import DataError

if TYPE_CHECKING:
    from tinyft.weights import Weights

HELP = "say what is in pictures, with a network that was trained"
EXAMPLE = "tinyft predict runs/photos-resnet18-1 rose.jpg tulip.jpg"


def add_options(parser: Parser) -> None:
    parser.add_argument("source", metavar="RUN", help="a run's folder, a saved learner, weights")
    parser.add_argument("files", metavar="FILE", nargs="+", help="pictures, or folders of them")
    parser.add_argument("--best", action="store_true", help="the run's best epoch, not its last")
    parser.add_argument("--on-error", choices=("raise", "skip"), help="for unreadable pictures")
    add_backend(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    files = [file for name in args.files for file in _pictures(Path(name))]
    learner = open_trained(
        args.source, best=args.best, device=args.backend or "auto", name_classes=_numbers
    )
    readable = _readable(files, skip=args.on_error == "skip")
    args.working = True
    predictions = learner.predict(readable)
    lines = [
        f"{percent(found.probability):>8}  {one_line(found.label)}  {one_line(found.file)}"
        for found in predictions
    ]
    parts = ("file", "label", "probability")
    plain = [{part: getattr(found, part) for part in parts} for found in predictions]
    answer(args, "\n".join(lines), plain)
    return 0


def _readable(files: list[Path], skip: bool) -> list[Path]:
    """The pictures that can be read; others are named, and left out if `skip`.

    Raises: DataError for the first that cannot be read, unless `skip`
    """
    from tinyft.data.folder import unreadable

    bad = unreadable(files, whole=True, workers=2)  # all that are bad, before one is judged
    for file, reason in bad.items():
        if not skip:
            raise DataError(f"{file}: {reason}; leave it out, or use --on-error skip")
        say(f"note: skipped {one_line(str(file))}: {one_line(reason)}")
    return [file for file in files if file not in bad]


def _pictures(path: Path) -> list[Path]:
    """The file itself, or all pictures below a folder."""
    from tinyft.data.split import Scan, pictures_below

    if not path.is_dir():
        return [path]
    found = pictures_below(path, Scan())
    if not found:
        raise RequestError(f"there are no pictures in {path}")
    return found


def _numbers(weights: Weights) -> list[str]:
    """The file's class names; numbers where it has none."""
    return weights.classes or [str(i) for i in range(weights.num_classes or 0)]
