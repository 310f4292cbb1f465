"""Parsers: a command's from what its module says, and the options that several commands share.

No option has a default here: one that was not given is left to the library, and --resume can tell
which ones were given.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tinyft.cli.failures import RequestError
from tinyft.cli.output import one_line, say
from tinyft.display import did_you_mean, fitted

LABELS = ("labels", "label_regex")
DATA = (*LABELS, "size", "batch_size", "augment", "seed", "valid_fraction", "on_error")
LEARNER = (
    *("recipe", "arch", "weights", "head", "head_init", "bn", "seed"),
    *("optimizer", "weight_decay", "dropout", "label_smoothing", "class_weights"),
)
RECIPE = ("epochs", "freeze_epochs", "lr")
MOST_EPOCHS = 10_000  # a plan has a rate for each step
PAGES, GRAPHS = (".html", ".htm"), (".dot", ".gv")  # how files end that may be replaced


class Help(argparse.RawDescriptionHelpFormatter):
    """Help whose lines fit, with words and commands whole."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return fitted(textwrap.indent(text, indent), width)

    def format_help(self) -> str:
        return fitted(super().format_help(), self._width)  # options that exclude each other

    def _split_lines(self, text: str, width: int) -> list[str]:
        return fitted(text, width).replace("\n  ", "\n").splitlines()


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line that names what was probably meant, and that
    takes no abbreviated options: they would change their meaning when an option is added.
    """

    def __init__(self, **options: Any):
        options.setdefault("formatter_class", Help)
        super().__init__(**options, allow_abbrev=False)
        self._optionals.title = "options, defaults in brackets"

    def parse_args(self, *arguments: Any, **named: Any) -> Any:
        args, unknown = self.parse_known_args(*arguments, **named)
        if unknown:  # the command tells, who knows its options, and not the parser of all commands
            option = next((text for text in unknown if text.startswith("-")), "")
            named = {known.lstrip("-"): known for known in args.parser._option_string_actions}
            near = difflib.get_close_matches(option.partition("=")[0].lstrip("-"), named, 1, 0.65)
            meant = f"; did you mean {named[near[0]]}?" if near else ""
            args.parser.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        return args

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            if meant := did_you_mean(str(value), action.choices or ()):
                error.message = f"invalid choice: {value!r}{meant}"
            raise

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else ";"
        say(f"{self.prog}: {one_line(message)}{end} `{self.prog} --help` shows an example")
        self.exit(2)


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int] | None,
    *,
    help: str,
    example: str,
) -> Parser:
    """A command's parser, with the options that all commands have; without `run`, that of a group
    of commands.
    """
    parser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog="example:\n" + textwrap.indent(example, "  "),
    )
    if run is not None:
        option = parser.add_argument
        option("--traceback", action="store_true", help="show where an error came from")
        parser.set_defaults(run=run, parser=parser)
    return parser


def add_json(parser: Parser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON, the last line of stdout"
    )


def _number(
    words: str, fits: Callable[[Any], bool], kind: Callable[[str], Any] = float
) -> Callable[[str], Any]:
    """Parse a number for which `fits` holds (it never does for NaN), as `words` say."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not fits(value):
            raise argparse.ArgumentTypeError(f"expected {words}, got {text!r}")
        return value

    return parse


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Parse a whole number that is not less than `least`, nor more than `most`."""
    limits = f">= {least}" if most is None else f"from {least} to {most:,}"
    largest = math.inf if most is None else most
    return _number(f"a whole number {limits}", lambda value: least <= value <= largest, int)


def at_least_0(most: float = math.inf) -> Callable[[str], float]:
    """Parse a finite number from 0 to `most`."""
    limits = ">= 0" if most == math.inf else f"from 0 to {most:g}"
    return _number(f"a number {limits}", lambda value: 0 <= value <= most and value < math.inf)


positive = _number("a number above 0", lambda value: 0 < value < math.inf)
fraction = _number("a number between 0 and 1", lambda value: 0 < value < 1)
rate = _number(  # nothing that has learnt anything survives more
    "a learning rate above 0, often from 0.0001 to 0.1, and at most 100", lambda v: 0 < v <= 100
)


def keep(text: str) -> str | int:
    """Parse which checkpoints stay."""
    return text if text in ("all", "last") else whole(1, MOST_EPOCHS)(text)


def device(text: str) -> str:
    """Parse the name of a backend, or of a GPU."""
    if not re.fullmatch(r"auto|cpu(:bf16)?|reference|gpu(:\d+)?", text):
        raise argparse.ArgumentTypeError(
            f"expected auto, cpu, cpu:bf16, reference, gpu or gpu:1 (the second), got {text!r}"
        )
    return text


# ---------------------------------------------------------------------- what several commands take


def add_training_options(parser: Parser) -> None:
    """Data, network, recipe: all that decides what is trained, and how."""
    add_network_options(parser)
    add = parser.add_argument_group("recipe").add_argument
    add(
        "--epochs",
        type=whole(0, MOST_EPOCHS),
        metavar="N",
        help="epochs of the whole network (3; of the sample 9)",
    )
    add(
        "--freeze-epochs",
        type=whole(0, MOST_EPOCHS),
        metavar="N",
        help="epochs of the head alone, first (1)",
    )
    add("--lr", type=rate, metavar="RATE", help="learning rate of the head (0.002)")


def add_network_options(parser: Parser) -> None:
    """Data and network: what is trained on, and what is trained."""
    add = parser.add_argument
    add("dir", metavar="DIR", nargs="?", help="CLASS/*.jpg, or train/ and valid/ (sample photos)")
    add("--arch", metavar="NAME", help="resnet18 ... resnet152 (the weights file's, or resnet18)")
    what = (
        "a file, a name of `tinyft weights list`, resnet10s (small, comes with tinyft), or none: "
        "random (the published ones of --arch)"
    )
    head = "a new head (none asked: a trained one that fits is kept, else a new fastai one)"
    add("--weights", metavar="FILE|NAME|none", help=what)
    add("--size", type=whole(1), metavar="PIXELS", help="side of the input (the weights file's)")
    recipe = (
        "means-and-mirror: a linear head from the class means of the features, answers from each "
        "picture and its mirror image: better, above all with few pictures; see docs (fastai)"
    )
    add("--recipe", choices=("fastai", "means-and-mirror"), help=recipe)
    add("--head", choices=("fastai", "linear"), help=head)
    means = "means: the class means of the features, for a linear head and few pictures (random)"
    add("--head-init", choices=("random", "means"), help=means)
    add("--bn", choices=("fastai", "torch", "frozen"), help="batch norms of frozen layers (fastai)")
    add("--seed", type=whole(0), metavar="N", help="decides every random draw (0)")
    augment = parser.add_mutually_exclusive_group()
    augment.add_argument(
        "--augment",
        choices=("default", "crop", "shift", "none"),
        help="how training pictures vary: flips, turns, zooms, light; crops; shifts (default)",
    )
    augment.add_argument(
        "--no-augment", dest="augment", action="store_const", const="none", help="as --augment none"
    )
    add("--valid-fraction", type=fraction, metavar="X", help="set aside if DIR has no split (0.2)")
    add_reading_options(parser)
    add_backend(parser)
    add = parser.add_argument_group("optimizer and loss").add_argument
    rates = "the others need a larger --lr (adam)"
    add("--optimizer", choices=("adam", "sgd", "momentum"), help=rates)
    decay = "weights shrink in a step by X times the rate (0.01 for adam, 0 for others)"
    add("--weight-decay", type=at_least_0(), metavar="X", help=decay)
    share = "share of the features that a fastai head drops at random in training (0.5)"
    add("--dropout", type=at_least_0(1), metavar="P", help=share)
    smooth = "share of each label that all classes divide among themselves (0)"
    add("--label-smoothing", type=at_least_0(1), metavar="X", help=smooth)
    add(
        "--class-weights",
        choices=("balanced",),
        help="balanced: rare classes count as much in the loss as frequent ones (all alike)",
    )


def add_reading_options(parser: Parser, otherwise: str = "") -> None:
    """Add how pictures are read; `otherwise` says when a default does not hold."""
    add, what = parser.add_argument, "stop at unreadable pictures, or leave them out"
    add("--batch-size", type=whole(1), metavar="N", help=f"pictures in a batch (16{otherwise})")
    add("--on-error", choices=("raise", "skip"), help=f"{what} (raise{otherwise})")
    add_labels(parser)


def add_labels(parser: Parser) -> None:
    table = (
        "a table of DIR's pictures: file, label, and if you like split (train, valid) and group, "
        "whose pictures stay on one side of the split (folders)"
    )
    pattern = "where the label is in a picture's name: '([a-z]+)_' finds rose in rose_012.jpg"
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--labels", metavar="CSV", help=table)
    labels.add_argument("--label-regex", metavar="PATTERN", help=pattern)


def add_moved(parser: Parser, when: str = "") -> None:
    what = "where the run's pictures are now; each is found by its sha256, whatever it is called"
    parser.add_argument("--data", metavar="DIR", help=when + what)


def add_backend(parser: Parser) -> None:
    parser.add_argument(
        "--backend",
        type=device,
        metavar="NAME",
        help="cpu: Numba; cpu:bf16: its 1x1 convolutions in bf16; reference: plain NumPy; gpu, "
        "gpu:1: CuPy (auto: gpu if it works, or cpu)",
    )


def expect_replaceable(option: str, file: str | None, suffixes: tuple[str, ...]) -> None:
    """Raises: RequestError for a file that cannot be written, or that would take the place of
    another kind of file: a run's own, or a picture
    """
    if file is None:
        return
    path = Path(file)
    if path.is_dir():
        raise RequestError(f"{option} {file} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise RequestError(f"{option} {file}: there is no folder {path.parent}")
    if path.exists() and path.suffix.lower() not in suffixes:
        raise RequestError(
            f"{option} {file} exists, and only a file that ends in {' or '.join(suffixes)} is "
            "replaced; choose another name"
        )


def given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """The options of these names that were given."""
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}
