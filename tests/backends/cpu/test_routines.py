"""A routine is found by every kernel that calls it, also by one that is read from disk."""

import os
import subprocess
import sys

import llvmlite.binding as llvm
import pytest

from tinyft.backends.cpu.codegen import routines
from tinyft.backends.cpu.codegen.simd import ADDRESS, INT

SCRIPT = """
import numpy as np
from tinyft.backends.cpu.codegen.cache import helper, kernel
from tinyft.backends.cpu.codegen.routines import array_at, routine
from tinyft.backends.cpu.codegen.simd import ADDRESS, INT

@routine(ADDRESS, INT)
def double(x, size):
    x = array_at(x)
    for i in range(size):
        x[i] *= 2

@helper
def double_from(x, first):
    double(x, first, x.size - first)

@kernel
def double_all_but_one(x):
    double_from(x, 1)

x = np.ones(3, np.float32)
double_all_but_one(x)
print(x)
"""


@pytest.fixture
def start(tmp_path):
    """Runs the script as a process of its own. -> what it wrote to stderr"""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}

    def run():
        command = [sys.executable, str(script)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (ended.returncode, ended.stdout) == (0, "[1. 2. 2.]\n"), ended.stderr
        return ended.stderr

    return run


def test_a_kernel_from_disk_finds_its_routine(start):
    assert "compiling kernels" in start()
    assert start() == ""


@pytest.mark.parametrize("name", ["double", "double_all_but_one"])
def test_each_is_compiled_again_if_its_file_is_lost(start, tmp_path, name):
    start()
    (file,) = tmp_path.glob(f"kernels-*/__main__.{name}-*.bin")
    file.unlink()
    assert "compiling kernels" in start()
    assert start() == ""


def test_loading_one_can_be_interrupted(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(routines, "called_by_name", {})

    @routines.routine(ADDRESS, INT)
    def interrupted(x, size):
        """Nothing."""

    load = routines.called_by_name["tinyft_interrupted"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(llvm, "add_symbol", interrupt)
        load()
    load()
    assert llvm.address_of_symbol("tinyft_interrupted")
