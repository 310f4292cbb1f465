"""Finds the state dict in a checkpoint, and compares its names and shapes with a network's.

This file alone knows that a checkpoint may be nested ({"state_dict": ..., "optimizer": ...}), that
a wrapper leaves a prefix on each name (``module.``), and that a file for one task may differ from
the network in its last layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from tinyft.errors import WeightsError
from tinyft.weights.report import LoadReport
from tinyft.weights.torch.tensors import StoredTensor
from tinyft.weights.torch.unpickler import Inert, describe

T = TypeVar("T")
Shape = tuple[int, ...]

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
        rest = [(key, value) for key, value in content.items() if key != chosen]
        ignored += [_ignored(key, value) for key, value in rest]
        content = content[chosen]
    raise WeightsError(f"no state dict within {_DEEPEST} levels of the file")


def _is_state_dict(content: Mapping[object, object]) -> bool:
    """Whether most values are tensors (or what a tensor was refused as)."""
    tensors = sum(isinstance(value, (StoredTensor, Inert)) for value in content.values())
    real = sum(isinstance(value, StoredTensor) for value in content.values())
    return real > 0 and 2 * tensors > len(content)


def _tensors(content: Mapping[object, object], ignored: list[str]) -> dict[str, StoredTensor]:
    """The tensors by name; counters and plain numbers beside them are left aside."""
    tensors: dict[str, StoredTensor] = {}
    for name, value in content.items():
        if isinstance(value, StoredTensor) and isinstance(name, str):
            tensors[name] = value
        elif isinstance(name, str) and isinstance(value, (bool, int, float, str, type(None))):
            ignored.append(_ignored(name, value))
        else:
            raise WeightsError(
                f"the entry {name!r:.80} of the state dict is a {describe(value)}, expected a "
                f"plain tensor; convert it in PyTorch"
            )
    return tensors


def _ignored(key: object, value: object) -> str:
    simple = isinstance(value, (bool, int, float, str, type(None)))
    return f"{key!s:.40}={describe(value)}" if simple else f"{key!s:.40}"


def strip_prefixes(tensors: Mapping[str, T]) -> tuple[dict[str, T], str]:
    """The tensors without what all their names begin with, and the prefix that was taken off.

    Only a prefix that *all* names share goes, so that a layer that is called ``module`` stays.
    A name without a dot, such as SWA's counter ``n_averaged``, has no say and stays as it is.
    """
    dotted = {name: value for name, value in tensors.items() if "." in name}
    plain = {name: value for name, value in tensors.items() if "." not in name}
    removed = ""
    while shared := next((p for p in _PREFIXES if _all_begin_with(dotted, p)), ""):
        dotted = {name.removeprefix(shared): value for name, value in dotted.items()}
        removed += shared
    return {**plain, **dotted}, removed


def _all_begin_with(tensors: Mapping[str, object], prefix: str) -> bool:
    return bool(tensors) and all(name.startswith(prefix) for name in tensors)


def to_torchvision_names(tensors: Mapping[str, T]) -> tuple[dict[str, T], list[str]]:
    """The tensors under torchvision's names, without counters, and notes on what changed.

    The CIFAR ResNets call their last layer ``linear``.  ``num_batches_tracked`` and other counters
    have no use here: tinyft's BatchNorm has a fixed momentum.
    """
    notes: list[str] = []
    counters = [name for name in tensors if _is_counter(name)]
    kept = {name: value for name, value in tensors.items() if not _is_counter(name)}
    if counters:
        notes.append(f"{len(counters)} counters ({counters[0]:.60}, ...) left out")
    if "linear.weight" in kept and "fc.weight" not in kept:
        kept = {name.replace("linear.", "fc.", 1) if name.startswith("linear.") else name: value
                for name, value in kept.items()}  # fmt: skip
        notes.append("the last layer is called linear in the file, fc here")
    return kept, notes


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked") or name == "n_averaged"


def compare(
    expected: Mapping[str, Shape],
    found: Mapping[str, Shape],
    expect_different: tuple[str, ...] = (),
) -> LoadReport:
    """How the names and shapes of a file differ from those of a network.

    A difference in a name that begins with one of ``expect_different`` (``("fc.",)`` when the
    last layer is replaced) is reported, but is no fault.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    mismatched = [
        f"{name}: expected {expected[name]}, found {found[name]}"
        for name in expected
        if name in found and tuple(expected[name]) != tuple(found[name])
    ]
    faults = [_faults(names, expect_different) for names in (missing, unexpected, mismatched)]
    different = [
        f"{kind} {name}"
        for kind, names in (("missing", missing), ("extra", unexpected), ("reshaped", mismatched))
        for name in names
        if name.startswith(expect_different)
    ]
    return LoadReport(*faults, expected_differences=different)


def _faults(names: list[str], expect_different: tuple[str, ...]) -> list[str]:
    return [name for name in names if not name.startswith(expect_different)]
