"""Batches of pictures: order, augmentation, decoding ahead of the step, for any source of data.

`PictureData` is the interface of the learner. A subclass says where pictures come from
(tinyft/data/folder.py, tinyft/data/arrays.py) and calls `__init__` with labels. Each batch is a
pure function of (data, seed, epoch, step): the shuffle is keyed by (seed, "shuffle", epoch), each
augmentation by (seed, "augment", epoch, id), so that any step can be made again, and the number
of threads changes nothing.

Letters: N pictures, S the side of the network's input.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tinyft.data.augment import aug_transforms, random_resized_crop, random_shift
from tinyft.data.picture import shown, working_picture
from tinyft.data.prefetch import Job, PictureCache, ahead, default_budget, default_workers
from tinyft.display import Displayed, first_few
from tinyft.errors import DataError
from tinyft.progress import tracked
from tinyft.seeds import generator

if TYPE_CHECKING:
    from tinyft.weights.preprocess import Preprocess

Items = TypeVar("Items", list, np.ndarray)

SMALLEST_SIDE = 8  # pixels: a picture of fewer shows nothing but colours
UNEVEN = 5  # times as many pictures in the largest class as in the smallest is worth a note
LISTED = ("split", "class", "sha256", "file")  # columns of `PictureData.listing`
AUGMENTATIONS = {"default": aug_transforms, "crop": random_resized_crop, "shift": random_shift}


@dataclass(frozen=True)
class Batch:
    """Pictures of one step.

    Shapes:  images (N, S, S, 3) uint8; labels (N,) int64; ids (N,) int64, places in `files(split)`
    """

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray


class PictureData(Displayed):
    """Labelled training and validation pictures, served in batches.

    A subclass names its `kind` and has `files` and `source`.
    """

    kind: str

    def __init__(
        self,
        classes: Sequence[str],
        labels: dict[str, np.ndarray],
        *,
        size: int | None,
        batch_size: int,
        shuffle: bool,
        augment: str | bool | None,
        seed: int,
        exif_transpose: bool = True,
        workers: int | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        """`labels` has one int64 array for each of "train" and "valid"; None means the default.

        Raises:  DataError for an option out of range or data that cannot be trained on
        """
        self.classes: list[str] = checked_classes(classes)
        self.labels = labels
        if size is not None:
            size = checked_int("size", size, SMALLEST_SIDE)
        self.size = size
        self.seed: int = checked_int("seed", seed, 0)
        self.shuffle: bool = bool(shuffle)
        self.augment: str | None = _checked_augment(augment)
        self.exif_transpose: bool = bool(exif_transpose)
        workers = default_workers() if workers is None else workers
        self.workers: int = checked_int("workers", workers, 0)
        budget = default_budget() if cache_bytes is None else cache_bytes
        self.cache: PictureCache = PictureCache(checked_int("cache_bytes", budget, 0))
        self._whole_at: Preprocess | None = None  # see `expect_whole`
        self.notices: list[str] = []
        self.left_out = np.zeros(0, np.int64)  # ids of training pictures that are not to be had
        self.requested_batch_size: int = checked_int("batch_size", batch_size, 1)
        self.batch_size: int = self.requested_batch_size
        # differs from fastai, whose epoch of fewer pictures than a batch has no step
        if 0 < self.n_train < self.batch_size:
            self.notices.append(
                f"batch size {self.batch_size} reduced to {self.n_train}: "
                f"there are no more training pictures"
            )
            self.batch_size = self.n_train
        self._note_uneven_classes()

    @property
    def num_classes(self) -> int:
        """Count the classes that the network has to tell apart."""
        return len(self.classes)

    @property
    def shows_whole_squares(self) -> bool:
        """Tell whether training shows the whole middle of a picture, as fastai's augmentation
        does, and so should validation.
        """
        return self.augment == "default"

    @property
    def n_train(self) -> int:
        """Count the training pictures."""
        return len(self.labels["train"])

    @property
    def n_valid(self) -> int:
        """Count the validation pictures."""
        return len(self.labels["valid"])

    @property
    def uneven(self) -> bool:
        """Tell whether one class has UNEVEN times another's pictures, to train or to validate."""
        counts = [np.unique(labels, return_counts=True)[1] for labels in self.labels.values()]
        return any(each.size and each.max() >= UNEVEN * each.min() for each in counts)

    @property
    def steps_per_epoch(self) -> int:
        """Count the whole batches in an epoch. The last short one is dropped: a few pictures have
        poor statistics, which batch norm would normalise with.

        Raises:  DataError if there are no training pictures
        """
        if self.n_train == 0:
            no_pictures = "there are no training pictures"
            raise DataError(no_pictures, remedy="{valid_fraction} only evaluates", valid_fraction=1)
        return self.n_train // self.batch_size

    def files(self, split: str) -> list[str]:
        """Names the pictures of "train" or "valid", in the order of their ids."""
        raise NotImplementedError

    def ids(self, split: str) -> np.ndarray:
        """Return the ids of the pictures of a part that are to be had: all but `left_out`."""
        ids = np.arange(len(self.labels[split]))
        return np.setdiff1d(ids, self.left_out) if split == "train" else ids

    def describe(self) -> dict[str, Any]:
        """Return what builds the same data again, as JSON: `kind`, its `arguments`, and counts."""
        return {
            "kind": self.kind,
            "arguments": self._arguments(),
            "classes": self.classes,
            "n_train": self.n_train,
            "n_valid": self.n_valid,
        }

    def _arguments(self) -> dict:
        """Return the options that decide what batches hold."""
        return {
            "size": self.size,
            "batch_size": self.requested_batch_size,
            "shuffle": self.shuffle,
            "augment": self.augment,
            "seed": self.seed,
        }

    def listing(self) -> str:
        """List the pictures as a CSV file: each one's split, class, sha256 and name.

        It reads all of them, at the speed of the disk or 1.5 GB a second.
        """
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(LISTED)
        for split, labels in self.labels.items():
            parts = _groups([self.source(split, i) for i in range(len(labels))], 64)
            with ThreadPoolExecutor(max(1, self.workers)) as pool:
                hashes = chain.from_iterable(pool.map(lambda part: [*map(sha256, part)], parts))
            classes = [self.classes[label] for label in labels]
            for row in zip(classes, hashes, self.files(split), strict=True):
                writer.writerow((split, *row))
        return table.getvalue()

    def source(self, split: str, index: int) -> Path | np.ndarray:
        """Return one picture as it came: a path or an array (H, W, 3) uint8."""
        raise NotImplementedError

    def adjusted(self, preprocess: Preprocess) -> Preprocess:
        """Return the weights' preprocessing at this data's `size`, turned upright or not."""
        if self.size is not None:
            preprocess = preprocess.scaled(self.size)
        if not self.exif_transpose:
            preprocess = replace(preprocess, exif_transpose=False)
        return preprocess

    def train_order(self, epoch: int) -> np.ndarray:
        """Order the ids of all training pictures for an epoch.

        Shapes:  out (n_train,) int64
        """
        if not self.shuffle:
            return np.arange(self.n_train)
        return generator(self.seed, "shuffle", epoch).permutation(self.n_train)

    def train_batches(
        self, epoch: int, preprocess: Preprocess, first_step: int = 0
    ) -> Generator[Batch, None, None]:
        """Yield the batches of a training epoch from `first_step` on, of `batch_size` pictures;
        fewer where some are `left_out`. One of which none is left, or one alone, which batch norm
        could not compare, is made of the pictures that the epoch begins with.

        Raises:  DataError, naming the file, when the batch of a picture that cannot be read is due
        """
        order = self.train_order(epoch)
        whole = order[: self.steps_per_epoch * self.batch_size]
        groups = [*whole.reshape(-1, self.batch_size)[first_step:]]
        if self.left_out.size:
            left = [ids[~np.isin(ids, self.left_out)] for ids in (order, *groups)]
            first, least = left[0][: self.batch_size], min(2, self.batch_size)
            groups = [ids if len(ids) >= least else first for ids in left[1:]]
        return self._batches("train", groups, preprocess, epoch)

    def valid_batches(self, preprocess: Preprocess) -> Iterator[Batch]:
        """Yield all validation pictures in order, never augmented; the last batch may be short.

        Raises:  as `train_batches`
        """
        groups = _groups(np.arange(self.n_valid), self.requested_batch_size)
        batches = self._batches("valid", groups, preprocess)
        return tracked(batches, "judging", self.n_valid, size=lambda batch: len(batch.ids))

    def chosen_pictures(
        self, split: str, ids: np.ndarray, preprocess: Preprocess
    ) -> Iterator[Batch]:
        """Yield those pictures in this order, not augmented; the last batch may be short.

        Raises:  as `train_batches`
        """
        return self._batches(split, _groups(ids, self.batch_size), preprocess)

    def _batches(
        self,
        split: str,
        groups: Iterable[np.ndarray],
        preprocess: Preprocess,
        epoch: int | None = None,
    ) -> Generator[Batch, None, None]:
        """Yield batches that threads fill, augmented if an epoch is given."""
        preprocess = self.adjusted(preprocess)
        side = preprocess.crop

        def fill(images: np.ndarray, row: int, index: int) -> None:
            picture = self._working(split, index, preprocess)
            if epoch is None or self.augment is None:
                images[row] = shown(picture, preprocess)
            else:
                rng = generator(self.seed, "augment", epoch, index)
                images[row] = AUGMENTATIONS[self.augment](picture, rng, side)

        def jobs() -> Iterator[Job[Batch]]:
            for ids in groups:
                images = np.empty((len(ids), side, side, 3), np.uint8)
                tasks = [partial(fill, images, row, int(index)) for row, index in enumerate(ids)]
                yield Batch(images, self.labels[split][ids], ids), tasks

        return ahead(jobs(), self.workers)

    def _working(self, split: str, index: int, preprocess: Preprocess) -> np.ndarray:
        """Return a picture at working size, remembered under all that decides its pixels."""
        settings = (preprocess.resize, preprocess.interpolation, preprocess.exif_transpose)
        make = partial(working_picture, self.source(split, index), preprocess)
        return self.cache.get(split, index, settings, make)

    def expect_whole(self, preprocess: Preprocess) -> None:
        """Decode every picture, so that none that is cut off ends a run in its middle. What is
        remembered is not decoded again; asked again, it returns at once.

        Raises:  DataError naming those that cannot be decoded, and why
        """
        preprocess = self.adjusted(preprocess)
        if preprocess == self._whole_at:
            return

        bad: list[str] = []

        def read(split: str, index: int) -> None:
            try:
                self._working(split, index, preprocess)
            except (DataError, OSError) as error:
                bad.append(str(error))

        places = [(split, int(i)) for split in self.labels for i in self.ids(split)]
        groups = _groups([partial(read, *place) for place in places], self.batch_size)
        read_ahead = ahead(((tasks, tasks) for tasks in groups), self.workers)
        for _ in tracked(read_ahead, "reading every picture once", len(places), size=len):
            pass
        if bad:
            raise DataError(
                f"{len(bad)} of {len(places)} pictures cannot be used: "
                f"{first_few(sorted(bad), 10)}",
                remedy="remove them, or leave them out with {on_error}",
                on_error="skip",
            )
        self._whole_at = preprocess

    def always_largest(self) -> tuple[str, float]:
        """Return the class with most training pictures, and the accuracy of always naming it (NaN
        without validation pictures): what a network has to be better than.
        """
        largest = int(np.bincount(self.labels["train"], minlength=self.num_classes).argmax())
        right = self.labels["valid"] == largest
        return self.classes[largest], float(right.mean()) if right.size else math.nan

    def _note_uneven_classes(self) -> None:
        counts = np.bincount(self.labels["train"], minlength=self.num_classes)
        fewest = int(np.where(counts, counts, counts.max(initial=0) + 1).argmin())
        name, share = self.always_largest()
        if counts.any() and counts.max() >= UNEVEN * counts[fewest]:
            right = f"; always naming {name} is right {share:.0%} of times"
            guess = "" if math.isnan(share) else right
            self.notices.append(
                f"uneven classes: {name} has {counts.max()} training pictures, "
                f"{self.classes[fewest]} {counts[fewest]}{guess}"
            )


