"""Pictures that are one picture: saved again, resized, cropped at the edges, mirrored.

A photograph that lies on both sides of a split makes the accuracy too high, and under two labels
one of them is wrong. Hashes of bytes find what was copied; difference hashes also what was saved
anew, but hardly a crop of 95 % of the sides. So this aligns, as one registers two photographs:

1. candidates: the nearest neighbours of each picture by the cosine of its features, which crops
   and mirrors change little, and of its thumbnail, which holds where features fail (grey, tiny);
2. alignment: one thumbnail is shifted and stretched along both axes until it lies on the other, by
   Gauss-Newton steps from coarse to fine, plain and mirrored. Copies then correlate, and so do
   their slopes, which those of two horizons do not. Most pairs are given up early.

Letters: N pictures, M pairs, S the side of a thumbnail.

Source: Evangelidis and Psarakis, Parametric image alignment using enhanced correlation coefficient
maximization (2008), here with the four parameters of a crop. Measured in docs/measurements.md.
"""

from __future__ import annotations

import numpy as np

SIDE = 32  # pixels of a thumbnail
NEIGHBOURS = 5  # candidates of each picture and kind
LEVELS = ((8, 0.8), (16, 0.85), (SIDE, 0.9))  # side, and the correlation to go on with
SLOPES_ALIKE = 0.75  # and that of the slopes: horizons, say, are alike in all but these
STEPS = 6  # Gauss-Newton steps a level
OVERLAP = 0.5  # of the area that two thumbnails must share
SHORTEST = 0.55  # a side may be cut to that, and not further
BLOCK = 512  # rows of a matrix of cosines, or pairs, at a time


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Shrink a picture to what copies are compared by: (H, W, 3) uint8 -> (S, S) float32."""
    from PIL import Image

    grey = Image.fromarray(pixels).convert("L")
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32)


def grouped(
    thumbnails: np.ndarray, features: np.ndarray | None
) -> tuple[np.ndarray, list[list[int]]]:
    """Join copies of copies: the group of each picture, (N,) int, and those of more than one."""
    flat = thumbnails.reshape(len(thumbnails), -1)
    _, first, group_of = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    group_of = group_of.reshape(-1)  # pictures with the same pixels; then the others
    some = None if features is None else features[first]
    for i, j in find_copies(thumbnails[first], some):
        kept, gone = group_of[first[i]], group_of[first[j]]
        group_of[group_of == gone] = kept
    return group_of, sorted(part.tolist() for part in members(group_of) if len(part) > 1)


def members(groups: np.ndarray) -> list[np.ndarray]:
    """The places of each group's pictures: groups (N,) int."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def find_copies(thumbnails: np.ndarray, features: np.ndarray | None) -> list[tuple[int, int]]:
    """Find the pairs of pictures that show one picture, (i, j) with i < j.

    Shapes:  thumbnails (N, S, S) float32; features (N, C)
    """
    small = _centred(_shrunk(thumbnails, 16))
    rows, mirrored = (_unit(x.reshape(len(x), 256)) for x in (small, small[:, :, ::-1]))
    pairs = _nearest(rows, (rows, mirrored))
    if features is not None:
        rows = _unit(features)
        pairs |= _nearest(rows, (rows,))
    candidates = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    found = []
    for start in range(0, len(candidates), BLOCK):
        block = candidates[start : start + BLOCK]
        same = np.zeros(len(block), bool)
        for a, b in (block.T, block.T[::-1]):  # the crop may be of either
            for shown in (thumbnails[b], thumbnails[b][:, :, ::-1]):
                same |= _are_copies(thumbnails[a], shown)
        found += [(int(i), int(j)) for i, j in block[same]]
    return found


def _nearest(rows: np.ndarray, others: tuple[np.ndarray, ...]) -> set[tuple[int, int]]:
    """Pairs each row with the nearest of the others, (N, C) unit vectors, a block at a time."""
    pairs, most = set(), min(NEIGHBOURS, len(rows) - 1)
    for start in range(0, len(rows) if most else 0, BLOCK):
        cosines = np.max([rows[start : start + BLOCK] @ other.T for other in others], axis=0)
        here = np.arange(start, start + len(cosines))
        cosines[np.arange(len(here)), here] = -np.inf
        near = np.argpartition(-cosines, range(most), axis=1)[:, :most]
        pairs |= {(min(i, j), max(i, j)) for i, row in zip(here, near, strict=True) for j in row}
    return pairs


