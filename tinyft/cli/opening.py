"""The library's objects from what a command line names: pictures, a learner, its plan; a trained
network from a run's folder, a saved learner or a weights file; a run to go on with.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyft.cli.failures import RequestError, naming
from tinyft.cli.options import DATA, LABELS, LEARNER, RECIPE, given
from tinyft.cli.output import one_line, say
from tinyft.display import counted
from tinyft.errors import WeightsError

if TYPE_CHECKING:
    from tinyft.data import ImageFolder, PictureData
    from tinyft.finetune import Learner, Plan
    from tinyft.weights import Weights

NameClasses = Callable[["Weights"], list[str]]

# Without a folder: photos of animals and weights of a small network, which travel with tinyft.
SAMPLE, SAMPLE_ARCH = "examples/animals8", "resnet10s"
# Over three seeds 9 epochs get 87.5 % right, 5 epochs 83.6, 14 epochs 86.9. Nothing else that was
# tried with 9 was better by more than the spread of the seeds: rates of 4e-3 and 8e-3 86.1 and
# 85.3, 80 and 96 pixels 86.0 and 83.8, a linear head 81.6, no augmentation 88.6, "shift" 87.8.
SAMPLE_EPOCHS = 9
FEW = 10  # pictures of a class
OTHER_RATES = {"momentum": 0.02, "sgd": 0.1}  # of the head, where adam learns with 0.002


def open_folder(path: str, **options: Any) -> ImageFolder:
    """The pictures of a folder; what there is to say about them goes to stderr."""
    from tinyft.data import ImageFolder, ImageTable

    if options.get("augment") == "none":
        options["augment"] = None
    by_name = "labels" in options or "label_regex" in options
    with warnings.catch_warnings(action="ignore"):  # they are among the notices
        data = (ImageTable if by_name else ImageFolder)(path, **options)
    for notice in data.notices:
        say(f"note: {one_line(notice)}")
    return data


def make_learner(args: argparse.Namespace) -> Learner:
    """Data, network and head as the options say; without a folder, those of the sample run."""
    from tinyft.finetune.build import RECIPES, vision_learner
    from tinyft.finetune.training import RANDOM
    from tinyft.nn.resnet import expect_architecture

    complete_sample(args)
    if args.arch is not None:  # before pictures are looked at
        expect_architecture(args.arch)
    data = open_folder(args.dir, **given(args, DATA))
    _point_to_check(args, data)
    options = given(args, LEARNER)
    recipe = options.pop("recipe", "fastai")
    for name, value in RECIPES[recipe].items():
        if options.get(name, value) != value:
            option = "--" + name.replace("_", "-")
            raise RequestError(
                f"--recipe {recipe} has {option} {value}; leave {option} {options[name]} out"
            )
    options = RECIPES[recipe] | options
    if options.get("weights") == "none":
        options["weights"] = None
    with naming(args.weights or ""):
        learner = vision_learner(data, device=args.backend or "auto", **options)
    if learner.origin.head_state == RANDOM and not learner.origin.random_body:
        fewest = min(Counter(data.labels["train"].tolist()).values())
        if fewest < FEW:
            say(
                f"note: {counted(fewest, 'picture')} of a class are few for a random head; "
                "--recipe means-and-mirror starts it from what the features tell"
            )
    return learner


def _point_to_check(args: argparse.Namespace, data: ImageFolder) -> None:
    """Say what `tinyft check` would of the numbers of pictures, and where there is more to see."""
    import numpy as np

    from tinyft.inspection.dataset.findings import concerns

    train = np.bincount(data.labels["train"], minlength=data.num_classes)
    worries = concerns(data.classes, train, data.n_valid)
    worries.pop("uneven", None)  # which is among the notices
    if worries:
        say(f"note: {one_line('; '.join(worries.values()))}")
    if worries or data.notices:
        labels = [f"--{n.replace('_', '-')}={value}" for n, value in given(args, LABELS).items()]
        command = shlex.join(["tinyft", "check", args.dir, *labels])
        say(f"note: for copies, doubtful labels, broken files: {one_line(command)}")


def continued_learner(args: argparse.Namespace) -> Learner:
    """The learner of the run that --continue names, on the run's own pictures or on others.

    Raises: RequestError for an option that is the run's to decide
    """
    from tinyft.finetune.run.reading import pictures_of_run
    from tinyft.finetune.training import KEPT

    run = Path(args.continue_run)
    of_run = {*LEARNER} - {"seed"}
    if args.dir is None:  # with another split it would be judged by what it has learnt
        of_run |= {*LABELS, "seed", "valid_fraction"}
    if decided := given(args, tuple(sorted(of_run))):
        option = "--" + next(iter(decided)).replace("_", "-")
        raise RequestError(f"{option}: what is continued is as {run} has it; leave the option out")
    options = given(args, DATA)
    if args.dir is None:
        remedy = f"give their folder: tinyft finetune --continue {run} DIR"
        data = pictures_of_run(run, otherwise=remedy, **options)
    else:
        data = open_folder(args.dir, **options)
        note_learnt(run, data)
    learner = _learner_of_run(run, False, args.backend or "auto", data)
    if args.freeze_epochs is None and learner.origin.head_state == KEPT:
        args.freeze_epochs = 0  # no row of the head is random
    return learner


def note_learnt(run: Path, data: PictureData) -> None:
    """Say how many of the pictures that judge the run it has learnt from."""
    from tinyft.finetune.run.reading import learnt_by

    if learnt := learnt_by(run, data):
        say(
            f"note: {one_line(str(run))} was trained on {learnt} of the {data.n_valid} pictures to "
            "validate, so the accuracy will be too high; set those aside that it has not seen"
        )


def complete_sample(args: argparse.Namespace) -> None:
    """Without a folder, the options that were not given become the sample run's."""
    from tinyft.bundled import bundled

    if args.dir is not None:
        return
    args.dir = str(bundled(SAMPLE))
    if args.weights is None and args.arch in (None, SAMPLE_ARCH):
        args.arch = SAMPLE_ARCH
        if getattr(args, "epochs", 0) is None:  # lr-find has none
            args.epochs = SAMPLE_EPOCHS


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
    elif args.optimizer in OTHER_RATES:
        say(
            f"note: without --lr it is adam's, 0.002; {args.optimizer} often needs about "
            f"{OTHER_RATES[args.optimizer]:g}, and `tinyft lr-find` suggests one"
        )
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


