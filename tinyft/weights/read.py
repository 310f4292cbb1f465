"""read_weights: from a weights file of any format, whoever sent it, to weights in memory.

The order of work is the same for each format: open the file without reading an array; find the
names; recognise the architecture; compare every shape; only then read, and check the values.
The outcome is Weights, a WeightsError or an OSError, and nothing else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tinyft.errors import WeightsError
from tinyft.nn.resnet import ARCHITECTURES
from tinyft.weights.files import LazyArray, damage_is_an_error, file_sha256
from tinyft.weights.hdf5.index import SIGNATURE
from tinyft.weights.hdf5.weights_file import open_native
from tinyft.weights.model import LoadReport, Weights, check_numbers
from tinyft.weights.names import (
    compare,
    expect_same,
    expected_shapes,
    find_state_dict,
    infer_architecture,
    strip_prefixes,
    to_torchvision_names,
)
from tinyft.weights.preprocess import Preprocess
from tinyft.weights.published.registry import Entry, imagenet_classes, with_digest
from tinyft.weights.safetensors import is_safetensors, open_safetensors
from tinyft.weights.torch.checkpoint import (
    PICKLE_MAGICS,
    TAR_MAGIC,
    TAR_MAGIC_AT,
    ZIP_MAGIC,
    open_checkpoint,
)

_HEAD = 512
# What is given instead of weights, by how it begins in small letters, and what to do.
_OTHERS = (
    (b"version https://git-lfs", "it is a Git LFS pointer to them; `git lfs pull` fetches them"),
    (b"<", "it is a web page; download the file itself, by the link to its raw content"),
    (b"{", "it is JSON, as a server's answer or a model's config; give the weights beside it"),
    (b"\x93numpy", "it is an array of NumPy; save a state dict in PyTorch, or safetensors"),
    (b"\xff\xd8\xff", "it is a picture; pictures come as DIR"),
    (b"\x89png", "it is a picture; pictures come as DIR"),
    (b"\x1f\x8b", "it is packed by gzip; unpack it first"),
)
# float32 takes twice the bytes of float16, and deflated members unpack to a few times their size;
# what takes more than that repeats itself.
_LARGEST_EXPANSION, _ALWAYS_ALLOWED = 16, 64 << 20
_ITEMSIZE = np.dtype(np.float32).itemsize  # of every array in memory
# The last layer may have any number of classes, and a fine-tuned one may be a module of its own.
HEAD_PREFIXES = ("fc.", "head.")
_LAST_LAYER = ("fc.bias", "fc.weight")


def read_weights(
    path: str | os.PathLike[str],
    entry: Entry | None = None,
    *,
    arch: str | None = None,
    expect_different: tuple[str, ...] = HEAD_PREFIXES,
    ignore_unknown: bool = False,
    own: bool = False,
) -> Weights:
    """Read the weights in a file; its content decides the format.

    `entry` says what a foreign file does not: preprocessing, licence, origin.  Without one it is
    looked for by the file's sha256.  `own` reads a learner's whose network is its caller's own,
    and nothing else.  The other options are those of load_weights.

    Raises: WeightsError, OSError, as load_weights.
    """
    path = Path(path)
    with damage_is_an_error(path):
        kind = detect_format(path)
        if kind == "tinyft":
            return _load_native(path, arch, expect_different, own)
        digest = file_sha256(path)
        entry = entry or with_digest(digest)
        with open(path, "rb") as file:
            loaded = _load_foreign(file, kind, arch, expect_different, ignore_unknown)
        origin: dict[str, object] = {"source_format": kind, "source_sha256": digest}
        if entry is not None:
            origin |= {"source_url": entry.url, "licence": entry.licence}
        return _with_facts(replace(loaded, metadata=origin), entry)


def detect_format(path: str | os.PathLike[str]) -> str:
    """Say `tinyft` (HDF5), `torch` or `safetensors`, by the first bytes, not by the name.

    Raises: WeightsError if it is none of them; OSError if it cannot be opened.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if head.startswith(ZIP_MAGIC) or head[TAR_MAGIC_AT:].startswith(TAR_MAGIC):
        return "torch"
    if head.startswith(SIGNATURE):
        return "tinyft"
    if is_safetensors(head):
        return "safetensors"
    if head.startswith(PICKLE_MAGICS):  # a safetensors file's length may begin so, too
        return "torch"
    seems = next((what for start, what in _OTHERS if head.lstrip().lower().startswith(start)), "")
    seems = seems or f"it begins with {head[:8]!r}"
    raise WeightsError(
        f"{path} is neither HDF5, nor a torch checkpoint, nor safetensors: "
        f"{seems if head else 'it is empty; get it again'}"
    )


