"""The part of HDF5 that tinyft's files need, in plain Python: groups, attributes, arrays.

HDF5 is a file system in a file: it has links into other files, arrays whose bytes lie elsewhere,
plugins that are loaded to unpack, and its C library follows whatever a file's index says, into a
crash if need be.  A file from a stranger is therefore not given to it.  `read_tree` knows the few
structures that a plain file of plain arrays consists of and refuses all others by name.

Its rules: HDF5's own checksums are compared; no place outside the file is read; no block is
entered twice, so that nothing goes in circles; and the blocks of the index, the objects, their
depth, and the arrays' bytes altogether have limits that the file cannot raise.

`write_tree` writes files of those structures that any HDF5 program reads.  Every link and attribute
stands in its group's header, every array lies in one piece: the file needs none of HDF5's trees and
heaps.  The C library is not used here either: it ends the process when a disk is full (HDF5 2.0),
and one version of it has no empty lists (1.14).

Source: HDF5 File Format Specification, version 3.0 (The HDF Group)
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BufferedIOBase
from struct import pack, unpack_from
from typing import BinaryIO

import numpy as np

from tinyft.errors import WeightsError
from tinyft.weights.hdf5.index import (
    MOST_METADATA,
    SIGNATURE,
    UNDEFINED,
    Blocks,
    dense_objects,
    lookup3,
)

# ResNet-152 with two optimizer moments per parameter has some 3,000 groups and arrays.
_MOST_OBJECTS = 10_000
DEEPEST = 12
NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
MOST_ATTRIBUTES = 64  # of one group
_LARGEST_ATTRIBUTE = 64 << 10  # bytes; HDF5's own limit in a header
MOST_DIMENSIONS = 32  # HDF5's own limit

# The types of tinyft's files as HDF5 describes them, without the version in the first byte's upper
# half: class, bit field, size, then for numbers offset, precision, and the parts of a float.
_ENCODED = {
    "<f2": bytes.fromhex("01200f0002000000000010000a05000a0f000000"),
    "<f4": bytes.fromhex("01201f000400000000002000170800177f000000"),
    "<f8": bytes.fromhex("01203f000800000000004000340b0034ff030000"),
    "<i8": bytes.fromhex("000800000800000000004000"),
    "<i4": bytes.fromhex("000800000400000000002000"),
    "|u1": bytes.fromhex("000000000100000000000800"),
    # h5py's boolean: an enumeration of int8, {"FALSE": 0, "TRUE": 1}
    "|b1": bytes.fromhex("0802000001000000100800000100000000000800")
    + b"FALSE\0\0\0TRUE\0\0\0\0\0\1",
}
_TEXT = (b"\3\x11\0\0", b"\3\1\0\0")  # fixed length, padded with NUL, UTF-8 or ASCII; then its size

# Messages of an object header, by their number in HDF5's specification.
_DATASPACE, _LINK_INFO, _DATATYPE, _FILL_VALUE, _LINK, _LAYOUT = 1, 2, 3, 5, 6, 8
_GROUP_INFO, _ATTRIBUTE, _CONTINUATION, _ATTRIBUTE_INFO = 10, 12, 16, 21
_READ = {_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _LAYOUT, _ATTRIBUTE, _ATTRIBUTE_INFO}
_WITHOUT_EFFECT = {0, 4, _FILL_VALUE, _GROUP_INFO, 14, 18, 22}  # 14, 18: times
_REFUSED = {
    7: "takes its bytes from another file",
    11: "is packed by a filter; write it plainly (h5repack -l CONTI -f NONE)",
    17: "is an old-style group: another program wrote it (Keras, h5py), and of HDF5 tinyft reads "
    "only its own; give a checkpoint of PyTorch or safetensors, or write the arrays anew with "
    "tinyft.weights.write_arrays",
}
_SHARED = 2  # a message's flag: it lies elsewhere
_LAYOUTS = {0: "compact", 2: "chunked", 3: "virtual"}
_CONTIGUOUS = 1

_SUPERBLOCK = 48  # bytes
_ALIGNED = 8

Message = tuple[int, bytes]  # its number, its body
Text = str | list[str]


# ----------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Stored:
    """An array, or text of a fixed length (dtype `S`), whose `nbytes` lie at `offset`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    nbytes: int

    def read(self, file: BufferedIOBase) -> np.ndarray:
        """Return a new array of native byte order.

        Raises: WeightsError if the file has become shorter
        """
        array = np.empty(self.shape, self.dtype)
        if self.nbytes:  # an array of nothing has no place
            file.seek(self.offset)
            if file.readinto(array.reshape(-1).view(np.uint8).data) != self.nbytes:
                raise WeightsError("the file was cut while it was read")
        return array.astype(self.dtype.newbyteorder("="), copy=False)


