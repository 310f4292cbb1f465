"""How much of what was planted `check` finds, in photos of your own:

    python tests/inspection/measure_check.py DIR [WEIGHTS]

Labels are changed at random for 2, 5 and 10 % of the pictures, five draws each; copies of 100 of
them are added, changed in one way at a time.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from tinyft.inspection.dataset import looking
from tinyft.inspection.dataset.copies import find_copies, grouped, thumbnail


def cropped(image, share, rng):
    width, height = (round(n * share) for n in image.size)
    left, top = (rng.integers(n - m + 1) for n, m in zip(image.size, (width, height), strict=True))
    return image.crop((left, top, left + width, top + height))


def resized(image, by):
    return image.resize(tuple(max(1, round(n * by)) for n in image.size))


CHANGES = {
    "JPEG, quality 30": lambda i, rng: i,
    "half the size": lambda i, rng: resized(i, 0.5),
    "a quarter of the size": lambda i, rng: resized(i, 0.25),
    "stretched to 3/4": lambda i, rng: i.resize((i.width, round(0.75 * i.height))),
    "mirrored": lambda i, rng: ImageOps.mirror(i),
    "grey": lambda i, rng: i.convert("L"),
    "brighter by 30 %": lambda i, rng: ImageEnhance.Brightness(i).enhance(1.3),
    "cropped to 95 % of the sides": lambda i, rng: cropped(i, 0.95, rng),
    "cropped to 90 %": lambda i, rng: cropped(i, 0.9, rng),
    "cropped to 85 %": lambda i, rng: cropped(i, 0.85, rng),
    "cropped to 80 %": lambda i, rng: cropped(i, 0.8, rng),
    "cropped to 70 %": lambda i, rng: cropped(i, 0.7, rng),
    "mirrored, cropped to 90 %, half the size": lambda i, rng: resized(
        cropped(ImageOps.mirror(i), 0.9, rng), 0.5
    ),
    "turned by 3 degrees": lambda i, rng: i.rotate(3, Image.Resampling.BICUBIC),
    "turned by 90 degrees": lambda i, rng: i.transpose(Image.Transpose.ROTATE_90),
}


def as_jpeg(image, quality):
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def wrong_labels(features, labels, groups):
    classes = int(labels.max()) + 1
    for share in (0.02, 0.05, 0.1):
        found, precision = [], []
        for seed in range(5):
            rng, given = np.random.default_rng(seed), labels.copy()
            planted = rng.choice(len(labels), round(share * len(labels)), replace=False)
            given[planted] = (labels[planted] + rng.integers(1, classes, len(planted))) % classes
            scores = looking.out_of_fold(features, given, classes, groups)
            margin, _ = looking.margins(scores, given)
            first = np.argsort(-margin, kind="stable")[: 2 * len(planted)]
            found.append(np.isin(planted, first).mean())
            listed = margin >= looking.WORTH_A_LOOK
            precision.append((listed[planted].mean(), listed.sum()))
        each = ", ".join(f"{100 * x:.0f}" for x in found)
        recall, count = np.mean(precision, axis=0)
        print(
            f"  {share:.0%} wrong ({len(planted)}): {100 * np.mean(found):.1f} % within twice "
            f"their number ({each}); {100 * recall:.0f} % among the {count:.0f} that are listed"
        )


def copies(pictures, thumbnails, features, network):
    rng, n = np.random.default_rng(0), len(pictures)
    own = find_copies(thumbnails, features)
    print(f"  {len(own)} pairs among the pictures themselves")
    joined, _ = grouped(thumbnails, features)
    for name, change in CHANGES.items():
        chosen = rng.choice(n, min(100, n), replace=False)
        quality = 30 if "JPEG" in name else 80
        changed = [
            as_jpeg(change(Image.open(pictures[i].source).convert("RGB"), rng), quality)
            for i in chosen
        ]
        shown = np.stack([looking.prepare(pixels, network.preprocess) for pixels in changed])
        pairs = find_copies(
            np.concatenate([thumbnails, [thumbnail(pixels) for pixels in changed]]),
            np.concatenate([features, network.features(shown)]),
        )
        origin = np.concatenate([np.arange(n), chosen])
        found = {j - n for i, j in pairs if j >= n and origin[j] == i}
        strange = [(i, j) for i, j in pairs if joined[origin[i]] != joined[origin[j]]]
        print(f"  {name}: {len(found)} of {len(chosen)}; {len(strange)} pairs of other pictures")


def main():
    network = looking.FrozenNetwork(*[*sys.argv[2:], looking.BUNDLED][:1], None, None, "auto")
    _, listed, _, _ = looking.listed_below(Path(sys.argv[1]))
    pictures, thumbnails, features = looking.looked_at(listed, network, {})
    groups, _ = grouped(thumbnails, features)
    print(f"{len(pictures)} pictures, {network.name}")
    wrong_labels(features, np.array([p.label for p in pictures]), groups)
    copies(pictures, thumbnails, features, network)


if __name__ == "__main__":
    main()
