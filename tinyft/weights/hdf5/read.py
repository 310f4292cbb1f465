"""The part of HDF5 that tinyft's files need, read in plain Python: groups, attributes, arrays.

HDF5 is a file system in a file: it has links into other files, arrays whose bytes lie elsewhere,
plugins that are loaded to unpack, and its C library follows whatever a file's index says, into a
crash if need be.  A file from a stranger is therefore not given to it.  This reader knows the few
structures that a plain file of plain arrays consists of and refuses all others by name.

Its rules: HDF5's own checksums are compared; no place outside the file is read; no block is
entered twice, so that nothing goes in circles; and the blocks of the index, the objects, their
depth, and the arrays' bytes altogether have limits that the file cannot raise.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from struct import unpack_from
from typing import BinaryIO

import numpy as np

from tinyft.errors import WeightsError
from tinyft.weights.hdf5.index import UNDEFINED, Blocks, dense_objects

# ResNet-152 with two optimizer moments per parameter has some 3,000 groups and arrays.
_MOST_OBJECTS = 10_000
DEEPEST = 12
NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_MOST_ATTRIBUTES = 64
_LARGEST_ATTRIBUTE = 64 << 10  # bytes; HDF5's own limit in a header
_MOST_DIMENSIONS = 32  # HDF5's own limit

# The types of tinyft's files as HDF5 describes them, without the version in the first byte's upper
# half: class, bit field, size, then for numbers offset, precision, and the parts of a float.
ENCODED = {
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
DATASPACE, LINK_INFO, DATATYPE, FILL_VALUE, LINK, LAYOUT = 1, 2, 3, 5, 6, 8
GROUP_INFO, ATTRIBUTE, CONTINUATION, ATTRIBUTE_INFO = 10, 12, 16, 21
_WITHOUT_EFFECT = {0, 4, FILL_VALUE, GROUP_INFO, 14, 18, 22}  # 14, 18: times
_REFUSED = {
    7: "takes its bytes from another file",
    11: "is packed by a filter; write it plainly (h5repack -l CONTI -f NONE)",
    17: "is an old-style group, which tinyft has never written; write the arrays anew with "
    "tinyft.weights.write_arrays",
}
_SHARED = 2  # a message's flag: it lies elsewhere
_CONTIGUOUS, _VIRTUAL = 1, 3
_LAYOUTS = {0: "compact", 2: "chunked", _VIRTUAL: "virtual"}


@dataclass(frozen=True)
class Stored:
    """An array, or text of a fixed length (dtype ``S``), whose `nbytes` lie at `offset`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    nbytes: int

    def read(self, file: BinaryIO) -> np.ndarray:
        """A new array of native byte order. Raises: WeightsError if the file has become shorter"""
        array = np.empty(self.shape, self.dtype)
        if self.nbytes:  # an array of nothing has no place
            file.seek(self.offset)
            if file.readinto(array.reshape(-1).view(np.uint8)) != self.nbytes:
                raise WeightsError("the file was cut while it was read")
        return array.astype(self.dtype.newbyteorder("="), copy=False)


def read_tree(file: BinaryIO) -> tuple[dict[str, Stored], dict[str, dict[str, object]]]:
    """Every array, and the attributes of every group, by path (``weights/conv1``, the root "").

    Raises: WeightsError at the first structure that a plain file of plain arrays does not have;
    for damage any other exception, too
    """
    tree = _Tree(Blocks(file, file.seek(0, os.SEEK_END)))
    tree.visit("", tree.blocks.root(), depth=0)
    return tree.arrays, tree.attributes


class _Tree:
    """What the walk has seen so far."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.arrays: dict[str, Stored] = {}
        self.attributes: dict[str, dict[str, object]] = {}
        self.objects = 0
        self.nbytes = 0

    def visit(self, path: str, address: int, depth: int) -> None:
        """Take in one object and, if it is a group, all that is in it."""
        self.objects += 1
        if depth > DEEPEST or self.objects > _MOST_OBJECTS:
            raise WeightsError(f"{path[:160]}: too deep or too many objects; the file is refused")
        messages = _messages(self.blocks, path, address)
        kinds = {kind for kind, _ in messages}
        if LAYOUT in kinds:
            self._add_array(path, dict(messages))
        elif LINK_INFO in kinds or LINK in kinds:
            self.attributes[path] = _attributes(self.blocks, path, messages)
            for name, child in _links(self.blocks, path, messages):
                self.visit(f"{path}/{name}" if path else name, child, depth + 1)
        else:
            raise WeightsError(f"{path} is neither a group nor an array; the file is refused")

    def _add_array(self, path: str, messages: dict[int, bytes]) -> None:
        """Many small lies add up: the sum of the arrays has a limit, too."""
        shape, dtype = _shape(path, messages[DATASPACE]), _dtype(path, messages[DATATYPE])
        nbytes = math.prod(shape) * dtype.itemsize
        stored, offset = _layout(path, messages[LAYOUT])
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


def _messages(blocks: Blocks, path: str, address: int) -> list[tuple[int, bytes]]:
    """The messages of an object's header and its continuations, except those without effect."""
    newer, tracked, pending = blocks.object_header(path, address)
    messages: list[tuple[int, bytes]] = []
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
            if kind == CONTINUATION:
                pending.append(blocks.continuation(newer, *unpack_from("<QQ", body)))
            elif kind not in _WITHOUT_EFFECT:
                _check_kind(path, kind, flags)
                messages.append((kind, body))
    return messages