def read_tree(file: BinaryIO) -> tuple[dict[str, Stored], dict[str, object]]:
    """Find every array, and every attribute of a group, by path (`weights/conv1/weight`; an
    attribute's last part is its own name).

    Raises: WeightsError at the first structure that a plain file of plain arrays does not have;
    for damage any other exception, too
    """
    tree = _Tree(Blocks(file, file.seek(0, os.SEEK_END)))
    tree.visit("", tree.blocks.root(), depth=0)
    return tree.arrays, tree.attributes


class _Tree:
    """Walks the file, and holds what it has seen so far."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.arrays: dict[str, Stored] = {}
        self.attributes: dict[str, object] = {}
        self.objects = 0
        self.nbytes = 0

    def visit(self, path: str, address: int, depth: int) -> None:
        """Take in one object and, if it is a group, all that is in it."""
        self.objects += 1
        if depth > DEEPEST or self.objects > _MOST_OBJECTS:
            raise WeightsError(f"{path[:160]}: too deep or too many objects; the file is refused")
        messages = _messages(self.blocks, path, address)
        kinds = {kind for kind, _ in messages}
        if _LAYOUT in kinds:
            self._add_array(path, dict(messages))
        elif _LINK_INFO in kinds or _LINK in kinds:
            within = f"{path}/" if path else ""
            for name, value in _attributes(self.blocks, path, messages):
                self.attributes[within + name] = value
            for name, child in _links(self.blocks, path, messages):
                self.visit(within + name, child, depth + 1)
        else:
            raise WeightsError(f"{path} is neither a group nor an array; the file is refused")

    def _add_array(self, path: str, messages: dict[int, bytes]) -> None:
        """Take in an array. Many small lies add up: the sum of all arrays has a limit, too."""
        shape, dtype = _shape(path, messages[_DATASPACE]), _dtype(path, messages[_DATATYPE])
        nbytes = math.prod(shape) * dtype.itemsize
        layout = messages[_LAYOUT]
        if layout[0] not in (3, 4) or layout[1] != _CONTIGUOUS:
            kind = _LAYOUTS.get(layout[1], "in an unknown way")
            raise WeightsError(
                f"{path} is stored {kind}, not in one piece; write it plainly (h5repack -l CONTI)"
            )
        offset, stored = unpack_from("<QQ", layout, 2)
        self.nbytes += nbytes
        if stored != nbytes:
            raise WeightsError(
                f"{path} of shape {shape} claims {nbytes:,} bytes and stores {stored:,}; "
                f"the file is damaged or made to deceive"
            )
        if nbytes and (offset == UNDEFINED or offset + nbytes > self.blocks.size):
            raise WeightsError(f"{path} is not wholly stored in the file; write it again")
        if self.nbytes > self.blocks.size:
            raise WeightsError(f"{path}: the arrays claim more bytes than the file can hold")
        if dtype.kind == "b":
            raise WeightsError(f"{path} is an enumeration, expected numbers or fixed-length text")
        self.arrays[path] = Stored(shape, dtype, offset, nbytes)


def _messages(blocks: Blocks, path: str, address: int) -> list[Message]:
    """List the messages of an object's header and its continuations, but those without effect."""
    newer, tracked, pending = blocks.object_header(path, address)
    messages: list[Message] = []
    head = (6 if tracked else 4) if newer else 8
    while pending:
        block, at = pending.pop(), 0
        while at + head <= len(block):
            kind = block[at] if newer else unpack_from("<H", block, at)[0]
            size, flags = unpack_from("<HB", block, at + (1 if newer else 2))
            body = block[at + head : at + head + size]
            at += head + size
            if at > len(block):
                raise WeightsError(f"{path}: a header's message is longer than the header")
            if kind == _CONTINUATION:
                pending.append(blocks.continuation(newer, *unpack_from("<QQ", body)))
            elif kind not in _WITHOUT_EFFECT:
                if kind not in _READ:
                    unknown = f"has a property (number {kind}) that tinyft does not know"
                    why = _REFUSED.get(kind, unknown)
                    raise WeightsError(f"{path or 'the root'} {why}; the file is refused")
                if flags & _SHARED:
                    where = path or "the root"
                    raise WeightsError(f"{where} is described elsewhere (shared); refused")
                messages.append((kind, body))
    return messages


