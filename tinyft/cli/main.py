"""`tinyft COMMAND ...`: the tree of commands, and what becomes of an error.

Whatever goes wrong, the command line says it in one line on stderr and ends with

    0    done
    1    the run failed
    2    the request was wrong: a name, a folder, an option
    130  Ctrl-C (143 where a scheduler asked it to end, 129 where the terminal went away: 128 and
         the signal's number)

`--traceback` shows the rest. Nothing heavy is imported before a command needs it, so that --help
is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence

from tinyft.cli import (
    bench,
    check,
    clean,
    diff,
    doctor,
    embed,
    evaluate,
    exercises,
    finetune,
    gradcheck,
    inspect,
    lr_find,
    plan,
    predict,
    report,
    selftest,
    serve,
    summary,
    tour,
    warmup,
    weights,
)
from tinyft.cli.failures import RequestError, exit_code_and_line, signals_raise
from tinyft.cli.options import Parser, add_command
from tinyft.cli.output import has_terminal, one_line, say
from tinyft.progress import showing
from tinyft.version import __version__

COMMANDS = (
    finetune, predict, evaluate, serve, embed, check, plan, lr_find, summary, inspect, diff, report,
    gradcheck, selftest, tour, exercises, weights, bench, clean, warmup, doctor,
)  # fmt: skip

START = """\
tinyft fine-tunes pretrained networks on your pictures, and shows every step of it.

first
  tinyft finetune            learn from the sample photos that come with it
  tinyft check photos/       look at your own, with a folder for each class, before training
  tinyft finetune photos/    learn from them; what is written is a folder in runs/

help
  tinyft --help              all commands
  tinyft finetune --help     the options of one, with examples"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    _open_missing_streams()
    _print_any_name()
    args = build_parser().parse_args(arguments)
    if args.command is None:
        print(START)
        return 0
    args.arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _warnings_as_notes(), signals_raise(), _progress(args):
            _check_request(args)
            code = args.run(args)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if args.traceback:
            traceback.print_exc()
        code, line = exit_code_and_line(
            error, working=args.working, options=vars(args), on_interrupt=args.on_interrupt
        )
        say(f"{args.parser.prog}: {line}")
        _give_up_output()
    return code


def _progress(args: argparse.Namespace) -> contextlib.AbstractContextManager[object]:
    """A display of what takes long, but not beside what is measured."""
    if args.command == "bench":
        return contextlib.nullcontext()
    return showing(sys.stderr, bars=has_terminal())


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="tinyft",
        description="Fine-tune pretrained ResNets with NumPy and Numba alone, and see every step.",
        epilog="example: tinyft finetune",
    )
    parser.add_argument("--version", action="version", version=f"tinyft {__version__}")
    parser.set_defaults(working=False, on_interrupt="", traceback=False, parser=parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2].replace("_", "-")
        run = getattr(command, "run", None)  # a group of commands has none
        below = add_command(commands, name, run, help=command.HELP, example=command.EXAMPLE)
        if hasattr(command, "add_options"):
            command.add_options(below)
    return parser


def _check_request(args: argparse.Namespace) -> None:
    """Raises: RequestError if somebody deleted the current folder, which later errors would call
    "no such file"; for an empty name, which Python would take for the current folder; or for an
    address on the web, which it would take for a path
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise RequestError("the current folder no longer exists; go to one that does") from None
    if "" in args.arguments:
        raise RequestError("an argument is empty; is it a variable that is not set?")
    for argument in args.arguments:
        if re.match(r"(--[a-z-]+=)?[a-z]{2,9}://", argument, re.IGNORECASE):
            raise RequestError(
                f"{argument} is an address, and only files of this machine are read; download what "
                "is there, and give the folder or the file"
            )


def _open_missing_streams() -> None:
    """Open stdout and stderr where a process is started without them (`>&-`, some schedulers): what
    is written there is for nobody, and no file that is opened later may take their places.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


@contextlib.contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """A warning in one line, without the source code that Python shows with it."""
    before = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: say(f"note: {one_line(str(message))}")
    try:
        yield
    finally:
        warnings.showwarning = before


def _print_any_name() -> None:
    """Let a file name that is no valid text be printed, with its bytes spelt out."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # or somebody replaced it
            with contextlib.suppress(ValueError):  # and closed it
                stream.reconfigure(errors="backslashreplace")


def _give_up_output() -> None:
    """If stdout takes nothing any more (`tinyft ... | head`, a full disk), let go of what is left,
    or Python complains at exit.
    """
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
