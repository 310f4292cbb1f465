"""A folder of pictures as training and validation data.

Two layouts. `train/CLASS/*` with `valid/`, `val/`, `validation/` or `test/` beside it; or `CLASS/*`
alone, of which a share of each class is set aside. The vocabulary is that of the training part,
sorted by code point: a class that is missing from validation shifts nothing, one that only
validation has is an error.

Construction lists names and divides them (split.py), and reads every file's first bytes, so that a
web page called rose.jpg is found now; a photograph that is cut off at the end is found before the
first step (`expect_whole`). With `on_error="skip"` every file is decoded at once, because the
number of pictures, and with it the plan, must not change on the way.
"""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from tinyft.data.loader import LISTED, PictureData, checked_classes, checked_int, sha256
from tinyft.data.picture import check_header, decode, printable
from tinyft.data.prefetch import default_workers
from tinyft.data.split import (
    ByClass,
    Scan,
    find_parts,
    folders_beside,
    pictures_below,
    scan_part,
    set_aside,
)
from tinyft.display import counted, first_few
from tinyft.errors import DataError

SHOWN = 10  # files named in one message


class ImageFolder(PictureData):
    """The pictures below `path`, labelled by the folders that they are in.

    `valid_fraction` is the share of each class that is set aside where the folder has no split of
    its own; 1.0 sets aside everything, to evaluate a whole folder. `classes` fixes the vocabulary
    and its order, for a network that was trained before. `on_error` is "raise" or "skip": what
    becomes of files that are no whole picture; `skipped` then has them, with the reason.

    `size` is the side of the network's input in pixels (None: the weights file's). `augment` is
    "default" (fastai's `aug_transforms`), "crop" (random resized crops), "shift" or None. `workers`
    threads prepare pictures ahead of the step (0: none; None: at most two). Decoded pictures stay
    in memory up to `cache_bytes` (None: a quarter of what is free, at most 1 GiB).

    Raises:  DataError for a folder, file or option that cannot be used, saying what was found;
             OSError if the system will not list a folder
    """

    kind = "folder"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size: int | None = None,
        batch_size: int = 16,  # differs from fastai: 64
        shuffle: bool = True,
        augment: str | bool | None = "default",
        seed: int = 0,
        valid_fraction: float = 0.2,
        on_error: str = "raise",
        exif_transpose: bool = True,
        classes: Sequence[str] | None = None,
        workers: int | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self.path: Path = Path(path)
        fits = isinstance(valid_fraction, Real) and 0 < valid_fraction <= 1
        if not fits:
            raise DataError(f"valid_fraction must be above 0 and at most 1; got {valid_fraction!r}")
        if on_error not in ("raise", "skip"):
            raise DataError(f"on_error must be 'raise' or 'skip'; got {on_error!r}")
        self.valid_fraction: float = float(valid_fraction)
        self.on_error = on_error
        self.skipped: dict[str, str] = {}
        self._given_classes = None if classes is None else checked_classes(classes)
        self._found: list[str] = []  # notices, until the base class has its own
        self._group_of: dict[Path, str] = {}  # pictures that stay on one side of the split
        workers = default_workers() if workers is None else checked_int("workers", workers, 0)
        parts = self._parts(checked_int("seed", seed, 0), workers)
        vocabulary = self._vocabulary(parts)
        self._paths = {split: _all_files(part) for split, part in parts.items()}
        super().__init__(
            vocabulary,
            {split: _labels(part, vocabulary) for split, part in parts.items()},
            size=size,
            batch_size=batch_size,
            shuffle=shuffle,
            augment=augment,
            seed=seed,
            exif_transpose=exif_transpose,
            workers=workers,
            cache_bytes=cache_bytes,
        )
        self._warn_of_copies()
        self.notices: list[str] = self._found + self.notices

    def files(self, split: str) -> list[str]:
        """Names paths relative to the folder, with forward slashes, undecodable bytes spelt out."""
        return [self._name(path) for path in self._paths[split]]

    def source(self, split: str, index: int) -> Path:
        """Return the path of one picture."""
        return self._paths[split][index]

    def describe(self) -> dict[str, Any]:
        """Return what builds the same data again, and the files that were skipped."""
        return {**super().describe(), "skipped": self.skipped}

    def _arguments(self) -> dict:
        return {
            "path": str(self.path.resolve()),
            **super()._arguments(),
            "valid_fraction": self.valid_fraction,
            "on_error": self.on_error,
            "exif_transpose": self.exif_transpose,
            "classes": self._given_classes,
        }

    def _parts(self, seed: int, workers: int) -> dict[str, ByClass]:
        """Find the readable pictures of "train" and "valid", by class."""
        parts = self._listed()
        self._drop_unreadable(parts, workers)
        if "valid" not in parts:
            train, valid = set_aside(parts["train"], self.valid_fraction, seed, self._group_of)
            parts = {"train": train, "valid": valid}
        return parts

    def _listed(self) -> dict[str, ByClass]:
        """List the pictures of "train" and "valid", or only "train", by class."""
        parts, roots = {}, find_parts(self.path)
        unused = folders_beside(self.path) if self.path not in roots.values() else []
        if unused:
            names = ", ".join(map(printable, unused))
            self._found.append(f"beside {roots['train'].name}/, and not used: {names}")
        for split, root in roots.items():
            scan = scan_part(root)
            if scan.skipped or scan.empty:
                empty = f"; without pictures: {', '.join(scan.empty)}" if scan.empty else ""
                self._found.append(f"{printable(root)}: {scan}{empty}")
            parts[split] = scan.pictures
        return parts

    def _drop_unreadable(self, parts: dict[str, ByClass], workers: int) -> None:
        paths = [path for part in parts.values() for path in _all_files(part)]
        bad = unreadable(paths, whole=self.on_error == "skip", workers=workers)
        if not bad:
            return
        by_reason = defaultdict(list)
        for path, reason in bad.items():
            by_reason[reason].append(self._name(path))
        reasons = (f"{first_few(names, SHOWN)}: {why}" for why, names in by_reason.items())
        summary = f"{len(bad)} of {len(paths)} pictures cannot be used: {'; '.join(reasons)}"
        if self.on_error == "raise":
            remedy = "remove them, or leave them out with {on_error}"
            raise DataError(summary, remedy=remedy, on_error="skip")
        self._found.append(f"skipped: {summary}")
        self.skipped = {self._name(path): reason for path, reason in bad.items()}
        for split, part in parts.items():
            kept = {
                name: [path for path in files if path not in bad] for name, files in part.items()
            }
            parts[split] = {name: files for name, files in kept.items() if files}
            if not parts[split]:
                where = f" for {split}" if len(parts) > 1 else ""
                raise DataError(f"no readable pictures are left{where}; {summary}")

    def _vocabulary(self, parts: dict[str, ByClass]) -> list[str]:
        """Order the class names as `classes` does, or as training: their places are the labels."""
        classes = self._given_classes
        whose = "to tell apart"
        if classes is None:
            classes, whose = list(parts["train"] or parts["valid"]), "of training"
        for split, part in parts.items():
            unknown = [name for name in part if name not in classes]
            if unknown:
                known = first_few(classes) or "none"
                where = split if sum(map(bool, parts.values())) > 1 else "the folder"
                raise DataError(
                    f"{where} has pictures of {first_few(unknown)}, which are not among the "
                    f"{len(classes)} classes {whose}: {known}; take those out"
                )
            missing = [name for name in classes if name not in part]
            if missing and part:
                self._found.append(f"{split} has no pictures of: {first_few(missing)}")
        return classes

    def _warn_of_copies(self) -> None:
        """Warn of one picture under two labels, of which one is wrong, and of one on both sides of
        the split: an accuracy on pictures that were trained on is silently too high.
        """
        place = {
            path: (split, label)
            for split, paths in self._paths.items()
            for path, label in zip(paths, self.labels[split].tolist(), strict=True)
        }
        same = _copies(place)
        for what, axis in (("under two labels", 1), ("in both train and valid", 0)):
            apart = [paths for paths in same if len({place[path][axis] for path in paths}) > 1]
            if apart:
                names = [" = ".join(map(self._name, paths)) for paths in apart]
                are = "picture is" if len(apart) == 1 else "pictures are"
                message = f"{len(apart)} {are} {what}: {first_few(names, SHOWN)}"
                self._found.append(message)
                warnings.warn(message, stacklevel=3)  # points at the caller of ImageFolder

    def _name(self, path: Path) -> str:
        return printable(path.relative_to(self.path).as_posix())


