"""The zip container of torch checkpoints (torch 1.6 and later).

::

    <root>/data.pkl       the pickle
    <root>/byteorder      "little" or "big"; absent means little
    <root>/data/<key>     the bytes of one storage each, normally stored without compression

``<root>`` is the name that the file had when it was saved.  Members are read at their offset rather
than through ``zipfile``, which insists on checksums that torch can be told not to compute, and
unpacks more than was promised.  Where the pickle has a right checksum, so have all others, or the
file is damaged.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from typing import BinaryIO

from tinyft.errors import WeightsError
from tinyft.weights.torch.tensors import Storage, storage_from_id
from tinyft.weights.torch.unpickler import LARGEST_PICKLE, execute, scan

# A state dict has some 1,000 members, an optimizer three times as many.
_MOST_MEMBERS = 20_000
# Weights deflate by a tenth; what inflates sixteenfold is no weights, and may be a bomb.
_LARGEST_INFLATION, _ALWAYS_ALLOWED = 16, 64 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., lengths of name and extra field


class ZipFile:
    """A zip checkpoint: its object, its byte order and its storages."""

    def __init__(self, file: BinaryIO, ignore_unknown: bool) -> None:
        self.file = file
        self.members = _members(file)
        self.root = self._find_root()
        self.byte_order = self._find_byte_order()
        data = self._read_small("data.pkl", LARGEST_PICKLE)
        self.has_checksums = zlib.crc32(data) == self.members[self.root + "data.pkl"].CRC
        stream = io.BytesIO(data)
        scan(stream, ignore_unknown)
        stream.seek(0)
        self.content = execute(stream, self._storage)

    def read(self, storage: Storage) -> bytes:
        """The bytes of one storage."""
        member = self.members[f"{self.root}data/{storage.key}"]
        data = self._read_member(member)
        if self.has_checksums and zlib.crc32(data) != member.CRC:
            raise WeightsError(
                f"storage {storage.key[:40]} does not have its checksum: the file is damaged; get "
                "it again"
            )
        return data

    def _storage(self, identity: object) -> Storage:
        """The storage of a persistent id, once the file has as many bytes as it promises."""
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
        """The folder in the zip that holds the one data.pkl."""
        names = [name for name in self.members if name.split("/")[-1] == "data.pkl"]
        if len(names) != 1:
            raise WeightsError(f"a torch zip has one data.pkl, this zip has {len(names)}")
        root = names[0].removesuffix("data.pkl")
        if root + "constants.pkl" in self.members:
            raise WeightsError(
                "this is a TorchScript program (torch.jit.save), not weights; in PyTorch, save "
                "torch.jit.load(path).state_dict() with torch.save"
            )
        return root

    def _find_byte_order(self) -> str:
        if self.root + "byteorder" not in self.members:
            return "<"
        order = self._read_small("byteorder", 16)
        if order not in (b"little", b"big"):
            raise WeightsError(f"the byte order is {order!r}, expected little or big")
        return "<" if order == b"little" else ">"

    def _read_small(self, name: str, limit: int) -> bytes:
        member = self.members[self.root + name]
        if member.file_size > limit:
            raise WeightsError(f"{name} has {member.file_size:,} bytes, at most {limit:,} expected")
        return self._read_member(member)

    def _read_member(self, member: zipfile.ZipInfo) -> bytes:
        self.file.seek(member.header_offset)
        signature, name, extra = _LOCAL_HEADER.unpack(self.file.read(_LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
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
    """The members by name, once their number and sizes are plausible."""
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