# -------------------------------------------------------------------------------- what was trained


def _own_names(weights: Weights) -> list[str]:
    """The file's class names; numbers where it has none."""
    return weights.classes or [str(i) for i in range(weights.num_classes or 0)]


def open_trained(
    source: str, *, best: bool, device: str, name_classes: NameClasses = _own_names
) -> Learner:
    """The learner of a run or of a file. A weights file's classes are named by `name_classes`.

    Raises: RequestError, WeightsError, OSError
    """
    from tinyft.finetune import load_learner
    from tinyft.finetune.build import published_learner
    from tinyft.weights import load_weights

    if Path(source).is_dir():
        return _learner_of_run(Path(source), best, device)
    with naming(source):
        weights = load_weights(trained_file(source, best=best))
        if "learner" in weights.extra:
            return load_learner(source, device=device)
        return published_learner(weights, name_classes(weights), device=device)


def _learner_of_run(run: Path, best: bool, device: str, data: PictureData | None = None) -> Learner:
    """The run's last learner, or its best, to train on `data` if there are some; if it cannot be
    read, what to do instead.
    """
    from tinyft.finetune import load_learner

    path = trained_file(str(run), best=best)
    try:
        return load_learner(path, data=data, device=device)
    except WeightsError as error:
        raise type(error)(f"{error}{_instead(run, best)}") from error


def trained_file(source: str, *, best: bool) -> str:
    """The file that is meant: of a run's folder its last learner, or its best; else `source`.

    Raises: RequestError for a run without it, or for the best of what is no run; RunError for a
    folder that is none
    """
    from tinyft.finetune.run.reading import read_description

    run = Path(source)
    if not run.is_dir():
        if best:
            raise RequestError(f"--best is for a run's folder, and {source} is none")
        return source
    description = read_description(run)
    path = run / ("best.h5" if best else "learner.h5")
    if not path.exists():
        raise RequestError(f"{_why_missing(path, description)}{_instead(run, best)}")
    return str(path)


def _instead(run: Path, best: bool) -> str:
    """What to do if a run's last learner is not there or cannot be read."""
    has_other = not best and (run / "best.h5").exists()
    return "; or take its best epoch with --best" if has_other else ""


def _why_missing(path: Path, description: dict[str, Any]) -> str:
    """Say why a run lacks the file at `path`, and how it comes to have it."""
    run = path.parent
    if description["finished"]:
        return f"{run} is finished, and its {path.name} is gone: put it back"
    in_memory = description["data"].get("kind") == "arrays"
    how = "Python, which has its arrays" if in_memory else resume_command(run)
    return f"{run} has no {path.name} yet: finish it with {how}"


def refuse_contradictions(args: argparse.Namespace, path: Path) -> None:
    """Raises: RequestError for the first option beside --resume that is not what run.json says;
    RunError if it cannot be read. Another --backend contradicts nothing: files do not know it.
    """
    from tinyft.finetune.run.reading import read_description

    recorded = _recorded(read_description(path)) | {"out": str(path.resolve())}
    for name, value in _asked(args).items():
        if (name, value) == ("on_error", "skip"):  # which leaves out what is gone since
            continue
        if name in recorded and value != recorded[name]:
            option = "DIR" if name == "dir" else "--" + name.replace("_", "-")
            raise RequestError(
                f"{option} {value} contradicts {path}, which began with {recorded[name]}; "
                f"resume it without options, or start a new run"
            )


def resume_command(path: Path) -> str:
    return shlex.join(["tinyft", "finetune", "--resume", str(path)])


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, as run.json would say them."""
    asked = given(args, ("dir", "out", "keep", *DATA, *LEARNER, *RECIPE))
    for name in {"dir", "out"} & asked.keys():
        asked[name] = str(Path(asked[name]).resolve())
    for name in ("weights", "labels"):
        if Path(asked.get(name, "")).is_file():
            asked[name] = str(Path(asked[name]).resolve())
    return asked


def _recorded(description: dict[str, Any]) -> dict[str, Any]:
    """Return what run.json says, under the names of the options."""
    from tinyft.finetune.build import RECIPES

    data = description["data"]["arguments"]
    learner, plan = description["learner"] or {}, description["plan"]
    recipes = [name for name, made in RECIPES.items() if made.items() <= learner.items()]
    recorded = {"labels": None, "label_regex": None, "head_init": "random", "recipe": recipes[-1]}
    recorded |= {name: data[name] for name in DATA if name in data}
    recorded |= {name: learner[name] for name in LEARNER if name in learner}
    recorded |= {"epochs": plan.get("epochs"), "freeze_epochs": plan.get("freeze_epochs")}
    recorded |= {"lr": plan.get("base_lr"), "keep": description["settings"].get("keep", "all")}
    recorded |= {"dir": data.get("path"), "arch": description.get("arch")}
    absent = {"size": "the size of the weights file", "head": "the head of the weights file"}
    return {n: absent.get(n, "none") if value is None else value for n, value in recorded.items()}
