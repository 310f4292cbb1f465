"""load_weights: from a path, a published id or an architecture's name to weights in memory."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

from tinyft.errors import WeightsError
from tinyft.weights.model import Weights, facts
from tinyft.weights.names import expect_same
from tinyft.weights.published.cache import fetch
from tinyft.weights.published.registry import find
from tinyft.weights.read import HEAD_PREFIXES, read_weights
from tinyft.weights.safetensors import write_safetensors

_SUFFIXES = (".h5", ".hdf5", ".pth", ".pt", ".th", ".tar", ".bin", ".ckpt", ".safetensors")


def load_weights(
    source: str | os.PathLike[str],
    *,
    arch: str | None = None,
    expect_different: tuple[str, ...] = HEAD_PREFIXES,
    ignore_unknown: bool = False,
) -> Weights:
    """Load the weights of a file, a published id, or an architecture's published default.

    A file's content decides its format: tinyft's HDF5, a torch checkpoint, or safetensors.
    `arch` is recognised from the tensors unless given.  Names that begin with one of
    `expect_different` may be absent or additional; a classifier may have any number of classes.
    `ignore_unknown` reads a torch checkpoint that mentions unknown classes, and leaves those
    objects out.

    Shapes: each array as in Weights; every name but those of `expect_different` is there.
    Raises: WeightsError if nothing is so called, or the file is hostile, damaged, of another
    network, or holds NaN; OSError if the system cannot read it.
    """
    read = partial(
        read_weights, arch=arch, expect_different=expect_different, ignore_unknown=ignore_unknown
    )
    path = Path(source)
    looks_like_a_path = path.is_file() or path.suffix in _SUFFIXES  # a folder may be resnet18
    if looks_like_a_path or not isinstance(source, str):
        return read(path)
    entry = find(source)
    expect_same(entry.arch, arch, source)  # before all of it is fetched
    path = fetch(entry)
    try:
        return read(path)
    except WeightsError as error:
        anew = "" if entry.bundled_file else f" ({path}; fetched anew once it is deleted)"
        raise WeightsError(f"{error}{anew}") from error


def export_safetensors(weights: Weights, path: str | os.PathLike[str]) -> None:
    """Write weights for other programs, under torchvision's names; `head.linear` becomes `fc`.
    The metadata are those of `facts`; weights/load_in_pytorch.py makes a network of both.

    Raises: OSError if it cannot be written.
    """
    arrays = {re.sub(r"^head\.linear\.", "fc.", n): array for n, array in weights.arrays.items()}
    write_safetensors(path, arrays, {"format": "pt", **facts(weights)})
