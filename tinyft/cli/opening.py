"""A trained network from whatever names it: a run's folder, a saved learner, a weights file.

Next: tinyft/cli/predict.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tinyft.cli.failures import RequestError, naming
from tinyft.cli.resuming import resume_command

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
        return load_learner(_file_of_run(Path(source), best), device=device)
    if best:
        raise RequestError(f"--best is for a run's folder, and {source} is none")
    with naming(source):
        weights = load_weights(source)
        if "learner" in weights.extra:
            return load_learner(source, device=device)
        return published_learner(weights, name_classes(weights), device=device)


def _file_of_run(run: Path, best: bool) -> Path:
    """The run's last learner, or its best."""
    from tinyft.finetune.run import read_description

    in_memory = read_description(run)["data"].get("kind") == "arrays"
    path = run / ("best.h5" if best else "learner.h5")
    if not path.exists():
        other = run / "best.h5"
        instead = ", or take its best epoch with --best" if other.exists() else ""
        how = "Python, which has its arrays" if in_memory else resume_command(run)
        raise RequestError(f"{run} has no {path.name} yet: finish it with {how}{instead}")
    return path
