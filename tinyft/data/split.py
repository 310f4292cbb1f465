"""Training and validation parts of a folder: the folder's own, or a random share of each class.

The random split is keyed by (seed, "split", class name): it depends on the names of the class's
files alone, not on the file system's order, on the other classes, or on any other use of the
seed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

from tinyft.data.prepare import printable
from tinyft.data.scan import Scan, has_folders, scan_classes
from tinyft.errors import DataError
from tinyft.seeds import generator

ByClass = dict[str, list[Path]]

TRAIN_NAMES = ("train", "training")
VALID_NAMES = ("valid", "val", "validation", "test")  # in this order of preference
LAYOUTS = (
    "expected train/CLASS/*.jpg with valid/CLASS/*.jpg beside it (or val, validation, test), or "
    "CLASS/*.jpg (then a share of each class is set aside for validation)"
)


def find_parts(path: Path) -> dict[str, Path]:
    """The folders that hold classes: "train" and "valid", or only "train", which is to be split.

    The case of their names does not matter, and a link to a folder is one: within a part none is
    followed, so it cannot form a loop.

    Raises:  DataError if `path` is not a folder, or has folders for validation alone
    """
    if not path.is_dir():
        raise DataError(f"{printable(path)} is not a folder; {LAYOUTS}")
    train, valid = _first_called(TRAIN_NAMES, path), _first_called(VALID_NAMES, path)
    if train is None or not has_folders(train):
        if valid and has_folders(valid) and not _others(path):
            raise DataError(f"{printable(path)} has {valid.name}/ and no train/; {LAYOUTS}")
        return {"train": path}
    return {"train": train} | ({"valid": valid} if valid else {})


def unused_folders(path: Path, parts: dict[str, Path]) -> list[str]:
    """The names of folders that lie beside the parts and are none."""
    return [] if path in parts.values() else _others(path)


def _others(path: Path) -> list[str]:
    """The folders that are not called as parts are."""
    names = [found.name for found in path.iterdir() if found.is_dir()]
    parts = (*TRAIN_NAMES, *VALID_NAMES)
    return sorted(n for n in names if n.lower() not in parts and not n.startswith("."))


def _first_called(names: Sequence[str], path: Path) -> Path | None:
    return next((found for name in names if (found := _folder_called(name, path))), None)


def _folder_called(name: str, path: Path) -> Path | None:
    """The folder of that name, or else one that differs from it in case alone."""
    others = sorted(found for found in path.iterdir() if found.name.lower() == name)
    return next((found for found in (path / name, *others) if found.is_dir()), None)


def scan_part(root: Path) -> Scan:
    """The pictures of one part.

    Raises:  DataError, saying what is there, if there are none
    """
    scan = scan_classes(root)
    if not scan.pictures:
        folders = f"; folders: {', '.join(scan.empty[:10])}" if scan.empty else ""
        above = "; is it one class of several? Then give the folder above" if scan.loose else ""
        raise DataError(
            f"no class folders with pictures in {printable(root)}: found {scan}{folders}{above}; "
            f"{LAYOUTS}"
        )
    return scan


def set_aside(pictures: ByClass, fraction: float, seed: int) -> tuple[ByClass, ByClass]:
    """Training and validation pictures: at least one of each class on both sides.

    A fraction of 1 sets everything aside.

    Raises:  DataError, naming them, for classes with a single picture
    """
    if fraction == 1:
        return {}, pictures
    single = [name for name, files in pictures.items() if len(files) < 2]
    if single:
        raise DataError(
            f"a class with one picture cannot be split: {', '.join(single)}; add pictures, or "
            f"make train/ and valid/ folders yourself"
        )
    # differs from fastai, which draws from all pictures at once
    train, valid = {}, {}
    for name, files in pictures.items():
        order = generator(seed, "split", zlib.crc32(name.encode())).permutation(len(files))
        count = min(len(files) - 1, max(1, round(fraction * len(files))))
        chosen = set(order[:count].tolist())
        train[name] = [file for i, file in enumerate(files) if i not in chosen]
        valid[name] = [file for i, file in enumerate(files) if i in chosen]
    return train, valid
