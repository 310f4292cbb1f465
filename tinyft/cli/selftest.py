"""`tinyft selftest`: does every kernel and every op keep the contract on this machine?"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from tinyft.cli.failures import RequestError
from tinyft.cli.opening import describe_backend
from tinyft.cli.options import Parser, add_backend
from tinyft.cli.output import one_line, result
from tinyft.display import counted, duration

if TYPE_CHECKING:
    from tinyft.testing.contract import Family

HELP = "prove every kernel and op of this installation against the definition, in 20 s"
EXAMPLE = """\
tinyft selftest
tinyft selftest conv2d --backend reference"""

SHOWN = 3  # failures of one kernel or op; the rest is counted


def add_options(parser: Parser) -> None:
    parser.add_argument("name", metavar="KERNEL|OP", nargs="?", help="(default: all of them)")
    add_backend(parser)


def run(args: argparse.Namespace) -> int:
    from tinyft import backends
    from tinyft.testing import contract

    names = contract.subjects()
    if args.name and args.name not in names:
        raise RequestError(f"there is no kernel or op {args.name!r}; there are {', '.join(names)}")
    backend = backends.get(backends.resolve(args.backend or "auto")).name
    result(describe_backend(backend))
    args.working = True
    started, cases, failed = time.perf_counter(), 0, 0
    for family in contract.check_families(backend, args.name):
        _print_family(family)
        cases, failed = cases + family.cases, failed + len(family.failures)
    seconds = duration(time.perf_counter() - started)
    result(f"{cases - failed} of {cases} cases passed in {seconds}")
    return 1 if failed else 0


def _print_family(family: Family) -> None:
    """A line, and below it what failed."""
    who, failures = f"{family.kind} {family.subject}", family.failures
    if not failures:
        result(f"passed  {who}: {counted(family.cases, 'case')}")
        return
    result(f"FAILED  {who}: {len(failures)} of {counted(family.cases, 'case')}")
    for failure in failures[:SHOWN]:
        result(f"        {one_line(failure)}")
    if len(failures) > SHOWN:
        result(f"        ... and {len(failures) - SHOWN} more")
