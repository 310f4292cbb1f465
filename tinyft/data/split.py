"""The pictures below a folder, by class, and their division into training and validation.

Names only: nothing is opened. A class is a folder; its pictures are the files with a picture's
extension in it and below it. Hidden names, macOS leftovers, links to folders (they can form loops)
and everything else is passed over, counted by reason, so that the count can be shown.

A folder may come divided (`find_parts`), or a random share of each class is set aside. That split
is keyed by (seed, "split", class name): it depends on the names of the class's files alone, not on
the file system's order, on the other classes, or on any other use of the seed.
"""

from __future__ import annotations

import os
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tinyft.data.picture import printable
from tinyft.display import beside, counted, did_you_mean, first_few
from tinyft.errors import DataError
from tinyft.seeds import generator

File = TypeVar("File")  # a path, or what stands for one
FilesByClass = dict[str, list[File]]
ByClass = FilesByClass[Path]

LINKS = "links to folders"
TRAIN_NAMES = ("train", "training")
VALID_NAMES = ("valid", "val", "validation", "test")  # in this order of preference
LAYOUTS = (
    "expected train/CLASS/*.jpg with valid/CLASS/*.jpg beside it (or val, validation, test), or "
    "CLASS/*.jpg (then a share of each class is set aside for validation)"
)
# What cameras and programs write for picture.FORMATS. The content decides later.
EXTENSIONS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".avif", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif",
}  # fmt: skip


def find_parts(path: Path) -> dict[str, Path]:
    """Find the folders that hold classes: "train" and "valid", or only "train", to be split.

    The case of their names does not matter, and a link to a folder is one: within a part none is
    followed, so it cannot form a loop.

    Raises:  DataError if `path` is not a folder, or has folders for validation alone
    """
    if not path.is_dir():
        meant = did_you_mean(str(path), beside(path))
        raise DataError(f"{printable(path)} is not a folder; {LAYOUTS}{meant}")
    train, valid = _first_called(TRAIN_NAMES, path), _first_called(VALID_NAMES, path)
    if train is None or not _has_folders(train):
        if valid and _has_folders(valid) and not folders_beside(path):
            raise DataError(f"{printable(path)} has {valid.name}/ and no train/; {LAYOUTS}")
        return {"train": path}
    return {"train": train} | ({"valid": valid} if valid else {})


def folders_beside(path: Path) -> list[str]:
    """Names the folders whose names are not those of parts."""
    names = [folder.name for folder in path.iterdir() if folder.is_dir()]
    parts = (*TRAIN_NAMES, *VALID_NAMES)
    return sorted(n for n in names if n.lower() not in parts and not n.startswith("."))


def _first_called(names: Sequence[str], path: Path) -> Path | None:
    """Return the folder of the first name there is, else one that differs in case alone."""
    for name in names:
        others = sorted(folder for folder in path.iterdir() if folder.name.lower() == name)
        for folder in (path / name, *others):
            if folder.is_dir():
                return folder
    return None


def _has_folders(path: Path) -> bool:
    return any(entry.is_dir() for entry in _entries(path, Scan()))


def set_aside(
    pictures: FilesByClass[File],
    fraction: float,
    seed: int,
    group_of: Mapping[File, str] | None = None,
) -> tuple[FilesByClass[File], FilesByClass[File]]:
    """Split into training and validation pictures: at least one of each class on both sides.

    A fraction of 1 sets everything aside. Pictures of one group stay together, so that shares are
    met as nearly as groups allow, and a class may be missing from validation.

    Raises:  DataError, naming them, for classes with a single picture, or groups too few to divide
    """
    if fraction == 1:
        return {}, pictures
    if group_of:
        return _set_groups_aside(pictures, fraction, seed, group_of)
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


def _set_groups_aside(
    pictures: FilesByClass[File], fraction: float, seed: int, group_of: Mapping[File, str]
) -> tuple[FilesByClass[File], FilesByClass[File]]:
    """Take groups in random order, each if it brings the classes nearer to their shares."""
    members: dict[str, Counter] = {}
    for name, files in pictures.items():
        for file in files:  # a picture without a group is one by itself
            members.setdefault(group_of.get(file, str(file)), Counter())[name] += 1
    total = {name: len(files) for name, files in pictures.items()}
    wanted = {name: max(1, round(fraction * number)) for name, number in total.items()}
    taken: Counter[str] = Counter()
    chosen: set[str] = set()

    def missed(counts: Counter) -> int:
        return sum(abs(wanted[name] - counts[name]) for name in total)

    def leaves_all(counts: Counter) -> bool:
        return all(counts[name] < total[name] for name in total)

    groups = sorted(members)
    order = [groups[i] for i in generator(seed, "split").permutation(len(groups))]
    for group in order:
        after = taken + members[group]
        if leaves_all(after) and missed(after) < missed(taken):
            taken, chosen = after, chosen | {group}
    if not chosen:  # each group is larger than twice its share
        movable = [group for group in order if leaves_all(members[group])]
        if not movable:
            raise DataError(
                f"the pictures come in {len(groups)} groups, and whichever is set aside, a class "
                "has none left to train on; name the splits yourself"
            )
        chosen = {min(movable, key=lambda group: missed(members[group]))}
    parts: tuple[FilesByClass[File], FilesByClass[File]] = {}, {}
    for name, files in pictures.items():
        for file in files:
            side = parts[group_of.get(file, str(file)) in chosen]
            side.setdefault(name, []).append(file)
    return parts


