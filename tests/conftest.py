"""Fixtures for the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# "auto" is the CPU in tests, whatever there is; a GPU has `tinyft bench --backend gpu`.
os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights and pictures: TINYFT_SHARED, else ``shared`` beside the checkout.

    It is too large, and partly not licensed, to be in the repository; tests that need it skip.
    """
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("TINYFT_SHARED", default))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}; set TINYFT_SHARED to the folder that has it")
    return folder