def _links(blocks: Blocks, path: str, messages: list[Message]) -> list[tuple[str, int]]:
    """List names and addresses of what is in a group, in the order of making."""
    bodies = [body for kind, body in messages if kind == _LINK]
    for kind, body in messages:
        if kind == _LINK_INFO:
            at = 2 + 8 * (body[1] & 1)
            bodies += dense_objects(blocks, *unpack_from("<QQ", body, at), most=_MOST_OBJECTS)
    found = sorted(_link(path, body) for body in bodies)
    names = [name for _, name, _ in found]
    if len(set(names)) != len(names):
        raise WeightsError(f"{path or 'the root'} holds two objects of one name; refused")
    return [(name, address) for _, name, address in found]


def _attributes(blocks: Blocks, path: str, messages: list[Message]) -> list[tuple[str, object]]:
    """List names and values of a group's attributes."""
    bodies = [body for kind, body in messages if kind == _ATTRIBUTE]
    for kind, body in messages:
        if kind == _ATTRIBUTE_INFO:
            at = 2 + 2 * (body[1] & 1)
            bodies += dense_objects(blocks, *unpack_from("<QQ", body, at), most=MOST_ATTRIBUTES)
    if len(bodies) > MOST_ATTRIBUTES:
        raise WeightsError(f"{path or 'the root'} has too many attributes; the file is refused")
    return [_attribute(path, body) for body in bodies]


# ----------------------------------------------------------------------------------------- writing


def write_tree(
    file: BinaryIO, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, np.ndarray]
) -> None:
    """Fill an empty file with arrays and groups' attributes, under the paths that read_tree gives.

    Text is of NumPy's type `S`, encoded as UTF-8.
    Raises: OSError if the disk does not take it; WeightsError for more than read_tree would read
    """
    groups: dict[str, _Group] = {}
    _made(groups, "")
    file.write(bytes(_SUPERBLOCK))
    for path, array in arrays.items():
        above, _, name = path.rpartition("/")
        _made(groups, above).links[name] = _add_array(file, array)
    for path, value in attributes.items():
        above, _, name = path.rpartition("/")
        _made(groups, above).attributes.append((_ATTRIBUTE, _encoded_attribute(name, value)))
    for path, group in sorted(groups.items(), key=lambda item: -item[0].count("/")):
        if path:  # those within others come first, so that their addresses are known; last the root
            above, _, name = path.rpartition("/")
            groups[above].links[name] = _add_header(file, group.messages())
    address = _add_header(file, groups[""].messages())
    objects = len(arrays) + len(groups)
    # what read_tree reads of it: all but the arrays, and the first bytes of each object twice
    index = file.tell() - sum(array.nbytes for array in arrays.values()) + 96 + 50 * objects
    if objects > _MOST_OBJECTS or index > MOST_METADATA:
        raise WeightsError(
            f"a tinyft file cannot hold {objects:,} arrays and groups with {index:,} bytes of "
            f"names and attributes: at most {_MOST_OBJECTS:,} and {MOST_METADATA:,}; write several "
            f"files"
        )
    head = SIGNATURE + pack("<BBBBQQQQ", 2, 8, 8, 0, 0, UNDEFINED, file.tell(), address)
    file.seek(0)
    file.write(head + pack("<I", lookup3(head)))


