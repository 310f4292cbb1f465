"""Pictures that are already in memory, as arrays of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinyft.data.loader import PictureData
from tinyft.data.picture import check_size
from tinyft.errors import DataError

if TYPE_CHECKING:
    from tinyft.weights.preprocess import Preprocess

Pair = tuple[np.ndarray, np.ndarray]


class ImageArrays(PictureData):
    """Training and validation pictures given as arrays, with integer labels.

    `classes` names the labels 0, 1, ...; without it they are called "0", "1", ... up to the largest
    training label. The arrays are not copied. The other options are those of `ImageFolder`.

    Shapes:  train and valid are pairs of (N, H, W, 3) uint8 and (N,) integers
    Raises:  DataError for a wrong dtype, shape or label, for two classes of one name, or for data
             that cannot be trained on

    Example:
        >>> pictures, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1])
        >>> data = ImageArrays((pictures, labels), (pictures[:2], labels[:2]), batch_size=2)
        >>> data.classes, data.steps_per_epoch
        (['0', '1'], 2)
    """

    kind = "arrays"  # which the caller must bring again

    def __init__(
        self,
        train: Pair,
        valid: Pair,
        classes: Sequence[str] | None = None,
        *,
        size: int | None = None,
        batch_size: int = 16,
        shuffle: bool = True,
        augment: str | bool | None = "default",
        seed: int = 0,
        workers: int | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        pairs = {"train": train, "valid": valid}
        for split, pair in pairs.items():
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise DataError(
                    f"{split} must be a pair (pictures, labels); got {type(pair).__name__}"
                )
            _check_pictures(split, *pair)
        given = {split: np.asarray(labels) for split, (_, labels) in pairs.items()}
        if classes is None:
            highest = int(given["train"].max()) if given["train"].size else -1
            classes = [str(label) for label in range(highest + 1)]
        for split in pairs:
            _check_labels(split, given[split], classes)
        labels = {split: array.astype(np.int64) for split, array in given.items()}
        self._pictures = {split: pair[0] for split, pair in pairs.items()}
        super().__init__(
            classes,
            labels,
            size=size,
            batch_size=batch_size,
            shuffle=shuffle,
            augment=augment,
            seed=seed,
            workers=workers,
            cache_bytes=cache_bytes,
        )

    def files(self, split: str) -> list[str]:
        """Names the pictures "train[0]", "train[1]", ..., since they have no files."""
        return [f"{split}[{index}]" for index in range(len(self.labels[split]))]

    def source(self, split: str, index: int) -> np.ndarray:
        """Return one picture, (H, W, 3) uint8, as a view."""
        return self._pictures[split][index]

    def expect_whole(self, preprocess: Preprocess) -> None:
        """Do nothing: an array is no file that may be cut off."""

    def _arguments(self) -> dict:
        return {"classes": self.classes, **super()._arguments()}


def _check_pictures(split: str, pictures: np.ndarray, labels: np.ndarray) -> None:
    shape: tuple[int, ...] = getattr(pictures, "shape", ())
    dtype = getattr(pictures, "dtype", type(pictures).__name__)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
        raise DataError(
            f"{split} pictures must be uint8 (N, height, width, 3), values 0..255; "
            f"got {dtype} {shape}"
        )
    if shape[0]:
        check_size(shape[2], shape[1])
    try:
        labels = np.asarray(labels)
    except ValueError as error:  # lists of different lengths
        raise DataError(f"{split} labels are no array: {error}") from None
    if labels.shape != shape[:1] or (labels.size and labels.dtype.kind not in "iu"):
        raise DataError(
            f"{split} labels must be {shape[0]} integers, one for each picture; "
            f"got {labels.dtype} {labels.shape}"
        )


def _check_labels(split: str, labels: np.ndarray, classes: Sequence[str]) -> None:
    if not labels.size:
        return
    lowest, highest = labels.min(), labels.max()
    if lowest < 0:
        raise DataError(f"{split} labels must count from 0; the lowest is {lowest}")
    if highest >= len(classes):
        raise DataError(
            f"{split} labels must lie in 0..{len(classes) - 1} for {len(classes)} classes; "
            f"the highest is {highest}"
        )
