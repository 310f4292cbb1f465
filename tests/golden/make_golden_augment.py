"""Records what fastai's transforms do with fixed draws: writes golden_augment.npz beside this file.

    python make_golden_augment.py

Needs fastai, torch and torchvision, which the tests do not. Versions are stored in the file.
"""

import random
from pathlib import Path

import numpy as np
import torch
from fastai import __version__ as fastai_version
from fastai.vision.all import (
    Brightness,
    Contrast,
    Flip,
    PILImage,
    RandomResizedCrop,
    Resize,
    Rotate,
    TensorImage,
    Warp,
    Zoom,
    setup_aug_tfms,
)

HERE = Path(__file__).resolve().parent
DRAWS = {
    "flip": [1.0, 0.0],
    "rotate": [10.0, -7.0],
    "zoom": [1.1, 1.05],
    "zoom_x": [0.2, 0.7],
    "zoom_y": [0.9, 0.4],
    "warp_x": [0.15, -0.1],
    "warp_y": [-0.05, 0.2],
    "brightness": [0.45, 0.58],
    "contrast": [1.2, 0.85],
}


def transforms(size=None):
    """The six transforms of aug_transforms with the draws above, for a batch of two."""
    return {
        "flip": Flip(p=1.0, draw=DRAWS["flip"], size=size),
        "warp": Warp(p=1.0, draw_x=DRAWS["warp_x"], draw_y=DRAWS["warp_y"], size=size),
        "rotate": Rotate(p=1.0, draw=DRAWS["rotate"], size=size),
        "zoom": Zoom(
            p=1.0, draw=DRAWS["zoom"], draw_x=DRAWS["zoom_x"], draw_y=DRAWS["zoom_y"], size=size
        ),
        "brightness": Brightness(p=1.0, draw=DRAWS["brightness"]),
        "contrast": Contrast(p=1.0, draw=DRAWS["contrast"]),
    }


def apply(transform, batch):
    return transform(TensorImage(torch.from_numpy(batch.copy())), split_idx=0).numpy()


def batch(height, width):
    """Two float pictures (2, 3, height, width) in [0.1, 0.9] by formula."""
    shape = [np.arange(count) for count in (2, 3, height, width)]
    n, c, i, j = np.meshgrid(*shape, indexing="ij")
    return (0.5 + 0.4 * np.sin(0.7 * i + 1.1 * j * (c + 1) + n)).astype(np.float32)


def record():
    out = {"x": batch(8, 10)}
    for name, transform in transforms().items():
        out[name] = apply(transform, out["x"])
        if getattr(transform, "mat", None) is not None:
            out[f"{name}_mat"] = transform.mat.numpy()
    affine, light = setup_aug_tfms(list(transforms().values()))
    out["composed_affine"] = apply(affine, out["x"])
    out["composed_affine_mat"] = affine.mat.numpy()
    out["composed_light"] = apply(light, out["x"])
    # A square to a smaller square, as training does; and one that fastai first reduces by area.
    for name, side, size in (("usual", 32, 28), ("reduced", 33, 12)):
        affine, light = setup_aug_tfms(list(transforms(size).values()))
        out[f"{name}_x"] = batch(side, side)
        out[name] = apply(light, apply(affine, out[f"{name}_x"]))
    out.update(record_crops())
    return out


def record_crops():
    i, j, c = np.meshgrid(np.arange(17), np.arange(23), np.arange(3), indexing="ij")
    pixels = ((11 * i + 7 * j + 40 * c + (i * j) % 7 * 9) % 256).astype(np.uint8)
    picture = PILImage.create(pixels)

    def item(transform, split, seed=None):
        random.seed(seed)
        return np.array(transform(picture, split_idx=split))

    return {
        "picture": pixels,
        "resize_crop_valid": item(Resize(8), 1),
        "resize_crop_train_seed7": item(Resize(8), 0, 7),
        "rrc_valid": item(RandomResizedCrop(8), 1),
        "rrc_train_seed7": item(RandomResizedCrop(8, min_scale=0.35), 0, 7),
    }


if __name__ == "__main__":
    versions = np.array([f"fastai {fastai_version}", f"torch {torch.__version__}"])
    draws = {f"draw_{name}": np.array(values) for name, values in DRAWS.items()}
    np.savez_compressed(HERE / "golden_augment.npz", versions=versions, **draws, **record())
