"""`tinyft serve`: a page on this machine to try a network with."""

from __future__ import annotations

import argparse
import signal
import webbrowser
from pathlib import Path

from tinyft.cli.failures import RequestError
from tinyft.cli.opening import open_trained
from tinyft.cli.options import Parser, add_backend, whole
from tinyft.cli.output import one_line, result, say

HELP = "try a network in the browser: drop a photo on a page that only this machine sees"
EXAMPLE = """\
tinyft serve runs/photos-resnet18-1
tinyft serve runs/photos-resnet18-1 --port 8000 --open"""


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("source", metavar="RUN", help="a run's folder, a saved learner, weights")
    add("--port", type=whole(0, 65535), default=0, metavar="N", help="where to listen (a free one)")
    add("--open", action="store_true", help="open the page in the browser")
    add("--best", action="store_true", help="the run's best epoch, not its last")
    add_backend(parser)


def run(args: argparse.Namespace) -> int:
    from tinyft.inspection.server import Server, photos_of, why_not

    learner = open_trained(args.source, best=args.best, device=args.backend or "auto")
    title, photos = Path(args.source).resolve().name, photos_of(args.source)
    if learner.answers.known is None:
        say("note: the file does not know its training pictures, so none are shown as nearest")
    elif photos is None:
        say("note: the training pictures are not there; the nearest are named, not shown")
    try:
        server = Server(learner, title=one_line(title), port=args.port, photos=photos)
    except OSError as error:
        raise RequestError(why_not(error, args.port)) from error
    args.working = True
    with server:
        address = f"http://127.0.0.1:{server.port}/"
        result(f"{address}  (Ctrl-C ends it)")
        if args.open:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt as stopped:
            if getattr(stopped, "number", signal.SIGINT) != signal.SIGINT:
                raise
    say("ended")
    return 0
