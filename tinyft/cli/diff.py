"""`tinyft diff`: what training changed, from layer to layer and from phase to phase."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyft.cli.failures import RequestError
from tinyft.cli.opening import open_folder
from tinyft.cli.options import PAGES, Parser, add_backend, add_json, expect_replaceable
from tinyft.cli.output import answer, write
from tinyft.errors import DataError

if TYPE_CHECKING:
    from tinyft.data import PictureData
    from tinyft.inspection.comparison.diff import Diff

HELP = "compare a network before and after training, layer by layer"
EXAMPLE = """\
tinyft diff runs/photos-resnet18-1 --html diff.html
tinyft diff resnet18.pth runs/photos-resnet18-1/best.h5 --pictures photos/"""


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("before", metavar="RUN|FILE", help="a run alone: its phases; else what to compare from")
    add("after", metavar="RUN|FILE", nargs="?", help="weights, a learner, a checkpoint, or a run")
    add("--pictures", metavar="DIR", help="CLASS/*.jpg, to compare features on 64 of them (of a "
        "run alone: its own)")  # fmt: skip
    add("--html", metavar="FILE", help="write a page with bars and the first layer's filters")
    add_backend(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from tinyft.inspection.comparison.diff import compare, expect_comparable
    from tinyft.inspection.comparison.result import as_page
    from tinyft.inspection.comparison.snapshots import of_run, of_source

    if args.after is None and not Path(args.before).is_dir():
        raise RequestError(
            f"{args.before} is no run; to compare two files give both: tinyft diff A.h5 B.h5"
        )
    expect_replaceable("--html", args.html, PAGES)
    data, notices = _data(args)
    if args.after is None:
        snapshots, missing = of_run(args.before)
    else:
        snapshots, missing = [of_source(args.before), of_source(args.after)], []
    expect_comparable(snapshots)
    args.working = True
    difference = compare(snapshots, data, device=args.backend or "auto")
    difference.notices.extend([*missing, *notices])
    if args.html:
        write(args.html, as_page(difference))
    answer(args, str(difference), plain(difference))
    return 0


def _data(args: argparse.Namespace) -> tuple[PictureData | None, list[str]]:
    """The pictures to compare features on, and why there are none or what is wrong with them."""
    if args.pictures:
        return open_folder(args.pictures, valid_fraction=1.0), []
    if args.after is not None:
        return None, ["--pictures DIR compares the features of both networks too"]
    from tinyft.finetune.run.reading import changed_pictures, read_description

    recorded = read_description(Path(args.before))["data"]
    if recorded.get("kind") == "arrays":
        return None, ["the run's pictures were arrays, so its features are not compared"]
    arguments = dict(recorded["arguments"])
    try:
        data = open_folder(arguments.pop("path", None), **arguments)
    except (DataError, OSError) as error:
        return None, [f"features are not compared: the run's pictures cannot be used: {error}"]
    if changed := changed_pictures(Path(args.before), data):
        return data, [f"the run's pictures have changed since it began{changed}; features are of "
                      "today's"]  # fmt: skip
    return data, []


def plain(difference: Diff) -> dict[str, Any]:
    """The comparison as JSON is to hold it: all but the filters' weights."""
    names = ("arch", "spans", "stages", "layers", "similarity", "pictures", "unmatched", "notices")
    return {"snapshots": difference.titles, **{name: getattr(difference, name) for name in names}}
