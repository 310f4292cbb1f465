"""`check`: what a folder of pictures would do to training, found without training and without
moving a file.

Every file is decoded whole, once, in threads; what stays in memory of a picture is its size, a
thumbnail and its features. Thumbnails find copies (copies.py); features say which labels look
wrong, by ridge regression from what a frozen, pretrained network sees to the labels: a few matrix
products, no training and no rates.

A picture's own label would teach the regression to agree with it, so each is judged by the
regression of all others: out of fold, one picture (with its copies) a fold. This needs no N
regressions. With H the matrix that takes the labels to what is fitted, leaving the group g out
changes its residuals to (I - H_gg)^-1 times what they are. Classes weigh alike, whatever their
number of pictures, or each picture of a small one would look like one of a large one.

Letters: N pictures, K classes, C features, S the side of the network's input.

Source: Hastie, Tibshirani and Friedman, The elements of statistical learning (2009), section 7.10
for the shortcut; Northcutt et al., Confident learning (2021) for the idea.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from tinyft import backends
from tinyft.data.loader import PictureData
from tinyft.data.picture import prepare, printable
from tinyft.data.prefetch import ahead, default_workers
from tinyft.data.split import find_parts, folders_beside, scan_classes, scan_part, set_aside
from tinyft.display import first_few
from tinyft.engine.tape import no_grad
from tinyft.engine.tensor import Tensor
from tinyft.errors import DataError
from tinyft.inspection.dataset.copies import SIDE, grouped, members, thumbnail
from tinyft.inspection.dataset.findings import FEWEST, DatasetCheck, Picture, Suspect
from tinyft.nn.folding import fold
from tinyft.nn.head import cut
from tinyft.nn.resnet import build
from tinyft.progress import tracked, working
from tinyft.weights import load_weights

BUNDLED = "resnet10s"  # travels with tinyft: nothing is fetched unless it is asked for
BATCH = 16  # pictures
# What a data set notes, and `check` finds too, or is of no matter to it.
FOUND_TOO = re.compile(
    r"skipped: \d+ of \d+ pictures|uneven classes: |batch size |\d+ pictures? (is|are) "
)
WORTH_A_LOOK = 0.2  # of a score: how far another class must be ahead of the label


def check(
    data: str | os.PathLike[str] | PictureData,
    *,
    weights: str | os.PathLike[str] | None = None,
    arch: str | None = None,
    size: int | None = None,
    compare_labels: bool = True,
    valid_fraction: float = 0.2,
    seed: int = 0,
    device: str = "auto",
) -> DatasetCheck:
    """Look through a folder of pictures, or `ImageFolder(...)` and its like, before training.

    `weights` and `arch` name the frozen network that compares pictures with labels, as for
    `vision_learner`; without both it is the small one that travels with tinyft.
    `compare_labels=False` goes without a network. `size` is the side of its input. A folder without
    a split is divided by `valid_fraction` and `seed`, as `ImageFolder` divides it.

    Raises:  DataError if there are no pictures at all; OSError if a folder cannot be listed; as
             `load_weights`
    """
    if isinstance(data, PictureData):
        path: Path | None = getattr(data, "path", None)
        name = printable(path.resolve().name) if path else "arrays in memory"
        classes, notes, has_split = list(data.classes), data.notices, True
        notes = [each for each in notes if not FOUND_TOO.match(each)]
        unusable = dict(getattr(data, "skipped", {}))
        listed = [
            Picture(file, data.source(split, i), int(data.labels[split][i]), split)
            for split in data.labels
            for i, file in enumerate(data.files(split))
        ]
    else:
        name, unusable = printable(Path(os.path.abspath(data)).name or "pictures"), {}
        classes, listed, notes, has_split = listed_below(Path(data))
    network = None
    if compare_labels:
        network = FrozenNetwork(weights or arch or BUNDLED, arch, size, device)
    pictures, thumbnails, features = looked_at(listed, network, unusable)
    if not has_split:
        pictures = _divided(pictures, classes, valid_fraction, seed)
    unusable = dict(sorted(unusable.items()))
    found = DatasetCheck(name, classes, pictures, unusable, notes, has_split)
    if not pictures:
        return found
    with working("comparing pictures with each other", len(pictures)) as work:
        group_of, copies = grouped(thumbnails, features)
        work.advance(len(pictures))
    found = replace(found, copies=copies)
    if network is None or features is None:
        return found
    labels = np.array([p.label for p in pictures])
    scores = out_of_fold(features, labels, len(classes), group_of)
    ahead_by, best = margins(scores, labels)
    order = np.argsort(-ahead_by, kind="stable")[: np.count_nonzero(ahead_by >= WORTH_A_LOOK)]
    suspects = [Suspect(int(i), int(best[i]), float(ahead_by[i])) for i in order]
    agree = scores.argmax(axis=1) == labels
    return replace(found, suspects=suspects, margins=ahead_by, agree=agree, network=network.name)


def listed_below(path: Path) -> tuple[list[str], list[Picture], list[str], bool]:
    """List a folder as `ImageFolder` does, and refuse nothing but a folder without pictures:
    classes, pictures, notes, and whether it comes divided.
    """
    parts, notes, scans = find_parts(path), [], {}
    for split, root in parts.items():
        scans[split] = scan_part(root) if split == "train" else scan_classes(root)
        if scans[split].skipped:
            notes.append(f"{printable(root)}: {scans[split]}")
    if path not in parts.values() and (unused := folders_beside(path)):
        notes.append(f"beside {parts['train'].name}/, and not used: {first_few(unused)}")
    classes = sorted({n for scan in scans.values() for n in [*scan.pictures, *scan.empty]})
    listed = [
        Picture(printable(file.relative_to(path).as_posix()), file, classes.index(name), split)
        for split, scan in scans.items()
        for name, files in scan.pictures.items()
        for file in files
    ]
    return classes, listed, notes, "valid" in parts


def looked_at(
    listed: list[Picture], network: FrozenNetwork | None, unusable: dict[str, str]
) -> tuple[list[Picture], np.ndarray, np.ndarray | None]:
    """Decode every file: the usable pictures with their sizes, thumbnails and features; `unusable`
    gets the others.
    """
    thumbnails = np.zeros((len(listed), SIDE, SIDE), np.float32)
    seen: dict[int, Picture] = {}
    side = network.preprocess.crop if network else 1

    def look(images: np.ndarray, row: int, i: int) -> None:
        picture = listed[i]
        try:
            pixels = picture.pixels()
            if network:
                images[row] = prepare(pixels, network.preprocess)
            thumbnails[i] = thumbnail(pixels)
            seen[i] = picture._replace(width=pixels.shape[1], height=pixels.shape[0])
        except DataError as error:
            unusable[picture.file] = str(error)

    def jobs() -> Iterator[tuple[tuple[range, np.ndarray], list[Callable[[], None]]]]:
        for start in range(0, len(listed), BATCH):
            places = range(start, min(start + BATCH, len(listed)))
            images = np.zeros((len(places), side, side, 3), np.uint8)
            yield (places, images), [partial(look, images, i - start, i) for i in places]

    features, batches = [], ahead(jobs(), default_workers())
    for places, images in tracked(batches, "reading", len(listed), size=lambda b: len(b[0])):
        rows = [row for row, i in enumerate(places) if i in seen]
        if network and rows:
            features.append(network.features(images)[rows])
    kept = sorted(seen)
    joined = np.concatenate(features) if features else None
    return [seen[i] for i in kept], thumbnails[kept], joined


def _divided(
    pictures: list[Picture], classes: list[str], fraction: float, seed: int
) -> list[Picture]:
    """Set pictures aside as `ImageFolder` would; a class of one picture stays for training."""
    by_class: dict[str, list[Picture]] = {}
    for picture in pictures:
        by_class.setdefault(classes[picture.label], []).append(picture)
    several = {name: files for name, files in by_class.items() if len(files) > 1}
    _, valid = set_aside(several, fraction, seed)
    chosen = {picture.file for files in valid.values() for picture in files}
    return [p._replace(split="valid" if p.file in chosen else "train") for p in pictures]


# --------------------------------------------------------------------------------------- labels


class FrozenNetwork:
    """A pretrained network without its head. Raises: as `load_weights`"""

    def __init__(
        self, source: str | os.PathLike, arch: str | None, size: int | None, device: str
    ) -> None:
        weights = load_weights(source, arch=arch)
        body = cut(build(weights.arch, seed=None))
        without = {n: a for n, a in weights.arrays.items() if not n.startswith(("fc.", "head."))}
        body.load_state_dict(without)
        self.device = backends.resolve(device)
        self.network = fold(body.to(self.device))
        preprocess = weights.preprocess if size is None else weights.preprocess.scaled(size)
        self.preprocess = replace(preprocess, whole_square=True)  # as augmentation shows it
        self.name = f"{weights.arch} at {preprocess.crop} px, weights: {source}"

    def features(self, images: np.ndarray) -> np.ndarray:
        """Average the last maps of pictures: (N, S, S, 3) uint8 -> (N, C) float32."""
        with no_grad(), backends.use(self.device):
            images = backends.place(images, self.device)
            values = (self.preprocess.mean, self.preprocess.std)
            mean, std = (np.array(value, np.float32) for value in values)
            pixels = backends.of(images).images(images, mean, std, np.dtype(np.float32))
            return backends.host(self.network(Tensor.wrap(pixels)).data).mean(axis=(1, 2))


def out_of_fold(
    features: np.ndarray, labels: np.ndarray, classes: int, groups: np.ndarray
) -> np.ndarray:
    """Score each picture for each class by the ridge regression of all pictures of other groups,
    about 1 for what it looks like and 0 for others.

    Features become unit vectors; the penalty is their mean squared distance from their mean, which
    was as good as any that was tried.

    Shapes:  features (N, C); labels, groups (N,) int; out (N, K) float64
    """
    X = features.astype(np.float64)
    X /= np.linalg.norm(X, axis=1, keepdims=True) + 1e-12
    counts = np.bincount(labels, minlength=classes)
    weight = np.sqrt(len(labels) / (np.count_nonzero(counts) * counts[labels]))[:, None]  # (N, 1)
    X -= (weight**2 * X).mean(axis=0)
    penalty = np.full(X.shape[1] + 1, max((X**2).sum() / len(X), 1e-12))
    penalty[-1] = 1e-6  # of the intercept: nearly none
    X = weight * np.hstack([X, np.ones((len(X), 1))])  # (N, C + 1)
    Z = np.linalg.solve(X.T @ X + np.diag(penalty), X.T).T  # H = X @ Z.T, which is never made
    Y = np.eye(classes)[labels]
    residuals = weight * Y - X @ (Z.T @ (weight * Y))
    for group in members(groups):
        kept = np.eye(len(group)) - X[group] @ Z[group].T
        residuals[group] = np.linalg.solve(kept, residuals[group])
    return Y - residuals / weight


def margins(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return by how much the best other class is ahead of a picture's own, and which it is; -inf
    for classes of fewer than `FEWEST` pictures, and where there is no other.

    Shapes:  scores (N, K); labels (N,); out (N,) float64 and (N,) int
    """
    each = np.arange(len(labels))
    others = scores.copy()
    others[each, labels] = -np.inf
    best = others.argmax(axis=1)
    ahead = others[each, best] - scores[each, labels]
    few = np.bincount(labels, minlength=scores.shape[1])[labels] < FEWEST
    return np.where(few, -np.inf, ahead), best
