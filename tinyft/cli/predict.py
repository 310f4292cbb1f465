"""`tinyft predict`: the classes of pictures, each said as soon as it is known: as lines, as JSON,
as a CSV file that a second run goes on with, or as copies in a folder for each class.
"""

from __future__ import annotations

import argparse
import csv
import filecmp
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tinyft.cli.failures import RequestError
from tinyft.cli.opening import open_trained
from tinyft.cli.options import Parser, add_backend, add_json, expect_replaceable, whole
from tinyft.cli.output import one_line, percent, plain, result, say
from tinyft.display import counted
from tinyft.errors import DataError
from tinyft.progress import tracked

if TYPE_CHECKING:
    from tinyft.finetune.records import Prediction

HELP = "say what is in pictures, with a network that was trained"
EXAMPLE = """\
tinyft predict runs/photos-resnet18-1 rose.jpg tulip.jpg
tinyft predict runs/photos-resnet18-1 unsorted/ --top 3 --csv found.csv
tinyft predict runs/photos-resnet18-1 unsorted/ --sort-into sorted/ --copy"""

UNLIKE = "unlike the training pictures"  # the folder of these


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("source", metavar="RUN", help="a run's folder, a saved learner, weights")
    add("files", metavar="FILE", nargs="+", help="pictures, or folders of them")
    add("--top", type=whole(1), default=1, metavar="N", help="classes to name of each picture (1)")
    add("--csv", metavar="FILE", help="write a table; pictures that it has already are left out")
    into = "say into which class's folder in DIR each picture would be copied"
    add("--sort-into", metavar="DIR", help=into)
    add("--copy", action="store_true", help="with --sort-into: copy them; replaces no file")
    add("--best", action="store_true", help="the run's best epoch, not its last")
    add(
        "--on-error",
        choices=("raise", "skip"),
        help="stop at unreadable pictures, or leave them out (raise)",
    )
    add_backend(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from tinyft.finetune.answering import predictions

    files = [file for name in args.files for file in pictures_of(Path(name))]
    if args.copy and args.sort_into is None:
        raise RequestError("--copy is for --sort-into DIR")
    expect_replaceable("--csv", args.csv, (".csv",))
    learner = open_trained(args.source, best=args.best, device=args.backend or "auto")
    skip = args.on_error == "skip"
    files = readable(files, skip=skip)
    known = learner.answers.known
    if known and known.threshold is not None and not args.json:
        say(
            "note: less similar to the nearest training pictures than "
            f"{known.threshold:.3f} counts as unlike them; {known.flagged} of {known.valid} "
            "validation pictures would"
        )
    table = Table(Path(args.csv), learner.classes, args.top, bool(known)) if args.csv else None
    if table and table.done:
        files = [file for file in files if cell(file) not in table.done]
        say(f"{args.csv} has {counted(len(table.done), 'picture')}; {len(files):,} to go")
    args.working = True
    answers = predictions(learner, files, skip=skipped if skip else None)
    only_a_table = args.csv and not args.sort_into and not args.json
    if only_a_table or not sys.stdout.isatty():  # else its own lines show how far it is
        answers = tracked(answers, "predicting", len(files))
    outputs: list[Lines | Table | Folders] = []
    if not (args.csv or args.sort_into or args.json):
        outputs.append(Lines(learner.classes, args.top))
    if table:
        outputs.append(table)
    if args.sort_into:
        outputs.append(Folders(Path(args.sort_into), args.copy, say if args.json else result))
    _write(answers, outputs, learner.classes, args.json)
    return 0


def _write(
    answers: Iterator[Prediction], outputs: list[Lines | Table | Folders], classes: list[str],
    as_json: bool,
) -> None:  # fmt: skip
    """Give each prediction to every output as soon as it comes; nothing is held."""
    opened = "["
    for prediction in answers:
        for each in outputs:
            each.add(prediction)
        if as_json:
            record = plain(prediction)
            record["probabilities"] = dict(zip(classes, record["probabilities"], strict=True))
            print(opened + json.dumps(record, allow_nan=False), end="", flush=True)
            opened = ", "
    if as_json:
        result("[]" if opened == "[" else "]")
    for each in outputs:
        if not as_json:
            each.end()


def top(prediction: Prediction, classes: list[str], most: int) -> list[tuple[str, float]]:
    """The most probable classes, each with its probability."""
    order = (-prediction.probabilities).argsort(kind="stable")[:most]
    return [(classes[i], float(prediction.probabilities[i])) for i in order]


class Lines:
    """A line on stdout for each picture."""

    def __init__(self, classes: list[str], most: int):
        self.classes, self.most = classes, most
        self.width = min(24, max(len(one_line(name)) for name in classes))  # names can be long

    def add(self, prediction: Prediction) -> None:
        said = [
            f"{percent(share):>8}  {one_line(label):<{self.width}}"
            for label, share in top(prediction, self.classes, self.most)
        ]
        line = f"{'  '.join(said)}  {one_line(prediction.file)}"
        if prediction.unlike:
            line += f"  (unlike anything it learned from: {prediction.similarity:.3f})"
        result(line)

    def end(self) -> None:
        """Everything has been said."""


class Table:
    """A CSV file, a line a picture, written as it comes; `done` are the pictures that it had."""

    def __init__(self, path: Path, classes: list[str], most: int, known: bool):
        self.path, self.classes, self.known, self.count = path, classes, known, 0
        self.most = most = min(most, len(classes))
        self.head = ["file", "label", "probability"]
        for place in range(2, most + 1):
            self.head += [f"label_{place}", f"probability_{place}"]
        self.head += ["similarity", "unlike", "nearest"] if known else []
        self.done = self._read() if path.exists() and path.stat().st_size else set()

    def _read(self) -> set[str]:
        """The files of all whole lines; a last line that a kill cut off is taken away.

        Raises: RequestError for another table
        """
        content = self.path.read_bytes()
        whole, newline, rest = content.rpartition(b"\n")
        rows = list(csv.reader(whole.decode("utf-8", "replace").split("\n")))
        head = ",".join(self.head).encode()
        if rows[0] != self.head if newline else not head.startswith(rest):
            first = content.split(b"\n")[0].decode("utf-8", "replace")
            raise RequestError(
                f"--csv {self.path} begins with {first[:200]!r}, and these pictures would give the "
                f"columns {','.join(self.head)}; name another file"
            )
        with self.path.open("rb+") as stream:
            stream.truncate(len(whole + newline))
        return {row[0] for row in rows[1:] if row}

    def add(self, prediction: Prediction) -> None:
        row: list[object] = [cell(prediction.file)]
        for label, share in top(prediction, self.classes, self.most):
            row += [one_line(label), f"{share:.6f}"]
        if self.known:
            nearest = "; ".join(map(cell, prediction.nearest or ()))
            said = {True: "yes", False: "no", None: ""}[prediction.unlike]
            row += [f"{prediction.similarity:.4f}", said, nearest]
        new = not self.path.exists() or not self.path.stat().st_size
        with self.path.open("a", newline="", encoding="utf-8") as stream:  # whole after each line
            csv.writer(stream, lineterminator="\n").writerows([self.head, row] if new else [row])
        self.count += 1

    def end(self) -> None:
        result(f"{counted(self.count, 'picture')} written to {self.path}")


class Folders:
    """Copies of the pictures in a folder for each class; or only words about it."""

    def __init__(self, folder: Path, copies: bool, tell: Callable[[str], None]):
        self.folder, self.copies, self.tell, self.count = folder, copies, tell, 0
        self.taken: set[Path] = set()

    def add(self, prediction: Prediction) -> None:
        source = Path(prediction.file)
        # a class is called as a folder was, but a stranger's file may say ../ or C:
        name = re.sub(r'[/\\:*?"<>|\x00-\x1f]', "_", prediction.label).strip(". ") or "_"
        name = UNLIKE if prediction.unlike else name
        target = self._free(source, self.folder / name)
        if target is None:
            return
        self.taken.add(target)
        self.count += 1
        said = f"{one_line(str(source))} to {one_line(str(target))}"
        if not self.copies:
            self.tell(f"would copy {said}")
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as read, target.open("xb") as write:
            try:
                shutil.copyfileobj(read, write)
            except BaseException:  # half a picture is worse than none
                target.unlink()
                raise
        shutil.copystat(source, target)
        self.tell(f"copied {said}")

    def _free(self, source: Path, folder: Path) -> Path | None:
        """A name in the folder that no other picture has; None if this one is there already."""
        number, target = 1, folder / source.name
        while target in self.taken or target.exists():
            if target.exists() and filecmp.cmp(source, target, shallow=False):
                return None
            number += 1
            target = folder / f"{source.stem}-{number}{source.suffix}"
        return target

    def end(self) -> None:
        would = "" if self.copies else "would be "
        ask = "" if self.copies else "; --copy does it"
        self.tell(f"{counted(self.count, 'picture')} {would}copied{ask}")


# ------------------------------------------------------------------------------- which pictures


def skipped(name: str, error: Exception) -> None:
    """Say on stderr that a picture was left out, and why."""
    reason = str(error).removeprefix(f"{name}: ")
    say(f"note: skipped {one_line(name)}: {one_line(reason)}")


def cell(file: object) -> str:
    """A file's name as a line of text, with its undecodable bytes spelt out."""
    from tinyft.data.picture import printable

    return one_line(printable(str(file)))


def readable(files: list[Path], skip: bool) -> list[Path]:
    """The files that begin as a picture does; others are named, and left out if `skip`.

    Raises: DataError for the first that does not, unless `skip`
    """
    from tinyft.data.folder import unreadable

    bad = unreadable(files, whole=False, workers=2)  # all that are bad, before one is judged
    for file, reason in bad.items():
        if not skip:
            raise DataError(f"{file}: {reason}; leave it out, or use --on-error skip")
        skipped(str(file), DataError(reason))
    return [file for file in files if file not in bad]


def pictures_of(path: Path) -> list[Path]:
    """The file itself, or all pictures below a folder."""
    from tinyft.data.split import Scan, pictures_below

    if not path.is_dir():
        return [path]
    pictures = pictures_below(path, Scan())
    if not pictures:
        raise RequestError(f"there are no pictures in {path}")
    return pictures
