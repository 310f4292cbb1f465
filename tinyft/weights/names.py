"""Names and shapes: which ResNet has which, and what in a stranger's file they belong to.

This file alone knows that a checkpoint may be nested ({"state_dict": ..., "optimizer": ...}), that
a wrapper leaves a prefix on each name (`module.`), and that a file for one task may differ from
the network in its last layer.  A file is compared with a network's names and shapes before a byte
of it becomes an array.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from tinyft.display import did_you_mean
from tinyft.errors import WeightsError
from tinyft.nn.resnet import ARCHITECTURES, Architecture, Bottleneck, ResNet
from tinyft.weights.model import LoadReport
from tinyft.weights.torch.tensors import Inert, StoredTensor
from tinyft.weights.torch.unpickler import SIMPLE, describe

T = TypeVar("T")
Shapes = dict[str, tuple[int, ...]]

# Where training scripts put the state dict, in the order in which we look.  Averaged weights
# (state_dict_ema) come last: they are another model, taken only if there is no plain one.
_CANDIDATES = (
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "params",
    "weights",
    "state_dict_ema",
    "model_ema",
)
# What wraps a model: DataParallel, torch.compile, Lightning, detection and self-supervision.
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.")
_DEEPEST = 5


@dataclass(frozen=True)
class StateDict:
    """The tensors found in a checkpoint, what was left aside, and how they were found."""

    tensors: dict[str, StoredTensor]
    ignored: list[str]
    notes: list[str]


def find_state_dict(content: object) -> StateDict:
    """Unwrap a checkpoint's object down to the dict whose values are tensors.

    Raises: WeightsError if there is none, or if an entry of it is no plain tensor.
    """
    ignored: list[str] = []
    notes: list[str] = []
    for _ in range(_DEEPEST):
        if not isinstance(content, dict):
            raise WeightsError(f"expected a dict of tensors, found {describe(content)}")
        candidates = [key for key in _CANDIDATES if isinstance(content.get(key), dict)]
        if not candidates and _is_state_dict(content):
            return StateDict(_tensors(content, ignored), ignored, notes)
        if not candidates:
            keys = ", ".join(f"{key!r:.40}" for key in list(content)[:8])
            raise WeightsError(f"no state dict in the file; its keys are {keys or 'none'}")
        chosen = candidates[0]
        if len(candidates) > 1:
            notes.append(f"several state dicts ({', '.join(candidates)}): {chosen} was taken")
        ignored += [_ignored(key, value) for key, value in content.items() if key != chosen]
        content = content[chosen]
    raise WeightsError(f"no state dict within {_DEEPEST} levels of the file")


def _is_state_dict(content: Mapping[object, object]) -> bool:
    """Tell whether most values are tensors (or what a tensor was refused as)."""
    tensors = sum(isinstance(value, (StoredTensor, Inert)) for value in content.values())
    real = sum(isinstance(value, StoredTensor) for value in content.values())
    return real > 0 and 2 * tensors > len(content)


def _tensors(content: Mapping[object, object], ignored: list[str]) -> dict[str, StoredTensor]:
    """Take the tensors by name; counters and plain numbers beside them are left aside."""
    tensors: dict[str, StoredTensor] = {}
    for name, value in content.items():
        if isinstance(value, StoredTensor) and isinstance(name, str):
            tensors[name] = value
        elif isinstance(name, str) and isinstance(value, SIMPLE):
            ignored.append(_ignored(name, value))
        else:
            raise WeightsError(
                f"the entry {name!r:.80} of the state dict is a {describe(value)}, expected a "
                f"plain tensor; convert it in PyTorch"
            )
    return tensors


def _ignored(key: object, value: object) -> str:
    return f"{key!s:.40}={describe(value)}" if isinstance(value, SIMPLE) else f"{key!s:.40}"


def strip_prefixes(tensors: Mapping[str, T]) -> tuple[dict[str, T], str]:
    """Take off what all names begin with; return the tensors and that prefix.

    Only a prefix that *all* names share goes, so that a layer that is called `module` stays.
    A name without a dot, such as SWA's counter `n_averaged`, has no say and stays as it is.
    """
    dotted = {name: value for name, value in tensors.items() if "." in name}
    plain = {name: value for name, value in tensors.items() if "." not in name}
    removed = ""
    while dotted:
        shared = next((p for p in _PREFIXES if all(name.startswith(p) for name in dotted)), "")
        if not shared:
            break
        dotted = {name.removeprefix(shared): value for name, value in dotted.items()}
        removed += shared
    return {**plain, **dotted}, removed


def to_torchvision_names(tensors: Mapping[str, T]) -> tuple[dict[str, T], list[str]]:
    """Give the tensors torchvision's names, without counters; notes say what changed.

    The CIFAR ResNets call their last layer `linear`.  `num_batches_tracked` and other counters
    have no use here: tinyft's BatchNorm has a fixed momentum.
    """
    notes: list[str] = []
    counters = [name for name in tensors if _is_counter(name)]
    kept = {name: value for name, value in tensors.items() if not _is_counter(name)}
    if counters:
        notes.append(f"{len(counters)} counters ({counters[0]:.60}, ...) left out")
    if "linear.weight" in kept and "fc.weight" not in kept:
        kept = {re.sub(r"^linear\.", "fc.", name): value for name, value in kept.items()}
        notes.append("the last layer is called linear in the file, fc here")
    return kept, notes


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked") or name == "n_averaged"


def compare(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    expect_different: tuple[str, ...] = (),
) -> LoadReport:
    """Report how the names and shapes of a file differ from those of a network.

    A difference in a name that begins with one of `expect_different` (`("fc.",)` when the
    last layer is replaced) is reported, but is no fault.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    mismatched = [
        f"{name}: expected {expected[name]}, found {found[name]}"
        for name in expected
        if name in found and tuple(expected[name]) != tuple(found[name])
    ]
    lists = {"missing": missing, "extra": unexpected, "reshaped": mismatched}
    faults = [[n for n in names if not n.startswith(expect_different)] for names in lists.values()]
    different = [
        f"{kind} {name}"
        for kind, names in lists.items()
        for name in names
        if name.startswith(expect_different)
    ]
    return LoadReport(faults[0], faults[1], faults[2], expected_differences=different)


