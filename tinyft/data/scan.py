"""Which pictures a folder holds, by class: names only, nothing is opened.

A class is a folder; its pictures are the files with a picture's extension in it and below it.
Hidden names, macOS leftovers, links to folders (they can form loops) and everything else is
passed over, counted by reason, so that the count can be shown.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tinyft.data.prepare import printable
from tinyft.errors import DataError

# What cameras and programs write for the formats of decode.FORMATS. The content decides later.
EXTENSIONS = frozenset(
    f".{name}"
    for names in ("jpg jpeg jpe jfif", "png webp gif avif", "bmp tif tiff", "ppm pgm pbm pnm")
    for name in names.split()
)


@dataclass
class Scan:
    """The pictures of each class in the order of their paths, and what was passed over."""

    pictures: dict[str, list[Path]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)  # classes without a picture
    skipped: Counter = field(default_factory=Counter)
    loose: int = 0  # pictures in no class folder, among the skipped

    def __str__(self) -> str:
        count = sum(map(len, self.pictures.values()))
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(self.skipped.items()))
        text = f"{count} pictures in {len(self.pictures)} classes"
        return text + (f"; passed over: {reasons}" if reasons else "")


def scan_classes(root: Path) -> Scan:
    """Every class folder of `root`, classes sorted by code point of their NFC names.

    Raises:  DataError if two folders have the same name once Unicode is normalised; OSError if
             a folder cannot be listed
    """
    scan, folders = Scan(), {}
    for entry in _entries(root, scan):
        if not entry.is_dir():
            scan.skipped["files outside a class folder"] += 1
            scan.loose += _is_picture(entry)
            continue
        name = class_name(entry.name)
        if name in folders:
            raise DataError(
                f"{printable(root)}: two folders are both called {name} once Unicode is "
                f"normalised (NFC); merge or rename one"
            )
        folders[name] = entry.path
    for name in sorted(folders):
        found = pictures_below(folders[name], scan)
        if found:
            scan.pictures[name] = found
        else:
            scan.empty.append(name)
    return scan


def pictures_below(folder: str | Path, scan: Scan) -> list[Path]:
    """The pictures in a folder and below it, by name; what is passed over is counted in `scan`."""
    found = []
    ahead = _entries(folder, scan)[::-1]  # a stack, next entry last: folders may be nested deeply
    while ahead:
        entry = ahead.pop()
        if entry.is_dir():
            ahead += _entries(entry.path, scan)[::-1]
        elif _is_picture(entry):
            found.append(Path(entry.path))
        else:
            suffix = printable(Path(entry.name).suffix)
            scan.skipped[f"files of another kind ({suffix or 'no extension'})"] += 1
    return found


def class_name(folder_name: str) -> str:
    """A folder's name as a class: composed characters (NFC), undecodable bytes spelt out."""
    return unicodedata.normalize("NFC", printable(folder_name))


def has_folders(path: Path) -> bool:
    """Whether there is anything that could be a class."""
    return path.is_dir() and any(entry.is_dir() for entry in _entries(path, Scan()))


def _is_picture(entry: os.DirEntry) -> bool:
    return Path(entry.name).suffix.lower() in EXTENSIONS


def _holds(test: Callable[[], bool]) -> bool:
    """What entry.is_dir or is_file says; False where it cannot, as of a link to itself."""
    try:
        return test()
    except OSError:
        return False


def _entries(folder: str | Path, scan: Scan) -> list[os.DirEntry]:
    """Files and folders by name; what may not be looked at is counted and left out."""
    kept = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name in ("__MACOSX", "Thumbs.db"):
                scan.skipped["hidden files or folders"] += 1
            elif entry.is_symlink() and _holds(entry.is_dir):
                scan.skipped["links to folders"] += 1
            elif not _holds(entry.is_dir) and not _holds(entry.is_file):
                scan.skipped["dead links or special files"] += 1
            else:
                kept.append(entry)
    return kept
