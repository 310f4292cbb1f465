"""Tiny pictures for the tests of tinyft.data."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def rough_picture(height: int, width: int) -> np.ndarray:
    """A picture by formula, rough enough that a shift by one pixel shows."""
    i, j, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((11 * i + 7 * j + 40 * c + (i * j) % 7 * 9) % 256).astype(np.uint8)


def encoded(picture: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of a picture file."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def rough():
    return rough_picture


@pytest.fixture
def encode():
    return encoded


@pytest.fixture
def folder(tmp_path):
    """Makes a folder of distinct pictures from {"train/cat": 3, ...}: counts by class folder."""

    def make(counts: dict[str, int], height: int = 36, width: int = 44) -> Path:
        for name, count in counts.items():
            target = tmp_path / name
            target.mkdir(parents=True, exist_ok=True)
            mark = zlib.crc32(name.encode()) % 256  # so that no two folders share a picture
            for i in range(count):
                pixels = np.roll(rough_picture(height, width), 5 * i, axis=1)
                pixels[0, 0] = (mark, i, 0)
                (target / f"{i}.png").write_bytes(encoded(pixels))
        return tmp_path

    return make
