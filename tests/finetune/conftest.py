"""Small learners: a CIFAR network on pictures of noise, in the colours of their classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tinyft as ft

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden() -> dict:
    return json.loads((GOLDEN / "golden_values.json").read_text())


def pictures(n: int = 24, classes: int = 3, side: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Noise, brighter in the channel of its class."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 128, (n, side, side, 3), dtype=np.uint8)
    labels = np.arange(n) % classes
    for image, label in zip(images, labels, strict=True):
        image[..., label] += 80
    return images, labels


def small_data(**options) -> ft.ImageArrays:
    x, y = pictures()
    valid = x[:9], y[:9]
    defaults = {"classes": ["blue", "green", "red"], "size": 24, "batch_size": 8}
    return ft.ImageArrays(train=(x, y), valid=valid, **{**defaults, **options})


def small_learner(data: ft.ImageArrays | None = None, **options) -> ft.Learner:
    options = {"weights": None, "seed": 3, **options}
    return ft.vision_learner(data or small_data(), "cifar_resnet20", **options)


def bits(learner: ft.Learner) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in learner.model.state_dict().items()}
