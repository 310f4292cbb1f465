"""The file of a ledger: tables of plain numbers that grow by a row, readable while they grow.

HDF5 is not safe against a kill by itself. In its mode for a single writer and many readers (SWMR)
everything that was flushed can be read afterwards, but the file then takes no more rows. So a run
that goes on copies the rows that it keeps into a new file, which takes the old one's name. A full
disk ends the run with its error, as it does when a checkpoint is written: what was flushed before
can be read, and the run goes on from its checkpoint once there is space.

**A step's rows** would cost half a millisecond if HDF5 took them one by one: after a training step
none of its code is in the processor's caches. So there is one more table, `recent`, of a fixed size
and place, into which a step goes with one write that HDF5 does not see: its row of each table one
after the other, as float64, and before and behind them how many steps there were, which tells a
step that is whole. Step n overwrites step n - RECENT, and before it does, all recent steps are
appended to their tables. Whoever reads takes from `recent` what is in no table yet, so no kill
loses a step.

Next: tinyft/inspection/ledger_reading.py
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyft.errors import RunError
from tinyft.weights.files import replacing
from tinyft.weights.hdf5_disk import Disk, new_hdf5

if TYPE_CHECKING:
    import h5py

FORMAT, VERSION = "tinyft-ledger", 2
CHUNK_BYTES = 32 << 10  # of a table; it grows on the disk by so much at a time
RECENT = 64  # steps that may be in no table yet
MOST_BYTES = 8 << 30  # of one table that is read
COPIES = 20  # of a file that somebody writes, at most, to have one from between two writes
# HDF5 file format specification, superblock version 3: signature and version, byte 11 says whether
# a writer has the file open, bytes 28 to 35 how long it is.
SUPERBLOCK, SUPERBLOCK_BYTES = b"\x89HDF\r\n\x1a\n\x03", 48

_written: weakref.WeakValueDictionary[Path, LedgerFile] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Table:
    """Rows of one shape. `columns` names the entries of a row's first axis, if it has names."""

    name: str
    row: tuple[int, ...]
    dtype: str = "<f8"
    columns: tuple[str, ...] = ()
    each_step: bool = False  # a row of every step, or now and then one


