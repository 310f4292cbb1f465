"""`tinyft gradcheck`: compare gradients with differences, of tinyft's ops or of your own."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyft.cli.failures import RequestError
from tinyft.cli.options import Parser, whole
from tinyft.cli.output import result
from tinyft.errors import TinyftError

if TYPE_CHECKING:
    from tinyft.testing.op_cases import OpCase

HELP = "compare gradients with differences: of all ops, of one, or of a function of yours"
EXAMPLE = """\
tinyft gradcheck conv2d
tinyft gradcheck layer.py:gate --shapes 2x3"""

MOST_DRAWS = 50  # of one case; an empty one never gives anything
CONVENTION = """
your own function:
  `tinyft gradcheck layer.py:gate` runs layer.py and checks its function gate. The file says
  what to call it with: inputs() returns the list of its arguments, float64 arrays those that are
  checked. An instance of a module is a function too; its parameters are checked, by name.

      import numpy as np
      import tinyft as ft

      def gate(x):
          return x * ft.ops.relu(x)

      def inputs():
          return [np.random.default_rng(0).standard_normal((2, 3))]

  Or give shapes instead, and normal numbers are drawn: --shapes 2x3 (several: 2x3,3x4)"""


def add_options(parser: Parser) -> None:
    parser.epilog = f"{parser.epilog}\n{CONVENTION}"
    parser.add_argument("op", metavar="OP|FILE.py:FUNCTION", nargs="?", help="(default: all ops)")
    parser.add_argument("--mode", choices=("fast", "full"), help="projections, or every element")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="(0)")
    parser.add_argument("--shapes", type=shapes, metavar="SHAPES", help="draw inputs: 2x3,4x5")


def shapes(text: str) -> list[tuple[int, ...]]:
    """Parse shapes, none of them empty."""
    try:
        return [tuple(map(whole(1), shape.split("x"))) for shape in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected shapes as 2x3,4x5; got {text!r}") from None


def run(args: argparse.Namespace) -> int:
    if args.op and ":" in args.op:
        return _check_function(args)
    if args.shapes:
        raise RequestError("--shapes is for a function of yours: tinyft gradcheck FILE.py:FUNCTION")
    return _check_ops(args)


def _check_function(args: argparse.Namespace) -> int:
    from tinyft.testing.gradient_check import GradcheckError, gradcheck

    file, _, name = args.op.rpartition(":")
    module = _run_file(Path(file))
    function = getattr(module, name, None)
    if not callable(function):
        raise RequestError(f"{file} has no function {name}")
    args.working = True
    try:
        inputs = _inputs(args, module)
        report = gradcheck(function, inputs, mode=args.mode or "fast", seed=args.seed)
    except GradcheckError as error:
        result(str(error))
        return 1
    except (TinyftError, ValueError):
        raise  # says what is wrong
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        raise RequestError(
            f"{args.op} cannot be checked ({kind}: {error}); see --traceback"
        ) from error
    result(str(report))
    return 0


def _run_file(path: Path) -> Any:
    """The file as a module; what stands beside it can be imported by it."""
    if path.suffix != ".py" or not path.is_file():
        raise RequestError(f"expected FILE.py:FUNCTION, and {path} is no Python file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # as it is with each file.py
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        raise RequestError(f"{path} cannot be run ({kind}: {error}); see --traceback") from error
    return module


def _inputs(args: argparse.Namespace, module: Any) -> list[Any]:
    """Return what the file says, or normal numbers in the shapes that were given."""
    import numpy as np

    if args.shapes:
        draw = np.random.default_rng(args.seed)
        return [draw.standard_normal(shape) for shape in args.shapes]
    inputs: Callable[[], Any] | None = getattr(module, "inputs", None)
    if inputs is None:
        raise RequestError("the file has no inputs(); define it, or give --shapes 2x3,4x5")
    return inputs()


def _check_ops(args: argparse.Namespace) -> int:
    """Every case of the op (or of all), a line each; the exit code."""
    from tinyft.testing.gradient_check import GradcheckError
    from tinyft.testing.op_cases import OP_CASES

    names = sorted({case.subject for case in OP_CASES})
    if args.op and args.op not in names:
        raise RequestError(f"there is no op {args.op!r}; there are {', '.join(names)}")
    cases = [case for case in OP_CASES if args.op in (None, case.subject)]
    args.working = True
    failed = 0
    for case in cases:
        try:
            worst = check_case(case, args)
        except GradcheckError as error:
            failed += 1
            result(f"FAILED  {case}: {error}")
        else:
            result(f"passed  {case}: worst difference {worst:.2g} of what is allowed")
    result(f"{len(cases) - failed} of {len(cases)} cases passed")
    return 1 if failed else 0


def check_case(case: OpCase, args: argparse.Namespace) -> float:
    """Find the largest difference, in units of what is allowed."""
    from tinyft.testing.contract import check_gradients

    arrays = _drawn(case, args.seed)
    report = check_gradients(case, arrays, mode=args.mode or "fast", seed=args.seed)
    return max((row.worst for row in report.inputs), default=0.0)


def _drawn(case: OpCase, seed: int) -> dict[str, Any]:
    """The arrays of a case in float64. Where a ReLU lets nothing of them through, as it does with
    every second single number, others are drawn: there would be no gradient to check.
    """
    import numpy as np

    from tinyft.testing.contract import result_of

    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for _ in range(MOST_DRAWS):
        arrays = {name: np.asarray(array) for name, array in case.arrays(rng).items()}
        if result_of(case, arrays).data.any():
            break
    return arrays
