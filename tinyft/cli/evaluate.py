"""`tinyft evaluate`: how well a trained network tells the pictures of a folder apart: accuracy and
loss, precision and recall of each class, what is taken for what, the pictures it was most wrong
about; in words, as JSON, as a page, as a CSV file of all pictures.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyft.cli.failures import RequestError
from tinyft.cli.opening import note_learnt, open_folder, open_trained
from tinyft.cli.options import (
    LABELS,
    PAGES,
    Parser,
    add_backend,
    add_json,
    add_moved,
    add_reading_options,
    expect_replaceable,
    given,
)
from tinyft.cli.output import answer, one_line, percent, say, write

if TYPE_CHECKING:
    from tinyft.data import PictureData
    from tinyft.finetune import Learner
    from tinyft.inspection.report.learned import Judgements
    from tinyft.weights import Weights

HELP = "measure how well a trained network tells pictures apart, class by class"
EXAMPLE = """\
tinyft evaluate runs/photos-resnet18-1 more_photos/
tinyft evaluate runs/photos-resnet18-1 more_photos/ --html judged.html --csv judged.csv
tinyft evaluate resnet20.h5 cifar10/"""

WORST = 5  # pictures with the largest losses that are named

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
    parser.add_argument("--html", metavar="FILE", help="write a page: tables, matrix, mistakes")
    parser.add_argument("--csv", metavar="FILE", help="write a line for each picture")
    add_moved(parser)
    add_backend(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from tinyft.inspection.report.learned import judge_pictures

    expect_replaceable("--html", args.html, PAGES)
    expect_replaceable("--csv", args.csv, (".csv",))
    learner = open_trained(
        args.source,
        best=args.best,
        device=args.backend or "auto",
        name_classes=lambda weights: _names_from_folder(weights, args),
    )
    data = _data(args, learner)
    args.working = True
    judged = judge_pictures(learner, data)
    if args.csv:
        write(args.csv, _table(judged))
    if args.html:
        write(args.html, _page(args, learner, judged, data))
    answer(args, in_words(judged), _as_record(judged))
    return 0


def in_words(judged: Judgements) -> str:
    """Tell accuracy and loss, the classes in a table, who is taken for whom, the worst pictures."""
    n, wrong = len(judged.labels), int((~judged.right).sum())
    loss, share = judged.evaluation.loss, wrong / n
    lines = [
        f"accuracy {percent(1 - share)}, error {percent(share)} ({wrong} wrong of {n}), loss "
        f"{loss:.4f}; balanced accuracy {percent(judged.balanced_accuracy)}",
        "",
        *map(one_line, str(judged).split("\n")[2:]),
    ]
    worst = [each for each in _worst(judged) if each["label"] != each["said"]]
    if worst:
        lines += ["", "most wrong about"]
    lines += [
        f"  {one_line(each['file'])}: {one_line(each['said'])} (loss {each['loss']:.2f})"
        for each in worst
    ]
    return "\n".join(lines)


def _as_record(judged: Judgements) -> dict[str, Any]:
    """All of it, for --json."""
    return {
        "n": judged.evaluation.n,
        "accuracy": judged.evaluation.accuracy,
        "loss": judged.evaluation.loss,
        "balanced_accuracy": judged.balanced_accuracy,
        "classes": judged.per_class(),
        "confusion": judged.confusion(),  # a row is what was shown, a column what was said
        "worst": _worst(judged),
    }


def _worst(judged: Judgements) -> list[dict[str, Any]]:
    rows = _rows(judged)
    return [rows[i] for i in judged.top_losses(WORST)]


def _rows(judged: Judgements) -> list[dict[str, Any]]:
    """What was said of each picture; the probability is that of what was said."""
    names, said = judged.classes, judged.predicted
    return [
        {"file": file, "label": names[label], "said": names[said[i]],
         "probability": float(judged.probabilities[i].max()), "loss": float(judged.losses[i])}
        for i, (file, label) in enumerate(zip(judged.files, judged.labels, strict=True))
    ]  # fmt: skip


def _table(judged: Judgements) -> str:
    text, rows = io.StringIO(), _rows(judged)
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _page(args: argparse.Namespace, learner: Learner, judged: Judgements, data: PictureData) -> str:
    """The same as a page, with the mistakes as pictures."""
    from tinyft.inspection.html import escape, page
    from tinyft.inspection.report.learned import confusions, mistakes, scores

    title = f"{Path(args.source).name} on {Path(args.dir).name if args.dir else 'its own pictures'}"
    first = in_words(judged).split("\n")[0]
    body = f"<h1>{escape(title)}</h1><p>{escape(first[0].upper() + first[1:])}.</p>"
    worst = f"<h2>Its largest mistakes</h2>{mistakes(learner, judged, data)}"
    return page(title, f"{body}{confusions(judged)}{worst}<h2>Class by class</h2>{scores(judged)}")


def _data(args: argparse.Namespace, learner: Learner) -> PictureData:
    """The folder's pictures, or those that the run set aside."""
    options, labels = given(args, ("batch_size", "on_error")), given(args, LABELS)
    if args.data is not None and (args.dir is not None or not Path(args.source).is_dir()):
        raise RequestError("--data is for a run's own pictures; give either a run and it, or DIR")
    if labels or args.dir is not None:
        from tinyft.data.split import find_parts

        path = _folder(args)
        if not labels and (valid := find_parts(Path(path)).get("valid")):
            say(f"of {one_line(path)}, the pictures in {valid.name}/")
        data = open_folder(path, classes=learner.classes, **ALL, **options, **labels)
        note_learnt(Path(args.source), data)
        return data
    if not Path(args.source).is_dir():
        raise RequestError("which pictures? Only a run has its own; give a folder")
    from tinyft.data.folder import MovedPictures
    from tinyft.finetune.run.reading import left_out, pictures_of_run, read_description

    otherwise = (
        "its validation part may now hold pictures that it has learnt: give a folder of others, "
        "or leave out what is gone or changed with {on_error}"
    )
    run = pictures_of_run(
        args.source,
        args.data,
        otherwise=otherwise,
        without=left_out(read_description(Path(args.source))),
        skip_lost=args.on_error == "skip",
        **options,
    )
    if isinstance(run, MovedPictures) and run.lost:
        say(f"note: {one_line(run.words())}")
    return run


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