@dataclass
class _Group:
    """Holds what is in a group: addresses by name, in the order of making, and its attributes."""

    links: dict[str, int] = field(default_factory=dict)
    attributes: list[Message] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """List its header: attributes, that it has no heap, and its links."""
        info = pack("<BBQ", 0, 3, len(self.links)) + 3 * pack("<Q", UNDEFINED)
        # version 1 with its order (flag 4), and the name's length in 1 byte
        links = [
            pack("<BBQB", 1, 4, order, len(name)) + name.encode() + pack("<Q", address)
            for order, (name, address) in enumerate(self.links.items())
        ]
        plain = [(_LINK_INFO, info), (_GROUP_INFO, bytes(2)), *((_LINK, link) for link in links)]
        return [*self.attributes, *plain]


def _made(groups: dict[str, _Group], path: str) -> _Group:
    """Return the group of that path, made and entered above if it is new."""
    if path not in groups:
        groups[path] = _Group()
        if path:
            above, _, name = path.rpartition("/")
            _made(groups, above).links[name] = UNDEFINED  # keeps the place in the order
    return groups[path]


def _add_array(file: BinaryIO, array: np.ndarray) -> int:
    """Write an array and behind it its header, whose address is returned."""
    offset = _aligned(file)
    file.write(array.reshape(-1).view(np.uint8).data)
    place = pack("<QQ", offset if array.nbytes else UNDEFINED, array.nbytes)
    messages = [
        (_DATASPACE, _encoded_shape(array)),
        (_DATATYPE, _encoded_dtype(array.dtype)),
        (_FILL_VALUE, pack("<BBBBI", 2, 2, 2, 1, 0)),  # version 2, zeros where nothing was written
        (_LAYOUT, bytes([3, _CONTIGUOUS]) + place),  # version 3
    ]
    return _add_header(file, messages)


def _add_header(file: BinaryIO, messages: Iterable[Message]) -> int:
    """Write an object's header (version 2, its size in 4 bytes); return its address."""
    address = _aligned(file)
    body = b"".join(pack("<BHB", kind, len(data), 0) + data for kind, data in messages)
    header = b"OHDR" + pack("<BBI", 2, 2, len(body)) + body
    file.write(header + pack("<I", lookup3(header)))
    return address


def _aligned(file: BinaryIO) -> int:
    file.write(bytes(-file.tell() % _ALIGNED))
    return file.tell()


# ---------------------------------------------------- the bodies of messages, each read and written


def _link(path: str, body: bytes) -> tuple[int, str, int]:
    """Read order, name and address of a hard link; there are no others in tinyft's files."""
    flags, at = body[1], 2
    kind = body[at] if flags & 8 else 0
    at += flags >> 3 & 1
    order = unpack_from("<Q", body, at)[0] if flags & 4 else 0
    at += 8 * (flags >> 2 & 1) + (flags >> 4 & 1)
    width = 1 << (flags & 3)
    length = int.from_bytes(body[at : at + width], "little")
    at += width
    name = body[at : at + length].decode("utf-8", "backslashreplace")
    if kind != 0:
        raise WeightsError(
            f"{path}/{name[:80]!r} leads elsewhere (a soft or external link); refused"
        )
    if not NAME.fullmatch(name):
        raise WeightsError(
            f"{path or 'the root'} holds the strange name {name!r:.80}: names in a tinyft file "
            f"consist of A-Z a-z 0-9 _ -"
        )
    return order, name, unpack_from("<Q", body, at + length)[0]


