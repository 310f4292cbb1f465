"""Networks at a moment, to be compared: from any weights file, a learner, a checkpoint or a run.

A run gives several: before its first step, and after each phase. The start is no file: it is made
again, from the pretrained weights and the seed in run.json, without the pictures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyft import backends
from tinyft.data.arrays import ImageArrays
from tinyft.errors import RunError, WeightsError
from tinyft.finetune.run.folder import weights_sha256
from tinyft.finetune.run.reading import CHECKPOINT, checkpoints, read_description, read_metrics
from tinyft.finetune.run.resume import learner_at_start
from tinyft.finetune.run.save import judged_preprocess
from tinyft.finetune.run.state import model_arrays
from tinyft.nn.head import HEADS, attach, cut
from tinyft.nn.resnet import ResNet, build
from tinyft.weights import Preprocess, infer_architecture, load_weights, read_arrays
from tinyft.weights.files import damage_is_an_error
from tinyft.weights.hdf5.arrays import open_arrays

if TYPE_CHECKING:
    from tinyft.finetune.learner import Learner


@dataclass(frozen=True)
class Snapshot:
    """A network's arrays under torchvision's names, the head's under `head.`.

    `title` says which moment this is; `preprocess` how its pictures are prepared.
    """

    title: str
    arch: str
    arrays: Mapping[str, np.ndarray]
    preprocess: Preprocess

    def network(self) -> ResNet:
        """The network itself, in evaluation mode; without its head if that is the caller's own."""
        model = cut(build(self.arch, seed=None))
        own = {n.removeprefix("head."): a for n, a in self.arrays.items() if n.startswith("head.")}
        for kind in HEADS.values():
            if classes := len(own.get(f"{kind.last}.weight", ())):
                head = kind(model.num_features, classes)
                if _shapes(head.state_dict()) == _shapes(own):
                    attach(model, head)
        expected = model.state_dict()
        model.load_state_dict({n: a for n, a in self.arrays.items() if n in expected})
        return model.eval()


def of_learner(learner: Learner, title: str) -> Snapshot:
    """A copy of a learner's network as it is now."""
    state = learner.model.state_dict()
    arrays = {name: backends.host(array).copy() for name, array in state.items()}
    return Snapshot(title, learner.arch, arrays, learner.adjusted_preprocess())


def of_source(source: str | os.PathLike[str]) -> Snapshot:
    """The network that a weights file of any format, a saved learner, a checkpoint or a published
    name holds; of a run's folder, its newest checkpoint.

    Raises: WeightsError or RunError if it cannot be read, OSError if the system refuses
    """
    title = os.fspath(source)
    if Path(source).is_dir():
        read_description(Path(source))
        if not (kept := checkpoints(Path(source))):
            raise RunError(f"{title} has kept no checkpoint, so its network is not known")
        return _of_checkpoint(title, kept[max(kept)])
    if Path(source).is_file() and _is_checkpoint(source):
        return _of_checkpoint(title, source)
    weights = load_weights(source)
    arrays = {  # a published classifier under the name that it is trained on with: the linear head
        f"head.linear.{name[3:]}" if name.startswith("fc.") else name: array
        for name, array in weights.arrays.items()
    }
    return Snapshot(title, weights.arch, arrays, judged_preprocess(source, weights))


def of_run(path: str | os.PathLike[str]) -> tuple[list[Snapshot], list[str]]:
    """The network of a run before its first step and after each phase (of a run that is not
    finished, at its newest checkpoint), and notices about what is missing.

    Raises: RunError if its start cannot be made again, or no step of it was kept
    """
    path = Path(path)
    description = read_description(path)
    start, first = _start(path, description), description["first_step"]
    later = {step: file for step, file in checkpoints(path).items() if step > first}
    kept = {step: file for step, file in later.items() if _is_checkpoint(file)}
    damaged = [file.name for step, file in later.items() if step not in kept]
    notices = [f"{name} cannot be read, so it is left out" for name in damaged]
    snapshots = [start]
    ends = _phase_ends(path)
    newest, made = max(kept, default=0), max(ends.values(), default=0)
    if newest and (newest < made or made - first < description["steps"]):  # its last phase goes on
        whole = {name: end for name, end in ends.items() if end < newest}
        so_far = [f"{name} so far, to step {newest - 1}" for name in ends if name not in whole]
        title = so_far[0] if whole and so_far else f"the first {newest - first} steps"
        ends = whole | {title: newest}
    for name, end in ends.items():
        if end in kept:
            snapshots.append(_of_checkpoint(f"after {name}", kept[end]))
        else:
            notices.append(f"the checkpoint at the end of {name} is gone, so it is left out")
    if len(snapshots) < 2:
        raise RunError(f"{path} has no checkpoint after its start, so there is nothing to compare")
    return snapshots, notices


def before_step(path: Path, step: int) -> Snapshot:
    """The network of a run before a step (in the numbers of metrics.csv): the run's start, or that
    step's checkpoint. Raises: RunError, WeightsError or OSError if it is not to be had
    """
    description = read_description(path)
    if step == description["first_step"]:
        return _start(path, description)
    return _of_checkpoint(f"before step {step}", path / "checkpoints" / f"{step:06}.h5")


def _start(path: Path, description: dict[str, Any]) -> Snapshot:
    """The network before the run's first step. The run has kept one that cannot be made again: it
    was trained, or its weights were set, before.
    """
    first = path / "checkpoints" / f"{description['first_step']:06}.h5"
    if first.exists():
        return _of_checkpoint("before", first)
    if description["learner"] is None or description["first_step"]:
        raise RunError(
            f"{path} began with a network that run.json cannot make again (with parts of the "
            "caller's own, or trained before, and its first checkpoint is gone); compare two "
            f"files: tinyft diff BEFORE.h5 {path}"
        )
    nothing = np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.int64)
    asked = description["data"]["arguments"]
    as_then = {name: asked[name] for name in ("size", "augment") if name in asked}
    no_pictures = ImageArrays(nothing, nothing, classes=description["classes"], **as_then)
    no_pictures.exif_transpose = asked.get("exif_transpose", True)
    learner = learner_at_start(path, no_pictures, description["learner"] | {"device": "reference"})
    if weights_sha256(learner) != description["weights_sha256"]:
        raise RunError(
            f"the weights that {path} began with ({learner.origin.weights}) have changed since; "
            "put the file back, or compare two files: tinyft diff BEFORE.h5 AFTER.h5"
        )
    return of_learner(learner, "before")


def _phase_ends(path: Path) -> dict[str, int]:
    """Each phase's name and how many steps were made at its end, from metrics.csv."""
    metrics = read_metrics(path / "metrics.csv")
    if not {"step", "phase"} <= set(metrics):
        raise RunError(f"{path} has no readable metrics.csv: no step of it is known")
    steps = zip(metrics["phase"], metrics["step"], strict=True)
    return {phase: int(step) + 1 for phase, step in steps if np.isfinite(step)}


def _is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Tell a run's checkpoint from other files without reading its arrays."""
    try:
        with open_arrays(path, CHECKPOINT):
            return True
    except WeightsError:
        return False


def _of_checkpoint(title: str, path: str | os.PathLike[str]) -> Snapshot:
    """A checkpoint holds the optimizer's memory too, and does not name the architecture."""
    arrays, _, texts = read_arrays(path, CHECKPOINT)
    own = model_arrays(arrays)
    with damage_is_an_error(path):
        preprocess = Preprocess.from_dict(json.loads(str(texts["state"]))["preprocess"])
    return Snapshot(title, infer_architecture(_shapes(own)), own, preprocess)


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}
