"""Fixtures for the whole suite."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import pytest

# Of several processes (pytest -n) each has its share of the cores. Before NumPy is imported.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    share = str(max(1, (os.cpu_count() or 1) // int(workers)))
    os.environ |= dict.fromkeys(("TINYFT_NUM_THREADS", "OPENBLAS_NUM_THREADS"), share)

from tinyft import backends, progress
from tinyft.errors import DeviceError

# "auto" is the CPU in tests, whatever there is; a GPU has `tinyft bench --backend gpu`.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
progress.by_default = False
os.environ.pop("COLUMNS", None)  # of whoever runs the tests


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


@pytest.fixture
def compiled() -> None:
    """Skips a test where nothing can be compiled: `auto` is plain NumPy there."""
    if backends.why_no_numba():
        pytest.skip(f"needs Numba: {backends.why_no_numba()}")


class SkipWithoutNumba:
    """Where nothing can be compiled, a test that imports what would be is skipped, with the reason;
    so is all of a file that imports it at its top. (The package does not, where it cannot.)
    """

    NAMES = ("numba", "llvmlite", "tinyft.backends.cpu", "tinyft.data.fast_resample")

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in cls.NAMES:
            pytest.skip(f"needs Numba: {backends.why_no_numba()}", allow_module_level=True)


if backends.why_no_numba():
    with warnings.catch_warnings(action="ignore"):
        backends.get("auto")  # which says so, once
    sys.meta_path.insert(0, SkipWithoutNumba)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test that asks for the CPU backend by its name is skipped where there is none."""
    try:
        return (yield)
    except DeviceError as error:
        if backends.why_no_numba() and str(error).startswith("backend 'cpu' needs Numba"):
            pytest.skip(str(error))
        raise
