"""A network's weights in memory, with everything that is needed to use them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from tinyft.display import first_few
from tinyft.errors import WeightsError
from tinyft.nn.head import HEADS, attach, cut
from tinyft.nn.resnet import ARCHITECTURES, PadShortcut, ResNet, build
from tinyft.weights.preprocess import Preprocess

_SHOWN = 5  # names per list in a message; the lists themselves are complete


@dataclass(frozen=True)
class LoadReport:
    """Says how a file's tensors fit a network.

    The first three lists are faults.  `expected_differences` are those the caller announced,
    such as the replaced last layer; `ignored` is what lay beside the weights; `prefix` was
    taken off each name; `notes` say whatever else was decided.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    expected_differences: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    prefix: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Tell whether there is no fault."""
        return not (self.missing or self.unexpected or self.mismatched)

    def lines(self) -> list[str]:
        """List what there is to say.  Names are the file's: a line may hold any character."""
        lines = [
            _line("missing from the file", self.missing),
            _line("not in the network", self.unexpected),
            _line("of another shape", self.mismatched),
            _line("different, as expected", self.expected_differences),
            _line("ignored", self.ignored),
            f"prefix taken off each name: {self.prefix}" if self.prefix else "",
            *self.notes,
        ]
        return [line for line in lines if line] or ["every name and shape is as expected"]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def _line(title: str, names: list[str]) -> str:
    """Return `"ignored: optimizer, epoch=89"`, or nothing for no names."""
    return f"{title}: {first_few([name[:120] for name in names], _SHOWN)}" if names else ""


@dataclass(frozen=True)
class Weights:
    """Weights as load_weights returns them and save_weights takes them.

    `arrays` has torchvision's names; `metadata` what is known of their origin (`source_url`,
    `licence`, `training`, `head`, ...); `extra` further texts, such as a learner's JSON;
    `beside` further arrays, such as the features of its training pictures.

    Shapes: each array is float32 and C-contiguous, convolutions (F, C, R, S), `fc` (out, in);
    those of `beside` are float16 (rows, columns).
    """

    arch: str
    arrays: dict[str, np.ndarray]
    classes: list[str] | None
    preprocess: Preprocess
    metadata: dict[str, object] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    beside: dict[str, np.ndarray] = field(default_factory=dict)
    report: LoadReport = field(default_factory=LoadReport)

    @property
    def num_classes(self) -> int | None:
        """Count the classes that the last layer tells apart; None for a body without one."""
        if "fc.bias" in self.arrays and self.arch in ARCHITECTURES:
            return len(self.arrays["fc.bias"])
        if self.classes is not None:
            return len(self.classes)
        recorded = self.metadata.get("num_classes")
        return recorded if isinstance(recorded, int) and recorded else None


def trained_head(weights: Weights) -> tuple[str, dict[str, np.ndarray]]:
    """Find which of HEADS the weights end in, or "custom", or ""; and its arrays under the
    names that they have there. A published classifier is a linear head.
    """
    arrays = {n.removeprefix("head."): a for n, a in weights.arrays.items() if n[:5] == "head."}
    if arrays:
        kind = weights.metadata.get("head")
        return (kind if isinstance(kind, str) and kind in HEADS else "custom"), arrays
    fc = {n.replace("fc.", "linear."): a for n, a in weights.arrays.items() if n[:3] == "fc."}
    return ("linear" if fc else ""), fc


def network_of(weights: Weights) -> ResNet:
    """The network with its trained head, a published classifier as a linear one.

    Raises: WeightsError for weights without a classifier, for a head that is none of HEADS, and for
    arrays that do not fit
    """
    kind, head = trained_head(weights)
    if not kind:
        raise WeightsError(
            "the weights have no classifier (fc.weight and fc.bias), so they tell nothing apart; "
            "train one (tinyft finetune), and give its run"
        )
    if kind not in HEADS:
        raise WeightsError(
            f"the head is none of tinyft's ({', '.join(HEADS)}), whose layers are known. If these "
            "arrays were exported from a learner.h5, give that; for a Module of your own, `tinyft "
            "weights export` to .safetensors, and load its arrays into the same layers elsewhere"
        )
    body = {n: a for n, a in weights.arrays.items() if n.split(".")[0] not in ("fc", "head")}
    network = cut(build(weights.arch, seed=None))
    attach(network, HEADS[kind](network.num_features, weights.num_classes or 1))
    network.load_state_dict(body | {f"head.{name}": array for name, array in head.items()})
    return network


def facts(weights: Weights) -> dict[str, str]:
    """What a program that is not tinyft has to know of weights: `arch` and `head` as plain text
    (fastai, linear, custom, or nothing), as JSON `classes` in the order of the outputs or null,
    `preprocess` (see Preprocess), and `network`, for architectures that only tinyft has.
    """
    plan = ARCHITECTURES[weights.arch]
    network = {
        "depths": plan.depths,
        "widths": plan.widths,
        "stem_stride": plan.stem[1],
        "pad_shortcut": plan.shortcut is PadShortcut,
    }
    values = {
        "classes": weights.classes,
        "preprocess": asdict(weights.preprocess),
        "network": network,
    }
    plain = {"arch": weights.arch, "head": trained_head(weights)[0]}
    return plain | {name: json.dumps(value) for name, value in values.items()}


def check_numbers(arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse what can only be the remains of a failed training or of a damaged file.

    Raises: WeightsError naming the first array with NaN or infinity, or a negative variance.
    """
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            bad = int(np.size(array) - np.isfinite(array).sum())
            raise WeightsError(
                f"{name} has {bad} values that are NaN or infinite; the training that wrote it "
                f"diverged or the file is damaged; take an earlier checkpoint"
            )
        if name.endswith("running_var") and (array < 0).any():
            raise WeightsError(f"{name} has negative variances; the file is damaged")
