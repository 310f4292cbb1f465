"""The GPU backend on the stand-in of standin.py."""

from __future__ import annotations

import shutil

import pytest

from tests.backends.gpu import standin
from tinyft import backends


@pytest.fixture(scope="module")
def gpu():
    """The backend, with convolutions in fp32; `gpu.cupy` is the stand-in."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, which compiles the kernels for the CPU")
    caches = backends.get, backends.why_no_gpu
    for cache in caches:
        cache.cache_clear()
    with standin.installed():
        backend = backends.get("gpu")
        backend.precision = "fp32"
        yield backend
    for cache in caches:
        cache.cache_clear()


@pytest.fixture(autouse=True)
def counters():
    """Each test counts its own waits and launches."""
    standin.waits.clear()
    standin.launches.clear()