def _attribute(path: str, body: bytes) -> tuple[str, object]:
    """Read name and value: a text, a number, a boolean, or a short tuple of numbers."""
    version, flags, *sizes = unpack_from("<BBHHH", body)
    at, parts = 9 if version == 3 else 8, []
    for size in sizes:
        parts.append(body[at : at + size])
        at += -(-size // 8) * 8 if version == 1 else size
    name = parts[0].rstrip(b"\0").decode("utf-8", "backslashreplace")
    where = f"{path or 'the root'}: the attribute {name!r:.80}"
    if version not in (1, 2, 3) or (version != 1 and flags) or not NAME.fullmatch(name):
        raise WeightsError(f"{where} is not as tinyft writes it; the file is refused")
    dtype, shape = _dtype(where, parts[1]), _shape(where, parts[2])
    if len(shape) > 1 or (shape and dtype.kind == "S") or len(body) > _LARGEST_ATTRIBUTE:
        raise WeightsError(
            f"{where} is no number, boolean or fixed-length text, nor a short row of numbers; "
            f"the file is refused"
        )
    return name, value_of(np.frombuffer(body, dtype, math.prod(shape), at).reshape(shape))


def value_of(array: np.ndarray) -> object:
    """Return what is read of an attribute or a text: Python's own values, of numbers a tuple."""
    if array.dtype.kind == "S":
        return text_of(array)
    return tuple(array.tolist()) if array.ndim else array.item()


def text_of(array: np.ndarray) -> Text:
    """Return a text, or a list of texts of an array that has dimensions."""
    texts = [text.decode("utf-8") for text in array.reshape(-1).tolist()]
    return texts if array.ndim else texts[0]


def _encoded_attribute(name: str, value: np.ndarray) -> bytes:
    """Write version 1, whose parts begin at multiples of eight."""
    parts = (name.encode() + b"\0", _encoded_dtype(value.dtype), _encoded_shape(value))
    padded = b"".join(part.ljust(-(-len(part) // 8) * 8, b"\0") for part in parts)
    return pack("<BBHHH", 1, 0, *map(len, parts)) + padded + value.tobytes()


def _shape(path: str, body: bytes) -> tuple[int, ...]:
    version, rank = body[0], body[1]
    if version == 2 and body[3] == 2:
        raise WeightsError(f"{path} has no shape (a null dataspace); the file is refused")
    if version not in (1, 2) or rank > MOST_DIMENSIONS:
        raise WeightsError(f"{path} has no shape that tinyft knows; the file is refused")
    return unpack_from(f"<{rank}Q", body, 8 if version == 1 else 4)


def _encoded_shape(array: np.ndarray) -> bytes:
    """Write a dataspace of version 2: a number, or an array of a fixed shape."""
    return pack(f"<BBBB{array.ndim}Q", 2, array.ndim, 0, int(array.ndim > 0), *array.shape)


def _dtype(path: str, body: bytes) -> np.dtype:
    """Read plain numbers and fixed-length text: no references, no variable length, no records."""
    plain = bytes([body[0] & 15]) + body[1:]
    for name, encoded in _ENCODED.items():
        if plain.startswith(encoded):
            return np.dtype(name)
    if plain.startswith(_TEXT) and (length := unpack_from("<I", plain, 4)[0]):
        return np.dtype(f"S{length}")
    raise WeightsError(
        f"{path} has a type that tinyft's files do not hold: expected numbers (little-endian) or "
        f"fixed-length text; the file is refused"
    )


def _encoded_dtype(dtype: np.dtype) -> bytes:
    """Write a datatype of version 1, as _ENCODED lists them, or UTF-8 of a fixed length."""
    if dtype.kind == "S":
        return b"\x13\x11\0\0" + pack("<I", dtype.itemsize)
    encoded = _ENCODED[dtype.str]
    return bytes([encoded[0] | 16]) + encoded[1:]
