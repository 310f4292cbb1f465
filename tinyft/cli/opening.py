"""A trained network from whatever names it: a run's folder, a saved learner, a weights file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyft.cli.failures import RequestError, naming
from tinyft.cli.resuming import resume_command
from tinyft.errors import WeightsError

if TYPE_CHECKING:
    from tinyft.finetune import Learner
    from tinyft.weights import Weights

NameClasses = Callable[["Weights"], list[str]]


def open_trained(source: str, *, best: bool, device: str, name_classes: NameClasses) -> Learner:
    """The learner of a run or of a file. A weights file's classes are named by `name_classes`.

    Raises: RequestError, WeightsError, OSError
    """
    from tinyft.finetune import load_learner
    from tinyft.finetune.build import published_learner
    from tinyft.weights import load_weights

    if Path(source).is_dir():
        return _learner_of_run(Path(source), best, device)
    if best:
        raise RequestError(f"--best is for a run's folder, and {source} is none")
    with naming(source):
        weights = load_weights(source)
        if "learner" in weights.extra:
            return load_learner(source, device=device)
        return published_learner(weights, name_classes(weights), device=device)


def _learner_of_run(run: Path, best: bool, device: str) -> Learner:
    """The run's last learner, or its best; if that cannot be read, what to do instead."""
    from tinyft.finetune import load_learner
    from tinyft.finetune.run.reading import read_description

    description = read_description(run)
    other = run / "best.h5"
    instead = "; or take its best epoch with --best" if not best and other.exists() else ""
    path = run / ("best.h5" if best else "learner.h5")
    if not path.exists():
        raise RequestError(f"{_why_missing(path, description)}{instead}")
    try:
        return load_learner(path, device=device)
    except WeightsError as error:
        raise type(error)(f"{error}{instead}") from error


def _why_missing(path: Path, description: dict[str, Any]) -> str:
    """Why a run lacks the file at `path`, and how it comes to have it."""
    run = path.parent
    if description["finished"]:
        return f"{run} is finished, and its {path.name} is gone: put it back"
    in_memory = description["data"].get("kind") == "arrays"
    how = "Python, which has its arrays" if in_memory else resume_command(run)
    return f"{run} has no {path.name} yet: finish it with {how}"