def _groups(items: Items, size: int) -> list[Items]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def sha256(source: Path | np.ndarray) -> str:
    """Return the sha256 of a file's bytes, or of an array's shape and values, as 64 digits."""
    if isinstance(source, np.ndarray):
        digest = hashlib.sha256(str(source.shape).encode())
        digest.update(np.ascontiguousarray(source).data)
        return digest.hexdigest()
    with open(source, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def expect_pictures(data: object) -> PictureData:
    """Return what it is given. Raises: TypeError for what is no source of pictures, as a path"""
    if not isinstance(data, PictureData):
        raise TypeError(
            f"expected pictures, as ft.ImageFolder(...) or ft.ImageArrays(...); got {data!r:.60}"
        )
    return data


def checked_int(name: str, value: object, least: int) -> int:
    """Return `value` as an int. Raises: DataError that says what the option `name` must be"""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise DataError(f"{name} must be a whole number of at least {least}; got {value!r}")
    return int(value)


def checked_classes(classes: Sequence[str]) -> list[str]:
    """Return the names in composed characters (NFC), as folders' are.

    Raises:  DataError for what is no text, has no place in a file, or comes twice
    """
    if isinstance(classes, str):
        raise DataError(f"classes must be a list of names; got {classes!r}: give [{classes!r}]")
    classes = list(classes)
    for name in classes:
        if not isinstance(name, str):
            raise DataError(f"classes must be names, as text; got {name!r}: give str({name!r})")
        if re.search("[\0\ud800-\udfff]", name):
            raise DataError(f"the class {name!r} has a character that no file can keep: rename it")
    classes = [unicodedata.normalize("NFC", name) for name in classes]
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise DataError(f"classes must have different names; {twice[0]!r} comes twice, rename one")
    return classes


def _checked_augment(augment: str | bool | None) -> str | None:
    if augment is True:
        return "default"
    if augment is False or augment is None:
        return None
    if not isinstance(augment, str) or augment not in AUGMENTATIONS:
        raise DataError(
            f"augment must be one of {', '.join(AUGMENTATIONS)}, or None; got {augment!r}"
        )
    return augment