@dataclass
class Scan:
    """The pictures of each class in the order of their paths, and what was passed over."""

    pictures: ByClass = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)  # classes without a picture
    skipped: Counter[str] = field(default_factory=Counter)
    loose: list[str] = field(default_factory=list)  # pictures in no class folder, of the skipped

    def __str__(self) -> str:
        count = sum(map(len, self.pictures.values()))
        reasons = ", ".join(
            f"{reason}: {number}" for reason, number in sorted(self.skipped.items())
        )
        text = f"{counted(count, 'picture')} in {counted(len(self.pictures), 'class')}"
        return text + (f"; passed over: {reasons}" if reasons else "")


def scan_part(root: Path) -> Scan:
    """List the pictures of one part.

    Raises:  DataError, saying what is there, if there are none; else as `scan_classes`
    """
    scan = scan_classes(root)
    if not scan.pictures:
        folders = f"; folders: {', '.join(scan.empty[:10])}" if scan.empty else ""
        message = f"no class folders with pictures in {printable(root)}: found {scan}{folders}"
        if pattern := pattern_of(scan.loose):
            labels = list(dict.fromkeys(_labels_in(pattern, scan.loose)))
            seems = f"{message}; their names seem to tell the classes, {first_few(labels)}"
            raise DataError(seems, remedy="take them with {label_regex}", label_regex=pattern)
        if scan.skipped[LINKS]:
            raise DataError(
                f"{message}; links to folders are not followed, since they can form loops: give "
                "the folder that has the pictures themselves"
            )
        above = "; is it one class of several? Then give the folder above" if scan.loose else ""
        raise DataError(f"{message}{above}; {LAYOUTS}")
    return scan


# great_dane_12.jpg or cat.7.jpg, cat-black.jpg, 0012_cat.jpg
PATTERNS = (r"^(.*?[^\W\d_])[ _.-]*\d+\.\w+$", r"^([^\W\d]+)[ _.-]", r"[ _.-]([^\W\d]+)\.\w+$")


def pattern_of(names: Sequence[str]) -> str | None:
    """Return the pattern whose group finds a few labels in names of pictures; None if none does:
    each name has one, and a label has two pictures or more, in the mean.
    """
    for pattern in PATTERNS:
        labels = _labels_in(pattern, names)
        if len(labels) == len(names) and 2 <= len(set(labels)) <= len(names) / 2:
            return pattern
    return None


def _labels_in(pattern: str, names: Sequence[str]) -> list[str]:
    return [match[1] for name in names if (match := re.search(pattern, name))]


def normalised(name: str) -> str:
    """Spell a class's name: composed characters (NFC), undecodable bytes spelt out."""
    return unicodedata.normalize("NFC", printable(name))


def scan_classes(root: Path) -> Scan:
    """List every class folder of `root`, sorted by code point of their NFC names.

    Raises:  DataError if two folders have the same name once Unicode is normalised; OSError if
             a folder cannot be listed
    """
    scan, folders = Scan(), {}
    for entry in _entries(root, scan):
        if not entry.is_dir():
            scan.skipped["files outside a class folder"] += 1
            scan.loose += [entry.name] * _is_picture(entry)
            continue
        name = normalised(entry.name)
        if name in folders:
            raise DataError(
                f"{printable(root)}: two folders are both called {name} once Unicode is "
                f"normalised (NFC); merge or rename one"
            )
        folders[name] = entry.path
    for name in sorted(folders):
        pictures_here = pictures_below(folders[name], scan)
        if pictures_here:
            scan.pictures[name] = pictures_here
        else:
            scan.empty.append(name)
    return scan


def pictures_below(folder: str | Path, scan: Scan) -> list[Path]:
    """List the pictures in a folder and below it, by name; count what is passed over."""
    pictures = []
    ahead = _entries(folder, scan)[::-1]  # a stack, next entry last: folders may be nested deeply
    while ahead:
        entry = ahead.pop()
        if entry.is_dir():
            ahead += _entries(entry.path, scan)[::-1]
        elif _is_picture(entry):
            pictures.append(Path(entry.path))
        else:
            suffix = printable(Path(entry.name).suffix)
            scan.skipped[f"files of another kind ({suffix or 'no extension'})"] += 1
    return pictures


def _is_picture(entry: os.DirEntry) -> bool:
    return Path(entry.name).suffix.lower() in EXTENSIONS


def _entries(folder: str | Path, scan: Scan) -> list[os.DirEntry]:
    """List files and folders by name; what may not be looked at is counted and left out."""
    kept = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name in ("__MACOSX", "Thumbs.db"):
                scan.skipped["hidden files or folders"] += 1
            elif entry.is_symlink() and _holds(entry.is_dir):
                scan.skipped[LINKS] += 1
            elif not _holds(entry.is_dir) and not _holds(entry.is_file):
                scan.skipped["dead links or special files"] += 1
            else:
                kept.append(entry)
    return kept


def _holds(test: Callable[[], bool]) -> bool:
    """Return what entry.is_dir or is_file says; False where it cannot, as of a link to itself."""
    try:
        return test()
    except OSError:
        return False
