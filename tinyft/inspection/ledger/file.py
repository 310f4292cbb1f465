"""The file of a ledger: a head of JSON, then records, each appended by one write and never changed.

    {"format": "tinyft-ledger", "version": 3, "records": ..., "columns": ..., "description": ...}
    5f1c2b90
    record, record, record, ...

The second line is the CRC-32 of the first. A record is its name (8 bytes, NULs behind it), its
rows as plain little-endian values, and the CRC-32 of both, begun with the one before. For each
name the head lists the tables of which such a record holds a row, their dtype and the row's shape.
NumPy alone reads a ledger that is whole:

    with open("runs/a/ledger.bin", "rb") as file:
        head, crc, data = file.read().split(b"\\n", 2)
    dtypes = {
        name: np.dtype([("name", "S8"), *((t, d, tuple(s)) for t, d, s in tables), ("crc", "<u4")])
        for name, tables in json.loads(head)["records"].items()
    }
    steps, at = [], 0
    while at < len(data):
        name = data[at : at + 8].rstrip(b"\\0").decode()
        if name == "step":
            steps.append(np.frombuffer(data, dtypes[name], 1, at)[0])
        at += dtypes[name].itemsize
    loss = [step["steps"][3] for step in steps]

A kill leaves at most one record that is not whole, the last one, which is left out; so is one that
is still being written. A bit that is wrong before it, a record that is lost or in another place, is
an error. A crash of the whole system may lose what was appended since the last `sync`.
"""

from __future__ import annotations

import io
import json
import os
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyft.errors import RunError
from tinyft.weights.files import replacing

FILE_NAME = "ledger.bin"
FORMAT, VERSION = "tinyft-ledger", 3  # 1 and 2 were HDF5
NAME_BYTES, CRC_BYTES = 8, 4
MOST_HEAD_BYTES = 8 << 20  # a ResNet-152's has 0.1 MiB; JSON may take 25 times that


@dataclass(frozen=True)
class Table:
    """Rows of one shape. `columns` names the entries of a row's first axis, if it has names."""

    name: str
    row: tuple[int, ...]
    dtype: str = "<f8"
    columns: tuple[str, ...] = ()


Records = Mapping[str, Sequence[Table]]  # the tables that a record holds a row of, by its name
Layout = Callable[[Any], Records]  # the records of a ledger with that description, which it checks


@dataclass(frozen=True)
class Contents:
    """The contents of a file. `records` has, by name, an array with a field for each table.

    `unfinished` is how many bytes there are of a last record that is not whole; `damage`, if not
    empty, says why reading ended before the file's end.
    """

    description: dict[str, Any]
    records: dict[str, np.ndarray]
    unfinished: int = 0
    damage: str = ""

    @property
    def tables(self) -> dict[str, np.ndarray]:
        """(rows, ...) of each table, from all records that hold rows of it."""
        parts: dict[str, list[np.ndarray]] = {}
        for rows in self.records.values():
            for name in rows.dtype.names or ():
                parts.setdefault(name, []).append(rows[name])
        return {n: of[0] if len(of) == 1 else np.concatenate(of) for n, of in parts.items()}


class LedgerFile:
    """A ledger being written. Without a path it lives in memory, as long as this object."""

    def __init__(
        self,
        path: Path | None,
        layout: Layout,
        description: Mapping[str, Any],
        kept: Mapping[str, np.ndarray] | None = None,
    ):
        """Begin a new file with the records in `kept`, in place of an old one of that name.

        Raises: OSError, also from the methods, if the disk is full; the file is closed then
        """
        self.path, self.layout = path, layout
        records = layout(description)
        self.dtypes = {name: record_dtype(tables) for name, tables in records.items()}
        columns = {t.name: t.columns for tables in records.values() for t in tables}
        head = {"format": FORMAT, "version": VERSION, "records": _listed(records),
                "columns": columns, "description": description}  # fmt: skip
        self.file: io.FileIO | io.BytesIO
        if path is None:
            self.file = io.BytesIO()
            self._begin(json.dumps(head).encode(), kept or {})
            return
        with replacing(path) as temporary, open(temporary, "xb", buffering=0) as self.file:
            self._begin(json.dumps(head).encode(), kept or {})
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115
        weakref.finalize(self, self.file.close)  # a run that is interrupted does not close it

    def append(self, record: str, **rows: Any) -> None:
        """Write a record, a row of each of its tables. From here on no kill loses it."""
        dtype = self.dtypes[record]
        row = tuple(rows[name] for name in dtype.names or ())
        self._append(record, np.array(row, dtype).tobytes())

    def sync(self) -> None:
        """Put what was appended on the disk: no crash of the whole system loses it then."""
        if self.path is not None:
            os.fsync(self.file.fileno())

    def contents(self) -> Contents:
        """Read what was written so far."""
        if self.path is not None:
            return read(self.path, self.layout)
        assert isinstance(self.file, io.BytesIO)
        return parse(self.file.getvalue(), self.layout)

    def close(self) -> None:
        """The file is complete; one in memory stays, to be read."""
        if self.path is not None:
            self.sync()
            self.file.close()

    def _begin(self, head: bytes, kept: Mapping[str, np.ndarray]) -> None:
        self.crc = zlib.crc32(head)
        self._write(b"%s\n%08x\n" % (head, self.crc))
        for name, rows in kept.items():
            for row in rows:
                self._append(name, row.tobytes())

    def _append(self, name: str, rows: bytes) -> None:
        record = _name(name) + rows
        self.crc = zlib.crc32(record, self.crc)
        self._write(record + self.crc.to_bytes(CRC_BYTES, "little"))

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:  # the system may take a part only
                left = left[self.file.write(left) :]
        except OSError as error:
            error.filename = str(self.path)
            self.file.close()  # behind a part of a record nothing may follow
            raise


