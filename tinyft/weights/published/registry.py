"""Published weights: which there are, what they were trained with, and which one is the default.

The list is `weights/registry.toml`.  Its entries carry what the files themselves do not say:
preprocessing, accuracy, licence, and the sha256 that a download must have.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyft.bundled import bundled
from tinyft.display import beside, did_you_mean
from tinyft.errors import WeightsError
from tinyft.nn.resnet import ARCHITECTURES
from tinyft.weights.preprocess import Preprocess

_REGISTRY = "weights/registry.toml"
_CLASSES = "weights/imagenet_classes.txt"
_MIB, _MB = 1 << 20, 10**6
SHA256_DIGITS = 64
# As fastai 2.8.12 (vision/models): torchvision's V1 weights for 18 and 34, V2 above.
_DEFAULT_PUBLISHER = "torchvision"


@dataclass(frozen=True)
class Entry:
    """One set of published weights.

    `sha256` may be a prefix of eight digits, or empty where the publisher states none;
    `bundled_file` is set for weights that travel with tinyft and have no URL;
    `same_weights_as` names the entry whose values these are, in a file of another format.

    Units: size in bytes, 0 if unknown; top1 and top5 in percent of the validation pictures of
    ImageNet, for resnet10s of Tiny ImageNet.
    """

    id: str
    arch: str
    url: str
    format: str
    licence: str
    preprocess: Preprocess
    sha256: str = ""
    size: int = 0
    num_classes: int = 1000
    bundled_file: str = ""
    same_weights_as: str = ""
    top1: float | None = None
    top5: float | None = None


@functools.cache
def entries() -> tuple[Entry, ...]:
    """List all entries, in the order of the file.

    Raises: WeightsError if the bundled registry is damaged.
    """
    with open(bundled(_REGISTRY), "rb") as file:
        tables = tomllib.load(file)["weights"]
    return tuple(_entry(table) for table in tables)


def _entry(table: Mapping[str, Any]) -> Entry:
    preprocess = ("resize", "crop", "interpolation", "antialias", "mean", "std")
    # publishers round sizes to MiB (torchvision) or MB (the hub)
    rounded = round(table.get("size_mib", 0) * _MIB + table.get("size_mb", 0) * _MB)
    optional = ("bundled_file", "same_weights_as", "top1", "top5")
    try:
        return Entry(
            id=table["id"],
            arch=table["arch"],
            url=table.get("url", ""),
            format=table["format"],
            licence=table["licence"],
            num_classes=table["num_classes"],
            preprocess=Preprocess(**{name: table[name] for name in preprocess}),
            sha256=table.get("sha256", table.get("sha256_prefix", "")),
            size=table.get("size_bytes", rounded),
            **{name: table[name] for name in optional if name in table},
        )
    except KeyError as error:
        raise WeightsError(f"registry.toml: {table.get('id', 'an entry')} lacks {error}") from error


def find(name: str) -> Entry:
    """Find the entry of an id, such as `timm/resnet50.a1_in1k`, or an architecture's default.

    Raises: WeightsError if there is none, naming the nearest.
    """
    by_id = {entry.id: entry for entry in entries()}
    if name in by_id:
        return by_id[name]
    defaults = _defaults()
    if name in defaults:
        return defaults[name]
    if name in ARCHITECTURES:
        raise WeightsError(
            f"no weights of {name} are published", remedy="give a file, or {weights}", weights=None
        )
    if Path(name).is_dir():
        raise WeightsError(f"{name} is a folder; give a file of weights, of a run its learner.h5")
    meant = did_you_mean(name, [*defaults, *by_id, *beside(name)], most=3)
    raise WeightsError(
        f"there is no file or folder {name!r}, and no published weights are called so (tinyft "
        f"weights list shows all {len(by_id)}){meant}"
    )


def _defaults() -> dict[str, Entry]:
    """Pick per architecture the publisher's last version, or else the first entry of the file."""
    defaults: dict[str, Entry] = {}
    for entry in entries():
        if entry.arch not in defaults or entry.id.startswith(_DEFAULT_PUBLISHER):
            defaults[entry.arch] = entry
    return defaults


def sources(entry: Entry) -> list[Entry]:
    """List the entries whose files hold these weights, in the order in which they are tried:
    a safetensors file, which can be read without a pickle, if its whole sha256 is published; last
    the entry's own.
    """
    others = [
        other
        for other in entries()
        if other.same_weights_as == entry.id
        and other.format == "safetensors"
        and len(other.sha256) == SHA256_DIGITS
    ]
    return [*others, entry] if entry.format != "safetensors" else [entry]


def with_digest(sha256: str) -> Entry | None:
    """Find the entry whose file has this full sha256, however it came to be on the disk."""
    same = (entry for entry in entries() if entry.sha256 and sha256.startswith(entry.sha256))
    return next(same, None)


def imagenet_classes() -> list[str]:
    """List the 1000 ImageNet class names, in the order of the networks' outputs."""
    text = bundled(_CLASSES).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]
