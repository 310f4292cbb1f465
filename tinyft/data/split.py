"""Training and validation parts of a folder: the folder's own, or a random share of each class.

The random split is keyed by (seed, "split", class name): it depends on the names of the class's
files alone, not on the file system's order, on the other classes, or on any other use of the
seed.

Next: tinyft/data/check_files.py
"""

from __future__ import annotations

import zlib
from pathlib import Path

from tinyft.data.prepare import printable
from tinyft.data.scan import Scan, has_folders, is_folder, scan_classes
from tinyft.errors import DataError
from tinyft.seeds import generator

ByClass = dict[str, list[Path]]

VALID_NAMES = ("valid", "val", "test")  # in this order of preference
LAYOUTS = (
    "expected train/CLASS/*.jpg with valid/CLASS/*.jpg beside it, or CLASS/*.jpg (then a share of "
    "each class is set aside for validation)"
)


def find_parts(path: Path) -> dict[str, Path]:
    """The folders that hold classes: "train" and "valid", or only "train", which is to be split.

    Raises:  DataError if `path` is not a folder
    """
    if not path.is_dir():
        raise DataError(f"{printable(path)} is not a folder; {LAYOUTS}")
    if not has_folders(path / "train"):
        return {"train": path}
    beside = [path / name for name in VALID_NAMES if is_folder(path / name)]
    return {"train": path / "train"} | ({"valid": beside[0]} if beside else {})


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