def _are_copies(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Align M pairs of thumbnails from coarse to fine, and compare them: (M,) bool."""
    alive, a, b = np.arange(len(first)), first, second
    scale_and_shift = np.array([1, 0], np.float32)
    crop = np.tile(scale_and_shift, (len(first), 2, 1))  # of rows, of columns
    for side, enough in LEVELS:
        a, b = (_shrunk(thumbnails[alive], side) for thumbnails in (first, second))
        correlation, crop = _aligned(a, b, crop)
        passed = correlation >= enough
        alive, crop, a, b = alive[passed], crop[passed], a[passed], b[passed]
    moved, mask = _cropped(b, crop, margin=2 / (SIDE - 1))
    each = zip(np.gradient(a, axis=(1, 2)), np.gradient(moved, axis=(1, 2)), strict=True)
    slopes = [_correlation(_centred(x, mask), _centred(y, mask)) for x, y in each]
    return np.isin(np.arange(len(first)), alive[np.min(slopes, axis=0) >= SLOPES_ALIKE])


def _aligned(a: np.ndarray, b: np.ndarray, crop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move the crop of `b` until it shows what `a` does; the best correlation, and its crop.

    Shapes:  a, b (M, S, S); crop (M, 2, 2): along rows and columns, place u in -1..1 of `a` is
             place scale * u + shift of `b`; out (M,), (M, 2, 2)
    """
    M, side, _ = a.shape
    u = np.linspace(-1, 1, side, dtype=np.float32)
    slopes = np.gradient(b, 2 / (side - 1), axis=(1, 2))  # per unit of u
    best, best_crop = np.full(M, -1, np.float32), crop
    for step in range(STEPS + 1):
        moved, mask = _cropped(b, crop)
        target, moved = _centred(a, mask), _centred(moved, mask)
        correlation = _correlation(target, moved)
        better = (np.abs(np.log(crop[:, :, 0])) < -np.log(SHORTEST)).all(axis=1)
        better &= (mask.mean((1, 2)) >= OVERLAP) & (correlation > best)
        best = np.where(better, correlation, best)
        best_crop = np.where(better[:, None, None], crop, best_crop)
        if step == STEPS:
            break
        down, across = (_cropped(slope, crop)[0] for slope in slopes)
        changes = [down * u[:, None], down, across * u, across]  # by each number of the crop
        J = np.stack([_centred(change, mask).reshape(M, side * side) for change in changes], 1)
        gain = (target * moved).sum((1, 2)) / ((moved**2).sum((1, 2)) + 1e-3)
        gain = np.maximum(gain, 0.2)[:, None, None]  # the contrast of `a` may be another
        error = (target / gain - moved).reshape(M, side * side, 1)
        H = J @ J.transpose(0, 2, 1)  # (M, 4, 4)
        damping = 1e-3 * np.trace(H, axis1=1, axis2=2) + 1e-3
        H += damping[:, None, None] * np.eye(4, dtype=np.float32)
        crop = crop + np.linalg.solve(H, J @ error).reshape(M, 2, 2).clip(-0.2, 0.2)
        crop[:, :, 0] = crop[:, :, 0].clip(0.1)
    return best, best_crop


def _cropped(images: np.ndarray, crop: np.ndarray, margin: float = 0) -> tuple:
    """Read each image where its crop says, linearly between pixels; the mask is 1 where that is in
    the image, and not within `margin` of its edge.

    Shapes:  images (M, S, S); crop (M, 2, 2); out twice (M, S, S) float32
    """
    side = images.shape[1]
    places = crop[:, :, :1] * np.linspace(-1, 1, side, dtype=np.float32) + crop[:, :, 1:]
    inside = np.abs(places) <= 1 - margin + 1e-4
    mask = (inside[:, 0, :, None] & inside[:, 1, None]).astype(np.float32)
    at = ((places + 1) * ((side - 1) / 2)).clip(0, side - 1)  # (M, 2, S) pixels
    low = np.minimum(at.astype(np.int64), side - 2)
    share = (at - low)[:, :, :, None]
    each = np.arange(len(images))[:, None]
    for axis in range(2):  # rows, then, turned, columns
        here, next_one = images[each, low[:, axis]], images[each, low[:, axis] + 1]
        images = (here + share[:, axis] * (next_one - here)).transpose(0, 2, 1)
    return images, mask


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of centred images (M, S, S), one by one: (M,)"""
    energies = (np.square(x).sum((1, 2)) + 1e-3 for x in (a, b))
    return (a * b).sum((1, 2)) / np.sqrt(np.prod(list(energies), axis=0))


def _centred(images: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Subtract the mean of each image, within its mask; 0 outside."""
    if mask is None:
        return images - images.mean((1, 2), keepdims=True)
    count = mask.sum((1, 2), keepdims=True) + 1e-6
    return (images - (images * mask).sum((1, 2), keepdims=True) / count) * mask


def _shrunk(images: np.ndarray, side: int) -> np.ndarray:
    """Average squares of pixels: (M, S, S) -> (M, side, side)"""
    by = images.shape[1] // side
    return images.reshape(len(images), side, by, side, by).mean((2, 4))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9)
