"""The options that several commands share, and the library's objects made from them.

No option has a default here: one that was not given is left to the library, and --resume can tell
which ones were given.
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyft.cli import sample
from tinyft.cli.failures import RequestError, naming
from tinyft.cli.output import one_line, say
from tinyft.cli.parser import Parser, device, fraction, positive, whole

if TYPE_CHECKING:
    from tinyft.data import ImageFolder
    from tinyft.finetune import Learner, Plan

DATA = ("size", "batch_size", "augment", "seed", "valid_fraction", "on_error")
LEARNER = ("arch", "weights", "head", "bn", "seed")
HEAD_HELP = "a new head (none asked: a trained one that fits is kept, else a new fastai one)"
MOST_EPOCHS = 10_000  # a plan has a rate for each step
RECIPE = ("epochs", "freeze_epochs", "lr")
PAGES, GRAPHS = (".html", ".htm"), (".dot", ".gv")  # how files end that may be replaced


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
    add("--lr", type=positive, metavar="RATE", help="learning rate of the head (0.002)")


def add_network_options(parser: Parser) -> None:
    """Data and network: what is trained on, and what is trained."""
    add = parser.add_argument
    add("dir", metavar="DIR", nargs="?", help="CLASS/*.jpg, or train/ and valid/ (sample photos)")
    add("--arch", metavar="NAME", help="resnet18 ... resnet152 (the weights file's, or resnet18)")
    what = "a weights file, a published name, or none (the architecture's published ones)"
    add("--weights", metavar="FILE|NAME|none", help=what)
    add("--size", type=whole(1), metavar="PIXELS", help="side of the input (the weights file's)")
    add("--head", choices=("fastai", "linear"), help=HEAD_HELP)
    add("--bn", choices=("fastai", "torch", "frozen"), help="batch norms of frozen layers (fastai)")
    add("--seed", type=whole(0), metavar="N", help="decides every random draw (0)")
    augment = parser.add_mutually_exclusive_group()
    augment.add_argument(
        "--augment", choices=("default", "crop", "shift", "none"), help="(default)"
    )
    augment.add_argument("--no-augment", dest="augment", action="store_const", const="none")
    add("--valid-fraction", type=fraction, metavar="X", help="set aside if DIR has no split (0.2)")
    add_reading_options(parser)
    add_backend(parser)


def add_reading_options(parser: Parser, otherwise: str = "") -> None:
    """How pictures are read, in training and in evaluation; `otherwise`: when a default is none."""
    add, what = parser.add_argument, "what to do with unreadable pictures"
    add("--batch-size", type=whole(1), metavar="N", help=f"pictures in a batch (16{otherwise})")
    add("--on-error", choices=("raise", "skip"), help=f"{what} (raise{otherwise})")


def add_backend(parser: Parser) -> None:
    parser.add_argument(
        "--backend",
        type=device,
        metavar="NAME",
        help="cpu: Numba; reference: plain NumPy; gpu, gpu:1: CuPy (auto: gpu if it works, or cpu)",
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


def open_folder(path: str, **options: Any) -> ImageFolder:
    """The pictures of a folder; what there is to say about them goes to stderr."""
    from tinyft.data import ImageFolder

    if options.get("augment") == "none":
        options["augment"] = None
    with warnings.catch_warnings(action="ignore"):  # they are among the notices
        data = ImageFolder(path, **options)
    for notice in data.notices:
        say(f"note: {one_line(notice)}")
    return data


def make_learner(args: argparse.Namespace) -> Learner:
    """Data, network and head as the options say; without a folder, those of the sample run."""
    from tinyft.finetune import vision_learner

    sample.complete(args)
    data = open_folder(args.dir, **given(args, DATA))
    options = given(args, LEARNER)
    if options.get("weights") == "none":
        options["weights"] = None
    with naming(args.weights or ""):
        return vision_learner(data, device=args.backend or "auto", **options)


def make_plan(args: argparse.Namespace, learner: Learner) -> Plan:
    """The plan of fine_tune with the options' epochs and rate."""
    options = given(args, RECIPE)
    epochs = options.pop("epochs", 3)
    if args.weights == "none" and "freeze_epochs" not in options:
        say("note: random weights are not worth freezing, so there is no phase of the head alone")
        options["freeze_epochs"] = 0
    if not epochs and options.get("freeze_epochs") == 0:
        raise RequestError("there is nothing to do: --epochs and --freeze-epochs are both 0")
    if "lr" in options:
        options["base_lr"] = options.pop("lr")
    return learner.plan(epochs, **options)


def describe_backend(device: str) -> str:
    """ "backend: cpu (Numba kernels), 2 threads"; and why there is no GPU, where CuPy is installed
    and somebody seems to want one.
    """
    from tinyft import backends

    text = f"backend: {backends.get(device).description()}"
    wanted = device == "auto" and importlib.util.find_spec("cupy")
    reason = backends.why_no_gpu() if wanted else None
    return f"{text}; no GPU: {reason}" if reason else text