def read(path: Path, layout: Layout, *, damaged: bool = False) -> Contents:
    """Read all whole records of a ledger, also of one that is being written or whose writer was
    killed.

    It takes memory for three times the file's size at most, whatever its bytes are, and before that
    what the JSON of its head does.
    Raises: RunError if it cannot be read or, unless `damaged` ones are asked for too, if bytes
    before its end are not those that were written; PermissionError
    """
    if not path.is_file():
        raise RunError(f"there is no ledger {path}: was the run made without one?")
    return parse(path.read_bytes(), layout, path, damaged=damaged)


def parse(
    data: bytes, layout: Layout, name: object = "the ledger in memory", *, damaged: bool = False
) -> Contents:
    """Read the bytes of a file called `name`; see `read`."""
    try:
        contents = _contents(data, layout)
    except Exception as error:  # each way in which a head can be nonsense
        raise RunError(f"{name} is damaged or no ledger ({str(error)[:200]})") from error
    if contents.damage and not damaged:
        raise RunError(f"{name} is damaged: {contents.damage}")
    return contents


def _contents(data: bytes, layout: Layout) -> Contents:
    """Raises: ValueError and others for a head that no ledger of this version has"""
    end = data.find(b"\n", 0, MOST_HEAD_BYTES)
    start = end + 2 + 2 * CRC_BYTES
    crc = zlib.crc32(data[: max(end, 0)])
    if end < 0 or data[end:start] != b"\n%08x\n" % crc:
        raise ValueError("it does not begin with a line of JSON and this line's CRC-32")
    head = json.loads(data[:end])
    if head["format"] != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    if head["version"] != VERSION:
        raise ValueError(f"its version is {head['version']!r}, and this tinyft reads {VERSION}")
    records = layout(head["description"])
    if head["records"] != _listed(records):
        raise ValueError("its records are not those of a ledger with its description")
    dtypes = {name: record_dtype(tables) for name, tables in records.items()}
    rows, end, is_damaged = _walk(data, start, crc, {n: d.itemsize for n, d in dtypes.items()})
    arrays = {name: np.frombuffer(rows[name], dtype) for name, dtype in dtypes.items()}
    if not is_damaged:
        return Contents(head["description"], arrays, len(data) - end)
    last = (
        f"behind step {arrays['step']['steps'][-1, 0]:.0f}" if len(arrays["step"]) else "of a step"
    )
    problem = f"the record {last}, from byte {end:,} of {len(data):,}, is not the one written"
    return Contents(head["description"], arrays, damage=problem)


def _walk(
    data: bytes, start: int, crc: int, sizes: Mapping[str, int]
) -> tuple[dict[str, bytearray], int, bool]:
    """The rows of all records of each name up to the first one that is not whole, where that one
    begins, and whether it is damaged: the last one may have been cut off.
    """
    view, rows = memoryview(data), {name: bytearray() for name in sizes}
    names = {_name(name): name for name in sizes}
    while start + NAME_BYTES <= len(data):
        name = names.get(data[start : start + NAME_BYTES])
        if name is None:  # zeros: a file that was longer on the disk than what had been written
            return rows, start, data.count(0, start) < len(data) - start
        end = start + NAME_BYTES + sizes[name]
        if end + CRC_BYTES > len(data):
            break
        crc = zlib.crc32(view[start:end], crc)
        if data[end : end + CRC_BYTES] != crc.to_bytes(CRC_BYTES, "little"):
            end += CRC_BYTES
            return rows, start, data.count(0, end) < len(data) - end
        rows[name] += view[start + NAME_BYTES : end]
        start = end + CRC_BYTES
    return rows, start, False


def _name(name: str) -> bytes:
    return name.encode().ljust(NAME_BYTES, b"\0")


def _listed(records: Records) -> dict[str, list[Any]]:
    """Each record's tables as JSON holds them and as NumPy makes a dtype of them."""
    return {n: [[t.name, t.dtype, list(t.row)] for t in of] for n, of in records.items()}


def record_dtype(tables: Sequence[Table]) -> np.dtype:
    """Make the dtype of a record: a field for each table."""
    return np.dtype([(table.name, table.dtype, table.row) for table in tables])
