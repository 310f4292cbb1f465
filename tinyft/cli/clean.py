"""`tinyft clean`: make room on the disk, of which checkpoints take the most."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinyft.cli.options import Parser, add_json
from tinyft.cli.output import answer, one_line
from tinyft.display import counted

HELP = "delete checkpoints of runs: of finished ones all, of others all but the newest"
EXAMPLE = """\
tinyft clean runs/photos-resnet18-1 --dry-run
tinyft clean runs/*"""


def add_options(parser: Parser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from tinyft.finetune.run.folder import hold
    from tinyft.finetune.run.reading import checkpoints, read_description
    from tinyft.inspection.trace.table import size

    runs = {run: read_description(run)["finished"] for run in map(Path, args.runs)}
    args.working = True
    listed: list[str] = []
    nbytes = 0
    for path, finished in runs.items():
        lock = hold(path)  # nobody writes or reads them meanwhile
        try:
            files = list(checkpoints(path).values())[: None if finished else -1]
            nbytes += sum(file.stat().st_size for file in files)
            listed += map(str, files)
            if not args.dry_run:
                for file in files:
                    file.unlink()
        finally:
            lock.release()
    said = "would be deleted" if args.dry_run else "deleted"
    text = f"{counted(len(listed), 'checkpoint')}, {size(nbytes)}, {said}"
    if listed and not args.dry_run:
        text += "; networks stay, and inspect begins at a run's start where it needs a step"
    value = {"files": listed, "bytes": nbytes, "deleted": not args.dry_run}
    answer(args, one_line(text), value)
    return 0
