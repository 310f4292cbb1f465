"""The container of torch checkpoints before 1.6: five pickles in a row, then raw numbers.

1. a magic number; 2. the protocol version; 3. the writer's byte order; 4. the object; 5. the list
of storage keys.  Then for each key, in that order: the count as int64, and the numbers.
"""

from __future__ import annotations

import io
import os
from typing import BinaryIO

from tinyft.errors import WeightsError
from tinyft.weights.torch.allowed_names import describe
from tinyft.weights.torch.tensors import UNTYPED, Storage, storage_from_id
from tinyft.weights.torch.unpickler import LARGEST_PICKLE, execute, scan

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # torch/serialization.py: MAGIC_NUMBER
_PROTOCOL_VERSION = 1001
_COUNT_BYTES = 8


class LegacyFile:
    """A legacy checkpoint: its object, its byte order and its storages."""

    def __init__(self, file: BinaryIO, ignore_unknown: bool) -> None:
        self.file = file
        self.storages: dict[str, Storage] = {}
        file.seek(0)
        stream = io.BytesIO(file.read(LARGEST_PICKLE))
        _check_header(stream)
        self.byte_order = _byte_order(_plain_pickle(stream))
        self.content = self._read_object(stream, ignore_unknown)
        self.offsets = self._find_offsets(_plain_pickle(stream), stream.tell())

    def read(self, storage: Storage) -> bytes:
        """The bytes of one storage."""
        self.file.seek(self.offsets[storage.key])
        return self.file.read(storage.count * storage.itemsize)

    def _read_object(self, stream: BinaryIO, ignore_unknown: bool) -> object:
        start = stream.tell()
        scan(stream, ignore_unknown)
        stream.seek(start)
        return execute(stream, self._storage)

    def _storage(self, identity: object) -> Storage:
        storage = storage_from_id(identity)
        if storage.type == UNTYPED:
            raise WeightsError("untyped storages in this old format cannot be read; save it anew")
        if self.storages.setdefault(storage.key, storage) != storage:
            raise WeightsError(f"storage {storage.key[:40]} is described in two ways; refused")
        return storage

    def _find_offsets(self, keys: object, position: int) -> dict[str, int]:
        """Where each storage's numbers begin, once all of them are found to be in the file."""
        end = self.file.seek(0, os.SEEK_END)
        offsets: dict[str, int] = {}
        for key in keys if isinstance(keys, list) else [None]:
            storage = self.storages.get(key) if isinstance(key, str) else None
            if storage is None or key in offsets:
                raise WeightsError("the list of storages does not fit the pickle; file damaged")
            self.file.seek(position)
            count = int.from_bytes(self.file.read(_COUNT_BYTES), "little", signed=True)
            offsets[key] = position + _COUNT_BYTES
            position = offsets[key] + storage.count * storage.itemsize
            if count != storage.count or position > end:
                raise WeightsError(
                    f"storage {key[:40]} promises {storage.count:,} numbers; the file says "
                    f"{count:,} and ends at byte {end:,}; it is damaged or cut off"
                )
        if missing := [key for key in self.storages if key not in offsets]:
            raise WeightsError(f"storage {missing[0][:40]} is missing from the file; get it again")
        return offsets


def _check_header(stream: BinaryIO) -> None:
    """The magic number and the version. A bare pickle fails here, after its names were checked."""
    magic = _plain_pickle(stream)
    if magic != _MAGIC_NUMBER:
        raise WeightsError("this is a pickle but no torch checkpoint; save it with torch.save")
    version = _plain_pickle(stream)
    if version != _PROTOCOL_VERSION:
        raise WeightsError(f"the legacy format's version is {describe(version)}, expected 1001")


def _plain_pickle(stream: BinaryIO) -> object:
    """The next pickle, which holds no storages."""
    start = stream.tell()
    scan(stream)
    stream.seek(start)
    return execute(stream, storage_from_id)


def _byte_order(system: object) -> str:
    if not isinstance(system, dict) or not isinstance(system.get("little_endian"), bool):
        raise WeightsError("the file does not say its byte order; it is damaged")
    return "<" if system["little_endian"] else ">"
