"""Records torchvision's resize and centre crop on bytes: writes golden_decode.npz beside this file.

    python make_golden_decode.py

Needs torch and torchvision, which the tests do not. Versions are stored in the file.
"""

from pathlib import Path

import numpy as np
import PIL
import torchvision
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

HERE = Path(__file__).resolve().parent
SIZES = ((40, 53), (53, 40), (37, 90), (32, 32), (20, 29))  # height, width


def picture(height, width):
    """A picture by formula, rough enough that a shift by one pixel shows."""
    i, j, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((11 * i + 7 * j + 40 * c + (i * j) % 7 * 9) % 256).astype(np.uint8)


def record():
    out = {}
    for height, width in SIZES:
        for mode in ("bilinear", "bicubic"):
            image = Image.fromarray(picture(height, width))
            resized = Resize(32, interpolation=InterpolationMode(mode))(image)
            out[f"{height}x{width}_{mode}"] = np.array(CenterCrop(28)(resized))
    # The column at which the centre crop of a picture with a given margin begins.
    ramp = [np.tile(np.arange(8 + margin, dtype=np.uint8), (8, 1)) for margin in range(41)]
    out["offsets"] = np.array([np.array(CenterCrop(8)(Image.fromarray(row)))[0, 0] for row in ramp])
    return out


if __name__ == "__main__":
    versions = np.array([f"torchvision {torchvision.__version__}", f"Pillow {PIL.__version__}"])
    np.savez_compressed(HERE / "golden_decode.npz", versions=versions, **record())
