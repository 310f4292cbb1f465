"""A new HDF5 file that any HDF5 program reads, of the few structures that read.py knows.

Every link and attribute stands in its group's header, every array lies in one piece: the file
needs none of HDF5's trees and heaps.  It is written without the C library, which ends the process
when a disk is full (HDF5 2.0) and of which one version has no empty lists (1.14).

Source: HDF5 File Format Specification, version 3.0 (The HDF Group)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from struct import pack
from typing import BinaryIO

import numpy as np

from tinyft.weights.hdf5.index import SIGNATURE, UNDEFINED, lookup3
from tinyft.weights.hdf5.read import (
    ATTRIBUTE,
    DATASPACE,
    DATATYPE,
    ENCODED,
    FILL_VALUE,
    GROUP_INFO,
    LAYOUT,
    LINK,
    LINK_INFO,
)

_SUPERBLOCK = 48  # bytes
_ALIGNED = 8

Message = tuple[int, bytes]


def write_tree(
    file: BinaryIO, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, np.ndarray]
) -> None:
    """Fill an empty file with arrays and groups' attributes, under the paths that read_tree gives
    (``weights/conv1/weight``; an attribute's last part is its own name).

    Text is of NumPy's type ``S``, encoded as UTF-8.
    Raises: OSError if the disk does not take it
    """
    groups: dict[str, _Group] = {}
    _made(groups, "")
    file.write(bytes(_SUPERBLOCK))
    for path, array in arrays.items():
        above, _, name = path.rpartition("/")
        _made(groups, above).links[name] = _add_array(file, array)
    for path, value in attributes.items():
        above, _, name = path.rpartition("/")
        _made(groups, above).attributes.append((ATTRIBUTE, _attribute(name, value)))
    for path, group in sorted(groups.items(), key=lambda item: -item[0].count("/")):
        if path:  # those within others come first, so that their addresses are known; last the root
            above, _, name = path.rpartition("/")
            groups[above].links[name] = _add_header(file, group.messages())
    address = _add_header(file, groups[""].messages())
    head = SIGNATURE + pack("<BBBBQQQQ", 2, 8, 8, 0, 0, UNDEFINED, file.tell(), address)
    file.seek(0)
    file.write(head + pack("<I", lookup3(head)))


@dataclass
class _Group:
    """What is in a group: addresses by name, in the order of making, and its attributes."""

    links: dict[str, int] = field(default_factory=dict)
    attributes: list[Message] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """Its header: attributes, that it has no heap, and its links."""
        info = pack("<BBQ", 0, 3, len(self.links)) + 3 * pack("<Q", UNDEFINED)
        links = [_link(order, *link) for order, link in enumerate(self.links.items())]
        plain = [(LINK_INFO, info), (GROUP_INFO, bytes(2)), *((LINK, link) for link in links)]
        return [*self.attributes, *plain]


def _made(groups: dict[str, _Group], path: str) -> _Group:
    """The group of that path, made and entered above if it is new."""
    if path not in groups:
        groups[path] = _Group()
        if path:
            above, _, name = path.rpartition("/")
            _made(groups, above).links[name] = UNDEFINED  # keeps the place in the order
    return groups[path]


def _add_array(file: BinaryIO, array: np.ndarray) -> int:
    """Write an array and behind it its header, whose address is returned."""
    offset = _aligned(file)
    file.write(memoryview(array.reshape(-1).view(np.uint8)))
    place = pack("<QQ", offset if array.nbytes else UNDEFINED, array.nbytes)
    messages = [
        (DATASPACE, _shape(array)),
        (DATATYPE, _type(array.dtype)),
        (FILL_VALUE, pack("<BBBBI", 2, 2, 2, 1, 0)),  # version 2, zeros where nothing was written
        (LAYOUT, b"\3\1" + place),  # version 3, contiguous
    ]
    return _add_header(file, messages)


def _add_header(file: BinaryIO, messages: Iterable[Message]) -> int:
    """Write an object's header (version 2, its size in 4 bytes); its address."""
    address = _aligned(file)
    body = b"".join(pack("<BHB", kind, len(data), 0) + data for kind, data in messages)
    header = b"OHDR" + pack("<BBI", 2, 2, len(body)) + body
    file.write(header + pack("<I", lookup3(header)))
    return address


def _aligned(file: BinaryIO) -> int:
    file.write(bytes(-file.tell() % _ALIGNED))
    return file.tell()


def _link(order: int, name: str, address: int) -> bytes:
    """Version 1; the flag 4 says that the order stands in it, and the name's length in 1 byte."""
    return pack("<BBQB", 1, 4, order, len(name)) + name.encode() + pack("<Q", address)


def _attribute(name: str, value: np.ndarray) -> bytes:
    """Version 1, whose parts begin at multiples of eight."""
    parts = (name.encode() + b"\0", _type(value.dtype), _shape(value))
    padded = b"".join(part.ljust(-(-len(part) // 8) * 8, b"\0") for part in parts)
    return pack("<BBHHH", 1, 0, *map(len, parts)) + padded + value.tobytes()


def _shape(array: np.ndarray) -> bytes:
    """A dataspace of version 2: a number, or an array of a fixed shape."""
    return pack(f"<BBBB{array.ndim}Q", 2, array.ndim, 0, int(array.ndim > 0), *array.shape)


def _type(dtype: np.dtype) -> bytes:
    """A datatype of version 1, as ENCODED lists them, or UTF-8 of a fixed length."""
    if dtype.kind == "S":
        return b"\x13\x11\0\0" + pack("<I", dtype.itemsize)
    encoded = ENCODED[dtype.str]
    return bytes([encoded[0] | 16]) + encoded[1:]
