"""The ledger on a disk that takes no more: the run ends in an error, and nothing is lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import small_data, small_learner
from tests.inspection.moments import AfterStep
from tinyft.errors import RunError
from tinyft.finetune.resume import resume
from tinyft.finetune.run import Run
from tinyft.inspection import ledger_file
from tinyft.inspection.ledger_file import RECENT, LedgerFile, Table
from tinyft.weights.hdf5_disk import Disk


class FullDisk(Disk):
    """A disk on which somebody else takes the last byte, at a moment of the test's choice."""

    is_full = False

    def write(self, data: memoryview) -> int:
        if not FullDisk.is_full:
            return super().write(data)
        with self._kept():
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)


@pytest.mark.parametrize("step", [4, 5])  # within an epoch, and at its end, where tables are read
def test_a_run_goes_on_with_its_whole_ledger_once_there_is_space(tmp_path, monkeypatch, step):
    def fill(learner, record):
        FullDisk.is_full = record.step == step

    monkeypatch.setattr(ledger_file, "Disk", FullDisk)
    learner, run, path = small_learner(), Run.create(tmp_path / "full"), tmp_path / "full"
    observers = [AfterStep(fill), ft.Ledger(path), run]
    with pytest.raises(OSError, match="No space left") as caught:
        learner.execute(learner.plan(1), observers=observers)
    assert caught.value.filename == str(path / "ledger.h5")
    assert ft.Ledger.read(path).steps["step"].tolist() == list(range(step))
    FullDisk.is_full = False
    learner, plan, run, start, _ = resume(path, small_data())
    assert start == 3  # the end of an epoch
    learner.execute(plan, observers=[ft.Ledger(path), run], start=start)
    whole = ft.Ledger()
    learner = small_learner()
    learner.execute(learner.plan(1), observers=[whole])
    found = ft.Ledger.read(path)
    for name, rows in whole.reading.tables.items():
        np.testing.assert_array_equal(found.tables[name], rows, name)


def left_by_a_kill(file: LedgerFile) -> dict[str, np.ndarray]:
    """The tables that another process finds in the bytes on the disk."""
    copied = file.path.with_name("copied.h5")
    copied.write_bytes(file.path.read_bytes())
    return ledger_file.read(copied)[0]


def steps_file(path) -> LedgerFile:
    tables = [Table("steps", (2,), each_step=True), Table("ids", (3,), "<i8", each_step=True)]
    kept = {"steps": [[0.5, 0.5]], "ids": [[5, 6, 7]]}
    return LedgerFile(path, tables, {}, {name: np.array(rows) for name, rows in kept.items()})


def test_a_file_of_the_first_version_has_no_recent_steps_and_is_read(tmp_path):
    file = steps_file(tmp_path / "ledger.h5")
    file.append_step(steps=[1, 2], ids=np.arange(3))
    file.close()
    with h5py.File(tmp_path / "ledger.h5", "r+") as first:
        del first["recent"]
        first.attrs["version"] = 1
    found = ledger_file.read(tmp_path / "ledger.h5")[0]
    assert found["steps"].tolist() == [[0.5, 0.5], [1, 2]]
    assert found["ids"].tolist() == [[5, 6, 7], [0, 1, 2]]


def test_a_kill_after_any_step_loses_no_row(tmp_path):
    """In tables, among the recent steps, or in both."""
    file = steps_file(tmp_path / "ledger.h5")
    for n in range(1, 2 * RECENT + 3):
        file.append_step(steps=[n, np.nan], ids=np.arange(n, n + 3))
        found = left_by_a_kill(file)
        assert found["steps"][1:, 0].tolist() == list(range(1, n + 1))
        assert found["ids"].tolist() == [[5, 6, 7], *([i, i + 1, i + 2] for i in range(1, n + 1))]
        assert found["ids"].dtype == np.int64
    file.close()
    assert len(ledger_file.read(file.path)[0]["ids"]) == n + 1


def test_damage_in_a_file_left_by_a_kill_is_told_at_once(tmp_path):
    """Opened as a file that grows, HDF5 would wait for hours for its end."""
    file = steps_file(tmp_path / "ledger.h5")
    for n in range(1, 2 * RECENT):
        file.append_step(steps=[n, n], ids=[n, n, n])
    whole = file.path.read_bytes()
    damaged, told = tmp_path / "damaged.h5", 0
    for start in range(512, len(whole), 512):
        damaged.write_bytes(whole[:start] + bytes(512) + whole[start + 512 :])
        try:
            ledger_file.read(damaged)
        except RunError as error:
            assert "is damaged or no ledger" in str(error)
            told += 1
    assert told > 2


def test_a_file_that_is_written_is_read_between_two_writes(tmp_path, monkeypatch):
    file = steps_file(tmp_path / "ledger.h5")
    file.append_step(steps=[1, 1], ids=[1, 1, 1])
    whole = file.path.read_bytes()
    copies = iter([whole[:512] + bytes(len(whole) - 512), whole[:-1] + b"x", whole, whole])
    copied = tmp_path / "copied.h5"
    copied.write_bytes(whole)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: next(copies))
    assert ledger_file.read(copied)[0]["steps"].tolist() == [[0.5, 0.5], [1, 1]]
    assert next(copies, None) is None


@pytest.mark.parametrize("end", [0, -1])
def test_a_step_that_is_written_in_part_is_none(tmp_path, end):
    file = steps_file(tmp_path / "ledger.h5")
    for n in range(1, RECENT + 3):
        file.append_step(steps=[n, n], ids=[n, n, n])
    width = 1 + 2 + 3 + 1
    with file.path.open("rb+") as raw:  # the place of the last one, as the step before left it
        raw.seek(file.place + 8 * (n % RECENT * width + end % width))
        raw.write(np.float64(n - RECENT).tobytes())
    assert left_by_a_kill(file)["steps"][:, 0].tolist() == [0.5, *range(1, n)]


FULL = """
import gc, resource
from tests.finetune.conftest import small_learner
import tinyft as ft

learner = small_learner()
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
try:
    learner.execute(learner.plan(100), observers=[ft.Ledger(".")])
except OSError as error:
    print(error.strerror, error.filename)
gc.collect()
book = ft.Ledger.read(".")
print(learner.step - len(book.steps["step"]) in (0, 1), book.balance())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as Unix does")
def test_hdf5_survives_a_write_that_failed(tmp_path):
    """It ends the process when one of its own fails; hence in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = [sys.executable, "-W", "error", "-c", FULL]
    done = subprocess.run(code, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["File too large ledger.h5", "True []"]