def _load_native(path: Path, arch: str | None, different: tuple[str, ...], own: bool) -> Weights:
    with open_native(path) as file:
        found = file.weights.arch
        expect_same(found, arch, path)
        is_own = found not in ARCHITECTURES and "learner" in file.weights.extra
        if is_own != own:
            name = f"{found:.60}"
            whose = "a network of its caller's own" if is_own else "which tinyft makes by itself"
            remedy = f"model={name}(...)" if is_own else "without model="
            raise WeightsError(f"{path} holds a {name}, {whose}: ft.load_learner(path, {remedy})")
        report = LoadReport() if own else _checked_report(found, file.lazy, different)
        weights = file.read()
        arrays = weights.arrays if own else _in_order(weights.arrays, found)
        check_numbers(arrays)
        check_numbers(weights.beside)
        return replace(weights, arrays=arrays, report=report)


def _load_foreign(
    file: BinaryIO,
    kind: str,
    arch: str | None,
    expect_different: tuple[str, ...],
    ignore_unknown: bool,
) -> Weights:
    """Read a torch checkpoint or a safetensors file."""
    ignored: list[str] = []
    notes: list[str] = []
    if kind == "safetensors":
        lazy, _ = open_safetensors(file)
    else:
        checkpoint = open_checkpoint(file, ignore_unknown)
        state = find_state_dict(checkpoint.content)
        lazy = {name: checkpoint.lazy(tensor) for name, tensor in state.tensors.items()}
        ignored, notes = state.ignored, state.notes
        _check_total(lazy, os.fstat(file.fileno()).st_size)
    lazy, prefix = strip_prefixes(lazy)
    lazy, renamed = to_torchvision_names(lazy)
    arch = arch or infer_architecture({name: item.shape for name, item in lazy.items()})
    report = _checked_report(arch, lazy, expect_different)
    doubles = sum(item.dtype == "<f8" for item in lazy.values())
    rounded = [f"{doubles} float64 tensors rounded to float32"] if doubles else []
    report = replace(report, ignored=ignored, prefix=prefix, notes=[*notes, *renamed, *rounded])
    arrays = _in_order({name: _as_float32(name, item) for name, item in lazy.items()}, arch)
    check_numbers(arrays)
    return Weights(arch, arrays, None, Preprocess.for_architecture(arch), report=report)


def _check_total(lazy: Mapping[str, LazyArray], file_size: int) -> None:
    """Raises: WeightsError for many views of the same few values, which can take any memory"""
    total = _ITEMSIZE * sum(math.prod(item.shape) for item in lazy.values())
    if total > _LARGEST_EXPANSION * file_size + _ALWAYS_ALLOWED:
        raise WeightsError(
            f"the tensors of a file of {file_size:,} bytes would take {total:,} in memory: they "
            f"repeat their numbers; call .contiguous() on each before saving"
        )


def _checked_report(
    arch: str, lazy: Mapping[str, LazyArray], expect_different: tuple[str, ...]
) -> LoadReport:
    """Compare with the architecture; its number of classes is the file's own.

    So a wrong shape is a fault in each tensor, `fc` included, and so is half a last layer; other
    names may differ as announced.
    """
    shapes = {name: item.shape for name, item in lazy.items()}
    last = [shapes[name] for name in _LAST_LAYER if name in shapes]
    outputs = next((shape[0] for shape in last if shape), 1) if last else None
    expected = expected_shapes(arch, outputs)
    report, strict = compare(expected, shapes, expect_different), compare(expected, shapes)
    missing = [name for name in strict.missing if name in (*report.missing, *_LAST_LAYER)]
    report = replace(report, missing=missing, mismatched=strict.mismatched)
    if not report.fits:
        try:
            found = infer_architecture(shapes)
        except WeightsError:
            found = arch
        expect_same(found, arch)
        raise WeightsError(f"the file does not fit {arch}:\n{report}")
    return report


def _as_float32(name: str, item: LazyArray) -> np.ndarray:
    if item.dtype not in ("<f4", "<f2", "<f8", "bfloat16"):
        raise WeightsError(f"{name} is stored as {item.dtype}, expected floats; convert it")
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, which is refused
        return item.read().astype(np.float32)


def _in_order(arrays: Mapping[str, np.ndarray], arch: str) -> dict[str, np.ndarray]:
    """Order arrays as the network does; heads, which it does not know, come last."""
    known = [name for name in expected_shapes(arch, 1) if name in arrays]
    return {name: arrays[name] for name in (*known, *sorted(set(arrays) - set(known)))}


def _with_facts(weights: Weights, entry: Entry | None) -> Weights:
    """Add what the file does not say: the registry's preprocessing, ImageNet's class names."""
    notes = list(weights.report.notes)
    preprocess = entry.preprocess if entry else weights.preprocess
    if preprocess.assumed:
        notes.append(f"preprocessing assumed: {preprocess.resize}/{preprocess.crop}, as usual")
    classes = weights.classes
    if weights.num_classes == 1000 and not weights.arch.startswith("cifar_"):
        classes = imagenet_classes()
        notes.append("class names assumed: ImageNet's, since the file has 1000 and names none")
    report = replace(weights.report, notes=notes)
    return replace(weights, classes=classes, preprocess=preprocess, report=report)
