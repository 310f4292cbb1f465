"""Reads torch checkpoints (.pth, .pt, .th, .pth.tar) without torch and without running them.

A checkpoint is a pickle, which describes the object (dicts, names, shapes), and storages, which
hold the arrays' bytes.  Three containers exist, and a file's first bytes say which it is: a zip
(torch 1.6 and later), a stream of pickles (before), and a tar (torch 0.1, refused).
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
import zlib
from typing import BinaryIO, Literal

import numpy as np

from tinyft.errors import WeightsError
from tinyft.weights.files import LazyArray
from tinyft.weights.torch.tensors import UNTYPED, Storage, StoredTensor, storage_from_id, to_array
from tinyft.weights.torch.unpickler import LARGEST_PICKLE, describe, unpickle

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGICS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # by protocol
TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257

# A state dict has some 1,000 members, an optimizer three times as many.
_MOST_MEMBERS = 20_000
# Weights deflate by a tenth; what inflates sixteenfold is no weights, and may be a bomb.
_LARGEST_INFLATION, _ALWAYS_ALLOWED = 16, 64 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip's member: signature, lengths of name and extra

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py: MAGIC_NUMBER
_LEGACY_VERSION = 1001
_COUNT_BYTES = 8


def open_checkpoint(file: BinaryIO, ignore_unknown: bool = False) -> Checkpoint:
    """Read the structure of the checkpoint in a file opened for reading bytes.

    Raises: WeightsError if it is not one, is refused, or lies about its sizes.
    """
    head = file.read(TAR_MAGIC_AT + len(TAR_MAGIC))
    if head.startswith(ZIP_MAGIC):
        return ZipCheckpoint(file, ignore_unknown)
    if head[TAR_MAGIC_AT:] == TAR_MAGIC:
        raise WeightsError(
            "this is a tar checkpoint of torch 0.1, which tinyft does not read; load it and save "
            "it again with any torch from 0.4 on"
        )
    return LegacyCheckpoint(file, ignore_unknown)  # which looks for torch's own number first


class Checkpoint:
    """A checkpoint whose arrays are still in the file, which must stay open.

    `content` consists of dicts, lists, tuples, text, numbers, StoredTensor and Inert records;
    `byte_order` is `<` or `>`.
    """

    content: object
    byte_order: Literal["<", ">"]

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.shared: dict[str, bytes] = {}  # storages, by their keys

    def read(self, storage: Storage) -> bytes:
        """Return the bytes of one storage."""
        raise NotImplementedError

    def lazy(self, tensor: StoredTensor) -> LazyArray:
        """Return the tensor as an array that can be read."""

        def read() -> np.ndarray:
            return to_array(tensor, self._bytes(tensor), self.byte_order)

        return LazyArray(tensor.shape, tensor.dtype, read)

    def _bytes(self, tensor: StoredTensor) -> bytes:
        """Read a tensor's storage.  One of which it is but a part is kept for the others, or
        reading a large one for thousands of small tensors would take hours.
        """
        storage = tensor.storage
        if math.prod(tensor.shape) >= storage.count:
            return self.read(storage)
        if storage.key not in self.shared:
            self.shared[storage.key] = self.read(storage)
        return self.shared[storage.key]


class ZipCheckpoint(Checkpoint):
    """A checkpoint of torch 1.6 and later.

    ::

        <root>/data.pkl       the pickle
        <root>/byteorder      "little" or "big"; absent means little
        <root>/data/<key>     the bytes of one storage each, normally stored without compression

    `<root>` is the name that the file had when it was saved.  Members are read at their offset
    rather than through `zipfile`, which insists on checksums that torch can be told not to
    compute, and unpacks more than was promised.  Where the pickle has a right checksum, so have all
    others, or the file is damaged.
    """

    def __init__(self, file: BinaryIO, ignore_unknown: bool) -> None:
        super().__init__(file)
        self.members = _members(file)
        self.root = self._find_root()
        order = b"little"
        if self.root + "byteorder" in self.members:
            order = self._read_small("byteorder", 16)
        if order not in (b"little", b"big"):
            raise WeightsError(f"the byte order is {order!r}, expected little or big")
        self.byte_order = "<" if order == b"little" else ">"
        data = self._read_small("data.pkl", LARGEST_PICKLE)
        self.has_checksums = zlib.crc32(data) == self.members[self.root + "data.pkl"].CRC
        self.content = unpickle(io.BytesIO(data), self._storage, ignore_unknown)

    def read(self, storage: Storage) -> bytes:
        """Return the bytes of one storage.  Raises: WeightsError for a wrong checksum"""
        member = self.members[f"{self.root}data/{storage.key}"]
        data = self._read_member(member)
        if self.has_checksums and zlib.crc32(data) != member.CRC:
            raise WeightsError(
                f"storage {storage.key[:40]} does not have its checksum: the file is damaged; get "
                "it again"
            )
        return data

    def _storage(self, identity: object) -> Storage:
        """Return the storage of a persistent id, if the file has as many bytes as it promises."""
        storage = storage_from_id(identity)
        member = self.members.get(f"{self.root}data/{storage.key}")
        if member is None:
            raise WeightsError(f"storage {storage.key[:40]} is missing from the file; get it again")
        promised = storage.count * storage.itemsize
        if member.file_size != promised:
            raise WeightsError(
                f"storage {storage.key[:40]} promises {promised:,} bytes and has "
                f"{member.file_size:,}; the file is damaged or made to deceive"
            )
        return storage

    def _find_root(self) -> str:
        """Find the folder in the zip that holds the one data.pkl."""
        names = [name for name in self.members if name.split("/")[-1] == "data.pkl"]
        if len(names) != 1:
            arrays = any(name.endswith(".npy") for name in self.members)
            keras = "model.weights.h5" in self.members
            what = "arrays of NumPy (npz)" if arrays else "a Keras model" if keras else "an archive"
            raise WeightsError(
                f"a torch zip has one data.pkl, this zip has {len(names)}; it is {what}: give a "
                "checkpoint of PyTorch or safetensors, or the name of published weights"
            )
        root = names[0].removesuffix("data.pkl")
        if root + "constants.pkl" in self.members:
            raise WeightsError(
                "this is a TorchScript program (torch.jit.save), not weights; in PyTorch, save "
                "torch.jit.load(path).state_dict() with torch.save"
            )
        return root

    def _read_small(self, name: str, limit: int) -> bytes:
        member = self.members[self.root + name]
        if member.file_size > limit:
            raise WeightsError(f"{name} has {member.file_size:,} bytes, at most {limit:,} expected")
        return self._read_member(member)

    def _read_member(self, member: zipfile.ZipInfo) -> bytes:
        self.file.seek(member.header_offset)
        signature, name, extra = _LOCAL_HEADER.unpack(self.file.read(_LOCAL_HEADER.size))
        if signature != ZIP_MAGIC:
            raise WeightsError("a member of the zip does not begin where it should; get it again")
        self.file.seek(name + extra, os.SEEK_CUR)
        if member.compress_type == zipfile.ZIP_STORED:
            return self.file.read(member.file_size)
        # zipfile would unpack all that is there, and then look at what was promised
        packed = self.file.read(member.compress_size)
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, member.file_size + 1)
        if len(data) != member.file_size:
            raise WeightsError(
                f"{member.filename[:80]!r} unpacks to another size than it promises; the file is "
                "damaged or made to deceive"
            )
        return data


def _members(file: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    """Return a zip's members by name, once their number and sizes are plausible."""
    size = file.seek(0, os.SEEK_END)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise WeightsError(f"the zip is damaged or cut off ({error}); get it again") from error
    if len(members) > _MOST_MEMBERS:
        raise WeightsError(f"the zip has {len(members):,} members, at most {_MOST_MEMBERS:,} do")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise WeightsError(
                f"{member.filename[:80]!r} is packed by method {member.compress_type} of zip; only "
                "0 (stored) and 8 (deflate) are read: save it again with torch.save"
            )
        if member.compress_type == zipfile.ZIP_STORED and member.file_size > size:
            raise WeightsError(f"{member.filename[:80]!r} claims to be larger than the file")
        if not 0 <= member.header_offset < size:
            raise WeightsError(f"{member.filename[:80]!r} claims to lie outside the file")
    total = sum(member.file_size for member in members)
    if total > size * _LARGEST_INFLATION + _ALWAYS_ALLOWED:
        raise WeightsError(f"a zip of {size:,} bytes that unpacks to {total:,} is refused")
    by_name = {member.filename: member for member in members}
    if len(by_name) != len(members):
        raise WeightsError("two members of the zip have the same name; the file is refused")
    return by_name