def _check_kind(path: str, kind: int, flags: int) -> None:
    known = (DATASPACE, LINK_INFO, DATATYPE, LINK, LAYOUT, ATTRIBUTE, ATTRIBUTE_INFO)
    if kind not in known:
        why = _REFUSED.get(kind, f"has a property (number {kind}) that tinyft does not know")
        raise WeightsError(f"{path or 'the root'} {why}; the file is refused")
    if flags & _SHARED:
        raise WeightsError(f"{path or 'the root'} is described elsewhere (shared); refused")


def _links(blocks: Blocks, path: str, messages: list[tuple[int, bytes]]) -> list[tuple[str, int]]:
    """Names and addresses of what is in a group, in the order of making."""
    bodies = [body for kind, body in messages if kind == LINK]
    for kind, body in messages:
        if kind == LINK_INFO:
            at = 2 + 8 * (body[1] & 1)
            bodies += dense_objects(blocks, *unpack_from("<QQ", body, at), _MOST_OBJECTS)
    found = sorted(_link(path, body) for body in bodies)
    names = [name for _, name, _ in found]
    if len(set(names)) != len(names):
        raise WeightsError(f"{path or 'the root'} holds two objects of one name; refused")
    return [(name, address) for _, name, address in found]


def _link(path: str, body: bytes) -> tuple[int, str, int]:
    """Order, name and address of a hard link; there are no others in tinyft's files."""
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


def _attributes(blocks: Blocks, path: str, messages: list[tuple[int, bytes]]) -> dict[str, object]:
    bodies = [body for kind, body in messages if kind == ATTRIBUTE]
    for kind, body in messages:
        if kind == ATTRIBUTE_INFO:
            at = 2 + 2 * (body[1] & 1)
            bodies += dense_objects(blocks, *unpack_from("<QQ", body, at), _MOST_ATTRIBUTES)
    if len(bodies) > _MOST_ATTRIBUTES:
        raise WeightsError(f"{path or 'the root'} has too many attributes; the file is refused")
    return dict(_attribute(path, body) for body in bodies)


def _attribute(path: str, body: bytes) -> tuple[str, object]:
    """Name and value: a text, a number, a boolean, or a short tuple of numbers."""
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
    value = np.frombuffer(body, dtype, math.prod(shape), at).reshape(shape).tolist()
    if isinstance(value, bytes):
        return name, value.decode("utf-8")
    return name, tuple(value) if shape else value


def _shape(path: str, body: bytes) -> tuple[int, ...]:
    version, rank = body[0], body[1]
    if version == 2 and body[3] == 2:
        raise WeightsError(f"{path} has no shape (a null dataspace); the file is refused")
    if version not in (1, 2) or rank > _MOST_DIMENSIONS:
        raise WeightsError(f"{path} has no shape that tinyft knows; the file is refused")
    return unpack_from(f"<{rank}Q", body, 8 if version == 1 else 4)


def _dtype(path: str, body: bytes) -> np.dtype:
    """Plain numbers and fixed-length text: no references, no variable length, no records."""
    plain = bytes([body[0] & 15]) + body[1:]
    for name, encoded in ENCODED.items():
        if plain.startswith(encoded):
            return np.dtype(name)
    if plain.startswith(_TEXT) and (length := unpack_from("<I", plain, 4)[0]):
        return np.dtype(f"S{length}")
    raise WeightsError(
        f"{path} has a type that tinyft's files do not hold: expected numbers (little-endian) or "
        f"fixed-length text; the file is refused"
    )


def _layout(path: str, body: bytes) -> tuple[int, int]:
    """Bytes and address of an array that lies in one piece."""
    if body[0] not in (3, 4) or body[1] != _CONTIGUOUS:
        kind = _LAYOUTS.get(body[1], "in an unknown way")
        raise WeightsError(
            f"{path} is stored {kind}, not in one piece; write it plainly (h5repack -l CONTI)"
        )
    offset, stored = unpack_from("<QQ", body, 2)
    return stored, offset