class MovedPictures(ImageFolder):
    """The pictures of `lines` (split, class, sha256, name), wherever below `path` they are now and
    whatever they are called there; their order, classes, split and names are those of the lines.

    Those called `without` are left out, and with `skip_lost` those that are not there or have other
    bytes: `lost` names them. The training pictures keep their ids, and so their place in each epoch
    and their augmentation; the validation pictures close ranks.

    Raises:  DataError naming the pictures that are lost, or if too few are left
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        lines: Sequence[Sequence[str]],
        *,
        without: Collection[str] = (),
        skip_lost: bool = False,
        **options: Any,
    ) -> None:
        self._lines, self._without, self._skip_lost = lines, {*without}, skip_lost
        super().__init__(path, **options)
        self.left_out = np.flatnonzero([name in self.lost for name in self.files("train")])
        for split, least in (("train", min(2, self.batch_size)), ("valid", 1)):
            if self.lost and len(self.ids(split)) < least:
                raise DataError(f"too few pictures of {split} are left: {self.words()}")

    def files(self, split: str) -> list[str]:
        """Names the pictures as the lines do."""
        return [name for part, _, _, name in self._there if part == split]

    def listing(self) -> str:
        """List all pictures of the lines, also those that are left out."""
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([LISTED, *self._lines])
        return table.getvalue()

    def words(self) -> str:
        """Say which pictures are left out, and how many are left."""
        lost, left = first_few(sorted(self.lost), SHOWN), len(self.ids("train"))
        return (
            f"{len(self.lost)} of {counted(len(self._lines), 'picture')} left out, which the run "
            f"has lost (gone or changed): {lost}; {left} to learn from and {self.n_valid} to be "
            "tested on are left"
        )

    def _parts(self, seed: int, workers: int) -> dict[str, ByClass]:
        if not self.path.is_dir():
            raise DataError(
                f"{printable(self.path)} is not a folder; expected that of the pictures"
            )
        below = pictures_below(self.path, Scan())
        with ThreadPoolExecutor(max(1, workers)) as pool:
            by_digest = dict(zip(pool.map(_sha256_or_none, below), below, strict=True))
        new = [line[3] for line in self._lines if line[2] not in by_digest]
        new = [name for name in new if name not in self._without]
        if new and not self._skip_lost:
            raise DataError(
                f"{len(new)} of {counted(len(self._lines), 'picture')} are not in "
                f"{printable(self.path)}, or have changed: {first_few(new, SHOWN)}",
                remedy="put them back, or leave them out with {on_error}",
                on_error="skip",
            )
        self.lost = {*self._without, *new}
        self._there = [x for x in self._lines if x[0] == "train" or x[3] not in self.lost]
        parts: dict[str, ByClass] = {"train": {}, "valid": {}}
        for split, label, digest, name in self._there:
            path = by_digest.get(digest, self.path / name)
            parts[split].setdefault(label, []).append(path)
        return parts

    def _warn_of_copies(self) -> None:
        """Say nothing: it was said when the run began."""


def _sha256_or_none(path: Path) -> str | None:
    """Return the sha256 of a file; None if it cannot be read."""
    try:
        return sha256(path)
    except OSError:
        return None


def _all_files(part: ByClass) -> list[Path]:
    return [path for files in part.values() for path in files]


def _labels(part: ByClass, classes: list[str]) -> np.ndarray:
    counts = [len(files) for files in part.values()]
    return np.repeat(np.array([classes.index(name) for name in part], np.int64), counts)


def unreadable(paths: Sequence[Path], *, whole: bool, workers: int) -> dict[Path, str]:
    """Return the files that are no usable picture, each with the reason.

    Opens each file and reads its first bytes, about 0.2 ms; with `whole`, decodes all of it in
    threads.
    """

    def reason(path: Path) -> str | None:
        try:
            if whole:
                whole_picture(path)
                return None
            _expect_regular(path)
            with path.open("rb") as stream:
                check_header(stream)
        except DataError as error:
            return str(error)
        except OSError as error:
            return f"cannot be opened: {error.strerror}"
        return None

    with ThreadPoolExecutor(max(1, workers)) as pool:
        reasons = pool.map(reason, paths)
        return {path: why for path, why in zip(paths, reasons, strict=True) if why is not None}


def _expect_regular(path: Path) -> None:
    """Raises: DataError for a pipe, which gives its bytes once and may wait for them for ever"""
    if path.exists() and not path.is_file():
        raise DataError("not a regular file but a pipe, device or folder")


def whole_picture(path: Path) -> np.ndarray:
    """Decode all of a file, turned as its EXIF data say: (H, W, 3) uint8.

    Raises:  DataError with the reason, without the file's name, for any that cannot be
    """
    try:
        _expect_regular(path)
        with path.open("rb") as stream:
            check_header(stream)  # first: what is no picture may be larger than the memory
            stream.seek(0)
            return decode(stream.read())
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}") from None
    except MemoryError:
        raise DataError("the file is larger than the memory") from None


def _copies(places: Mapping[Path, object]) -> list[list[Path]]:
    """Find files with the same bytes that are in different places, such as both sides of a split.

    Only files whose size occurs in more than one place are read.
    """
    sizes, by_digest = defaultdict(list), defaultdict(list)
    for path in places:
        sizes[path.stat().st_size].append(path)
    for paths in sizes.values():
        if len({places[path] for path in paths}) > 1:
            for path in paths:
                by_digest[sha256(path)].append(path)
    return sorted(same for same in by_digest.values() if len({places[path] for path in same}) > 1)
