"""`tinyft report`: a run as one HTML page."""

from __future__ import annotations

import argparse

from tinyft.cli.options import PAGES, Parser, add_backend, add_json, add_moved, expect_replaceable
from tinyft.cli.output import answer, one_line, say

HELP = "write what a run did, and what came of it, as one HTML page"
EXAMPLE = """\
tinyft report runs/photos-resnet18-1
tinyft report runs/photos-resnet18-1 --out ~/photos.html"""


def add_options(parser: Parser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="the folder of a run, finished or not")
    parser.add_argument("--out", metavar="FILE", help="where to write it (RUN/report.html)")
    add_moved(parser)
    add_backend(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from tinyft.inspection.report.report import save_report
    from tinyft.inspection.report.run_files import RunFiles
    from tinyft.inspection.trace.table import size

    expect_replaceable("--out", args.out, PAGES)
    run = RunFiles.read(args.run_folder, args.data, device=args.backend or "auto")
    for reason in run.missing.values():
        say(f"note: {one_line(reason)}")
    args.working = True
    path = save_report(run, args.out)
    nbytes = path.stat().st_size
    text = f"{one_line(str(path))}: one page of {size(nbytes)}, to be opened in a browser"
    answer(args, text, {"report": str(path), "bytes": nbytes, "missing": run.missing})
    return 0