def architecture(arch: str) -> Architecture:
    """Return the architecture of that name.

    Raises: WeightsError if there is none, listing those there are.
    """
    if arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        meant = did_you_mean(arch, ARCHITECTURES)
        raise WeightsError(f"there is no architecture {arch!r}; choose one of {known}{meant}")
    return ARCHITECTURES[arch]


def expect_same(found: str, arch: str | None, source: object = "this") -> None:
    """Raises: WeightsError if another architecture was asked for than the source's"""
    if arch not in (None, found):
        architecture(arch)
        remedy = f"give {{arch}} or leave it out, or give weights of a {arch}"
        raise WeightsError(f"{source} is a {found}, not a {arch}", remedy=remedy, arch=found)


def expected_shapes(arch: str, num_classes: int | None) -> Shapes:
    """Return each tensor's name and shape, in the order of the network; no `fc` if None.

    Convolutions are (F, C, R, S), linear weights (outputs, inputs), as in torchvision's files.

    Raises: WeightsError for an unknown architecture.
    """
    network = ResNet(architecture(arch), num_classes or 1)  # of zeros, which take no memory yet
    shapes = {name: array.shape for name, array in network.state_dict().items()}
    if num_classes is None:
        del shapes["fc.weight"], shapes["fc.bias"]
    return shapes


def infer_architecture(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Recognise the architecture whose blocks, widths and stem a file's tensors have.

    Raises: WeightsError that says what was found, for relatives that tinyft does not build
    (ResNeXt, wide and "d" variants) and for anything else.
    """
    if "conv1.0.weight" in shapes:
        raise _not_ours("a stem of several convolutions (resnet50d and its relatives)")
    if "conv1.weight" not in shapes or "layer1.0.conv1.weight" not in shapes:
        some = ", ".join(sorted(shapes)[:5]) or "no tensors"
        raise _not_ours(f"no conv1.weight or layer1.0.conv1.weight, but {some}")
    middle = shapes.get("layer1.0.conv2.weight", ())
    if len(middle) == 4 and middle[1] < middle[0]:  # a block's 3x3 sees every channel, unless ...
        raise _not_ours(f"grouped convolutions of {middle[1]} channels each (ResNeXt)")
    described = _describe(shapes)
    for name, plan in ARCHITECTURES.items():
        if described == (plan.depths, plan.widths, plan.block is Bottleneck, plan.stem[0]):
            return name
    blocks, widths, bottleneck, stem = described
    kind = "bottleneck" if bottleneck else "basic"
    raise _not_ours(f"{kind} blocks {blocks} of widths {widths} after a {stem}x{stem} stem")


def _describe(
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[tuple[int, ...], tuple[int, ...], bool, int]:
    """Count blocks per stage, width per stage; are blocks bottlenecks; the stem's kernel."""
    last_block: dict[int, int] = {}
    for name in shapes:
        if match := re.match(r"layer([1-9])\.([0-9]{1,3})\.", name):
            stage, block = int(match[1]), int(match[2])
            last_block[stage] = max(block, last_block.get(stage, 0))
    blocks = tuple(last_block[stage] + 1 for stage in sorted(last_block))
    firsts = [shapes.get(f"layer{stage}.0.conv1.weight", ()) for stage in sorted(last_block)]
    widths = tuple(shape[0] if shape else 0 for shape in firsts)
    stem = shapes["conv1.weight"]
    bottleneck = "layer1.0.conv3.weight" in shapes
    return blocks, widths, bottleneck, stem[-1] if len(stem) == 4 else 0


def _not_ours(what: str) -> WeightsError:
    known = ", ".join(ARCHITECTURES)
    return WeightsError(
        f"the tensors are of no network that tinyft builds: found {what}; known are {known}"
    )
