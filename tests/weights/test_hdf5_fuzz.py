"""Changed HDF5 files whose checksums are right again: refused or read, never a crash, and no bit
that counts is taken for another. By the hundred thousand: hdf5_fuzz.py.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tinyft.bundled import bundled
from tinyft.errors import WeightsError
from tinyft.weights import load_weights, read_arrays, write_arrays

pytestmark = pytest.mark.slow


hdf5_fuzz = pytest.importorskip("hdf5_fuzz", reason="limits processes as Unix does")
MUTANTS = 150  # of each process; with and without the hashes, as hdf5_fuzz.BATCH divides them


@pytest.mark.parametrize("first", [0, hdf5_fuzz.BATCH])
def test_mutants_end_in_an_error_that_can_be_caught(first):
    counts, failed = hdf5_fuzz.in_processes(MUTANTS, first)
    assert failed == [] and sum(counts.values()) == MUTANTS
    assert any(name.endswith("read") for name in counts)
    assert any(name.endswith("refused") for name in counts)


def test_each_kind_that_is_mutated_is_one_that_is_read(tmp_path):
    for kind, data in hdf5_fuzz.seeds(tmp_path).items():
        (tmp_path / "a.h5").write_bytes(data)
        assert hdf5_fuzz.repaired(data)[0] == data, kind
        format = "tinyft-checkpoint" if "checkpoint" in kind else "tinyft-weights"
        if "h5py" in kind or kind == "tinyft-weights latest":  # what tinyft has never written
            with pytest.raises(WeightsError, match=r"old-style group|is not as|a type"):
                read_arrays(tmp_path / "a.h5", format)
        else:
            assert read_arrays(tmp_path / "a.h5", format)[0]


@pytest.mark.parametrize("format", ["tinyft-weights", "tinyft-checkpoint"])
def test_no_flipped_bit_is_taken_for_something_else(format, tmp_path):
    write_arrays(tmp_path / "a.h5", format, *hdf5_fuzz.small(format))
    counts = hdf5_fuzz.flipped(tmp_path / "a.h5", 200, tmp_path)
    assert set(counts) == {"refused", "without effect"} and counts["refused"] > 100


def test_an_index_that_crashed_the_c_library(tmp_path):
    """A flag in the tree of the attributes of a file that h5py wrote; in a process of its own."""
    data = bytearray(bundled("weights/resnet10s-tinyimagenet.h5").read_bytes())
    leaf = data.find(b"BTLF")
    assert data[leaf + 5] == 8  # by name; a record is the heap's id (8 bytes), flags, order, hash
    data[leaf + 6 + 8] = 2
    (tmp_path / "a.h5").write_bytes(hdf5_fuzz.repaired(bytes(data))[0])
    command = [sys.executable, "-m", "tinyft", "weights", "convert", "a.h5", "b.h5"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode in (0, 1), done.returncode
    if done.returncode == 0:  # the flag is none that is asked for
        assert load_weights(tmp_path / "b.h5").classes == load_weights("resnet10s").classes