class LedgerFile:
    """A ledger being written. Without a path it lives in memory, as long as this object."""

    def __init__(
        self,
        path: Path | None,
        tables: list[Table],
        description: Mapping[str, Any],
        kept: Mapping[str, np.ndarray] | None = None,
    ):
        """A new file with the rows in `kept`, instead of an old one of that name.

        Raises: OSError, also from the methods, if the disk is full
        """
        import h5py

        self.path, self.disk = path, None
        if path is None:
            # A file in memory has a name too, and no two open ones may share it.
            self.file = h5py.File(
                f"ledger-{id(self)}", "w", driver="core", backing_store=False, libver="latest"
            )
            _create(self.file, tables, description, kept or {})
        else:
            with replacing(path) as temporary:
                with new_hdf5(temporary, libver="latest") as file:
                    _create(file, tables, description, kept or {})
                _mark_as_being_written(temporary)
            self.disk = Disk(open(path, "rb+", buffering=0))  # noqa: SIM115
            with self._disk_errors():
                self.file = h5py.File(self.disk, "r+", libver="latest")
                self.file.swmr_mode = True
            _written[path.resolve()] = self
        # By table, the rows of the steps that are not in it yet.
        self.recent: dict[str, list[np.ndarray]] = {t.name: [] for t in tables if t.each_step}
        self.steps = len(self.file["steps"])
        self.place = self.file["recent"].id.get_offset()

    def append_step(self, **rows: Any) -> None:
        """A row of each table that has one for every step. From here on no kill loses them."""
        if len(self.recent["steps"]) == RECENT:
            self.settle()
        for name, of_table in self.recent.items():
            of_table.append(np.asarray(rows[name]))
        if self.disk is not None:
            parts = [of_table[-1].ravel() for of_table in self.recent.values()]
            step = np.concatenate([[self.steps], *parts, [self.steps]], dtype="<f8")
            with self._disk_errors():
                self.disk.seek(self.place + self.steps % RECENT * step.nbytes)
                self.disk.write(step.data.cast("B"))
        self.steps += 1

    def append(self, table: str, row: Any) -> None:
        """A row of another table. After `settle` no kill loses it."""
        with self._disk_errors():
            _append(self.file[table], [row])

    def settle(self) -> None:
        """Put all rows so far into their tables, and these on the disk."""
        with self._disk_errors():
            for name, of_table in self.recent.items():
                _append(self.file[name], of_table)
                of_table.clear()
            if self.path is not None:
                self.file.flush()

    def contents(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What `read` gives."""
        if not self.file:
            return read(self.path)
        self.settle()
        return contents(self.file)

    def rows(self, table: str) -> np.ndarray:
        """All rows of a table so far."""
        self.settle()
        with self._disk_errors():
            return self.file[table][...]

    def close(self) -> None:
        """The file is complete; one in memory stays, to be read."""
        if self.path is not None:
            self.settle()
            with self._disk_errors():
                self._let_go()

    def _let_go(self) -> None:
        _written.pop(self.path.resolve(), None)
        self.file.close()
        self.disk.close()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """What the disk did not take in this block ends it as the disk's own error, and the file.
        HDF5 is not told, and complains at most of what it then reads.
        """
        try:
            yield
        finally:
            if self.disk is not None and self.disk.error is not None:
                self._let_go()
                raise self.disk.error


def _append(dataset: h5py.Dataset, rows: Sequence[Any]) -> None:
    if rows:
        dataset.resize(len(dataset) + len(rows), axis=0)
        dataset[-len(rows) :] = rows


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All tables and the description of a ledger, also of one that is being written or whose
    writer was killed.

    Raises: RunError if it cannot be read, PermissionError
    """
    import h5py

    own = _written.get(path.resolve())
    if own is not None:  # HDF5 does not open a file twice in one process
        return own.contents()
    try:
        source = io.BytesIO(_bytes_at_rest(path)) if _left_open(path) else path
        with h5py.File(source, "r", libver="latest", locking="best-effort") as file:
            return contents(file)
    except FileNotFoundError:
        raise RunError(f"there is no ledger {path}: was the run made without one?") from None
    except (RunError, PermissionError):
        raise
    except Exception as error:  # HDF5 raises many kinds for damage
        raise RunError(f"{path} is damaged or no ledger ({error})") from error


def _left_open(path: Path) -> bool:
    """Whether a writer is at work on the file, or was when it was killed.

    HDF5 opens such a file as one that grows, or not at all, and then takes damage for a write in
    progress and waits for its end, for hours. So it gets a copy of the bytes, as of any file.
    Raises: RunError if the file is shorter than its writer had made it
    """
    with path.open("rb") as file:
        start = file.read(36)
        size = os.fstat(file.fileno()).st_size
    if start[:9] != SUPERBLOCK:
        raise RunError(f"{path} is damaged or no ledger (it does not begin as one)")
    if size < int.from_bytes(start[28:36], "little"):
        raise RunError(f"{path} is damaged or no ledger (its end is missing)")
    return bool(start[11])


def _bytes_at_rest(path: Path) -> bytes:
    """The file as it is between two writes: read until two copies are equal. Where writes never
    pause, the last copy: it may lack the newest steps.
    """
    found = path.read_bytes()
    for _ in range(COPIES):
        before, found = found, path.read_bytes()
        if found == before:
            break
    return found


def close_written(path: Path) -> None:
    """Let go of a ledger that an interrupted run in this process has left open."""
    own = _written.get(path.resolve())
    if own is not None:
        own.close()


def contents(file: h5py.File) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Every table by its name, and the description."""
    if file.attrs.get("format") != FORMAT:
        raise RunError(f"{file.filename} is not a ledger: its format is not {FORMAT}")
    if file.attrs["version"] > VERSION:
        raise RunError(f"{file.filename} was written by a newer tinyft; install that to read it")
    # `recent` first: what is no longer there when it is read has come into the tables.
    recent = _plain(file, "recent") if "recent" in file else None  # version 1 has none
    tables = {name: _plain(file, name) for name in json.loads(file.attrs["tables"])}
    if recent is not None:
        _add_recent(tables, recent, json.loads(file["recent"].attrs["columns"]))
    return tables, json.loads(file.attrs["description"])


def _add_recent(tables: dict[str, np.ndarray], recent: np.ndarray, of_steps: list[str]) -> None:
    """Append to each table of `of_steps` the recent steps that it lacks."""
    recent = recent[recent[:, 0] == recent[:, -1]]
    recent = recent[np.argsort(recent[:, 0])]
    start = 1
    for name in of_steps:
        rows, size = tables[name], math.prod(tables[name].shape[1:])
        new = recent[recent[:, 0] >= len(rows), start : start + size]
        tables[name] = np.append(rows, new.reshape(-1, *rows.shape[1:]).astype(rows.dtype), axis=0)
        start += size


def _plain(file: h5py.File, name: str) -> np.ndarray:
    """Every row of a table. Raises: RunError if reading it could do more than read numbers"""
    dataset = file[name]
    foreign = dataset.is_virtual or dataset.id.get_create_plist().get_external_count()
    if foreign or dataset.dtype.kind not in "fi" or dataset.nbytes > MOST_BYTES:
        raise RunError(f"{file.filename}: {name} is no plain table of numbers; refused")
    return dataset[...]


def _mark_as_being_written(path: Path) -> None:
    """Say in the superblock that a writer has the file open, which readers of a growing file ask
    for. HDF5 says it where it opens a file by itself, not where it is given Python's.
    """
    import h5py

    with h5py.File(path, "r+", libver="latest"):
        marked = path.read_bytes()[:SUPERBLOCK_BYTES]
    with path.open("rb+") as file:
        file.write(marked)


def _create(
    file: h5py.File,
    tables: list[Table],
    description: Mapping[str, Any],
    kept: Mapping[str, np.ndarray],
) -> None:
    file.attrs.update({"format": FORMAT, "version": VERSION})
    file.attrs["tables"] = json.dumps([table.name for table in tables])
    file.attrs["description"] = json.dumps(description)
    of_steps = {table.name: math.prod(table.row) for table in tables if table.each_step}
    recent = file.create_dataset("recent", data=np.full((RECENT, sum(of_steps.values()) + 2), -1.0))
    recent.attrs["columns"] = json.dumps(list(of_steps))
    for table in tables:
        bytes_of_row = math.prod(table.row) * np.dtype(table.dtype).itemsize
        rows = max(1, CHUNK_BYTES // max(bytes_of_row, 1))
        old = kept.get(table.name, np.zeros((0, *table.row), table.dtype))
        dataset = file.create_dataset(
            table.name,
            data=old.astype(table.dtype),
            maxshape=(None, *table.row),
            chunks=(rows, *(max(size, 1) for size in table.row)),
        )
        dataset.attrs["columns"] = json.dumps(table.columns)