class LegacyCheckpoint(Checkpoint):
    """A checkpoint of torch before 1.6: five pickles in a row, then raw bytes.

    1. a magic number; 2. the protocol version; 3. the writer's byte order; 4. the object; 5. the
    list of storage keys.  Then for each key, in that order: the count as int64, and its values.
    """

    def __init__(self, file: BinaryIO, ignore_unknown: bool) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}
        file.seek(0)
        stream = io.BytesIO(file.read(LARGEST_PICKLE))
        if unpickle(stream, storage_from_id) != _LEGACY_MAGIC:
            raise WeightsError("this is a pickle but no torch checkpoint; save it with torch.save")
        version = unpickle(stream, storage_from_id)
        if version != _LEGACY_VERSION:
            raise WeightsError(f"the legacy format's version is {describe(version)}, expected 1001")
        system = unpickle(stream, storage_from_id)
        if not isinstance(system, dict) or not isinstance(system.get("little_endian"), bool):
            raise WeightsError("the file does not say its byte order; it is damaged")
        self.byte_order = "<" if system["little_endian"] else ">"
        self.content = unpickle(stream, self._storage, ignore_unknown)
        self.offsets = self._find_offsets(unpickle(stream, storage_from_id), stream.tell())

    def read(self, storage: Storage) -> bytes:
        """Return the bytes of one storage."""
        self.file.seek(self.offsets[storage.key])
        return self.file.read(storage.count * storage.itemsize)

    def _storage(self, identity: object) -> Storage:
        storage = storage_from_id(identity)
        if storage.type == UNTYPED:
            raise WeightsError("untyped storages in this old format cannot be read; save it anew")
        if self.storages.setdefault(storage.key, storage) != storage:
            raise WeightsError(f"storage {storage.key[:40]} is described in two ways; refused")
        return storage

    def _find_offsets(self, keys: object, position: int) -> dict[str, int]:
        """Find where each storage's values begin, if all of them are in the file."""
        end = self.file.seek(0, os.SEEK_END)
        offsets: dict[str, int] = {}
        for key in keys if isinstance(keys, list) else [None]:
            if not isinstance(key, str) or key not in self.storages or key in offsets:
                raise WeightsError("the list of storages does not fit the pickle; file damaged")
            storage = self.storages[key]
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
