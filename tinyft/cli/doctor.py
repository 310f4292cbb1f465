"""`tinyft doctor`: what this machine and this installation offer."""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path

from tinyft.cli.opening import describe_backend
from tinyft.cli.output import one_line, result
from tinyft.errors import TinyftError
from tinyft.version import __version__, installed

HELP = "say what this machine and this installation offer"
EXAMPLE = "tinyft doctor"

# What pyproject.toml requires, and llvmlite, whose version decides what the kernels compile to.
PACKAGES = ("numpy", "numba", "llvmlite", "pillow", "rich", "platformdirs", "filelock")
WITHOUT = {"numba", "llvmlite"}  # without these the reference backend works
NOT_WRITABLE = ", which cannot be written; set TINYFT_HOME to a folder that can"


def run(args: argparse.Namespace) -> int:
    from tinyft.finetune.run.folder import versions
    from tinyft.weights.published.cache import cache_folder

    result(f"tinyft {__version__}, Python {platform.python_version()} ({sys.executable})")
    result(f"processor: {versions()['processor']} on {platform.system()}")
    result("packages: " + ", ".join(f"{n} {installed(n) or 'MISSING'}" for n in PACKAGES))
    missing = {name for name in PACKAGES if not installed(name)}
    if missing - WITHOUT:
        result("something is missing: install tinyft again with pip")
        return 1
    if not _backends():
        result("a backend does not work, as said above")
        return 1
    weights = _can_be_written(cache_folder())
    result(f"fetched weights are kept in {cache_folder()}" + ("" if weights else NOT_WRITABLE))
    from tinyft.backends.cpu.codegen.cache import folder  # it says by itself if it is none

    well = weights and folder() is not None
    result("all is well" if well else "all works, but for a folder that cannot be written")
    return 0


def _can_be_written(path: Path) -> bool:
    """Try to make a file in this folder, and the folder itself."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return True
    except OSError:
        return False


def _backends() -> bool:
    """Try a convolution on every backend; True if all are right."""
    import numpy as np

    from tinyft import backends

    healthy = True
    x, weight = np.ones((1, 8, 8, 16), np.float32), np.ones((16, 16, 3, 3), np.float32)
    no_gpu = backends.why_no_gpu()
    for name in (*backends.NAMES, *(() if no_gpu else ("gpu",))):
        try:
            with backends.use(name) as backend:
                out = backend.conv2d(backends.place(x, name), backends.place(weight, name))
                out = backends.host(out)
            right = np.allclose(out, 16 * 3 * 3)
            result(f"{describe_backend(name)}: {'works' if right else 'COMPUTES WRONG RESULTS'}")
            healthy &= right
            if name == "cpu":
                from tinyft.backends.cpu.codegen.compiler import lacks

                for lack in lacks:
                    result(f"backend cpu: {one_line(str(lack))}")
        except (TinyftError, ImportError) as error:
            result(f"backend {name}: {one_line(str(error))}")
            healthy = False
    if no_gpu:  # not needed for good health
        result(f"backend: no gpu: {one_line(no_gpu)}")
    return healthy
