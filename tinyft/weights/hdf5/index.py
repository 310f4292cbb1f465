"""The blocks that an HDF5 file's index consists of: their places, checksums and inner order.

A small group keeps its links and attributes in its header.  A large one, in files that h5py wrote,
keeps them in a fractal heap, and a B-tree (version 2) says where in it each lies.

Source: HDF5 File Format Specification, version 3.0 (The HDF Group)
"""

from __future__ import annotations

from bisect import bisect_right
from struct import iter_unpack, unpack_from
from typing import BinaryIO

from tinyft.errors import WeightsError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
UNDEFINED = 0xFFFF_FFFF_FFFF_FFFF  # the address of what does not exist
_WORD = 0xFFFF_FFFF
MOST_METADATA = 8 << 20  # bytes, 3 s to check; ResNet-152's checkpoint has 1 million
_DEEPEST_B_TREE = 3  # of 512-byte nodes: over 100,000 records
_BY_NAME = {5: 4, 8: 0}  # B-trees of links and of attributes: where in a record the heap's id is
_HUGE = 1  # B-tree of a heap's huge objects, which lie outside its blocks


class Blocks:
    """An open file of `size` bytes, of which blocks are read that are whole and undamaged."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.left = MOST_METADATA
        self.entered: set[int] = set()

    def block(self, address: int, length: int) -> bytes:
        """Read so many bytes. Raises: WeightsError if not all are in the file, or too many."""
        if length < 0 or address + length > self.size:
            raise WeightsError("the file is damaged: a block lies behind its end (is it cut?)")
        self.spend(length)
        self.file.seek(address)
        return self.file.read(length)

    def spend(self, length: int) -> None:
        """Count what is taken from the index. Raises: WeightsError if it is too much in sum"""
        self.left -= length
        if self.left < 0:
            raise WeightsError("the index of the file is too large; the file is refused")

    def enter(self, address: int) -> None:
        """Raises: WeightsError if a block was read before: the index has a circle"""
        if address in self.entered:
            raise WeightsError("the index leads to a block for a second time (a cycle?); refused")
        self.entered.add(address)

    def checked(self, address: int, length: int, signature: bytes, at: int = -4) -> bytes:
        """Read a block whose signature and checksum (at its end, or at a place in it) are right.

        Raises: WeightsError if not, or if the block was read before
        """
        self.enter(address)
        block = self.block(address, length)
        at %= max(length, 1)
        if not block.startswith(signature) or at + 4 > length:
            raise WeightsError(f"the file is damaged: {signature!r:.20} is not where it should be")
        self.verify(address, block, at)
        return block

    def verify(self, address: int, block: bytes, at: int) -> None:
        """Raises: WeightsError unless the 4 bytes there are the checksum of all others"""
        covered = block[:at] if at + 4 == len(block) else block[:at] + bytes(4) + block[at + 4 :]
        if lookup3(covered) != unpack_from("<I", block, at)[0]:
            raise WeightsError(f"the file is damaged: a wrong checksum of the block at {address:,}")

    def root(self) -> int:
        """Read the address of the root group's header from the superblock."""
        head = self.block(0, min(self.size, 96))
        if not head.startswith(SIGNATURE):
            raise WeightsError("the file is damaged or no HDF5 file: it does not begin as one")
        version = head[8]
        if version == 0 and head[13:15] == b"\x08\x08":
            base, _, end, _, _, root = unpack_from("<6Q", head, 24)
        elif version in (2, 3) and head[9:11] == b"\x08\x08":
            base, _, end, root = unpack_from("<4Q", self.checked(0, 48, SIGNATURE), 12)
        else:
            raise WeightsError(f"the file is damaged: superblock version {version} is not known")
        if base or end > self.size:
            raise WeightsError("the file is damaged: it is shorter than it says (or begins later)")
        return root

    def object_header(self, path: str, address: int) -> tuple[bool, int, list[bytes]]:
        """Read an object's header: whether it is of version 2, whether its messages have an order,
        and the first block of messages.
        """
        if address in self.entered:
            raise WeightsError(f"{path or 'the root'} is a second name of an object; refused")
        head = self.block(address, min(50, self.size - address))
        if head.startswith(b"OHDR\2"):
            at = 6 + 16 * (head[5] >> 5 & 1) + 4 * (head[5] >> 4 & 1)
            width = 1 << (head[5] & 3)
            start, size = at + width, int.from_bytes(head[at : at + width], "little")
            block = self.checked(address, start + size + 4, b"OHDR")
            return True, head[5] & 4, [block[start:-4]]
        if head.startswith(b"\1\0"):
            self.enter(address)
            return False, 0, [self.block(address + 16, unpack_from("<I", head, 8)[0])]
        raise WeightsError(f"{path or 'the root'}: the file is damaged, it has no header there")

    def continuation(self, newer: bool, address: int, length: int) -> bytes:
        """Read a further block of an object header's messages."""
        if newer:
            return self.checked(address, length, b"OCHK")[4:-4]
        self.enter(address)
        return self.block(address, length)


def dense_objects(blocks: Blocks, heap: int, index: int, *, most: int) -> list[bytes]:
    """Read the links or attributes in a fractal heap, as the B-tree by their names lists them."""
    if heap == UNDEFINED:
        return []
    found = _Heap(blocks, heap)
    kind, records = _records(blocks, index, most)
    at = _BY_NAME[kind]
    return [found.object(record[at : at + found.id_length]) for record in records]


class _Heap:
    """A fractal heap: one space of bytes, cut into blocks that double in size."""

    def __init__(self, blocks: Blocks, address: int) -> None:
        head = blocks.checked(address, 146, b"FRHP\0")
        self.blocks = blocks
        self.id_length, filters, self.flags = unpack_from("<HHB", head, 5)
        self.huge_index = unpack_from("<Q", head, 22)[0]
        self.width, start, largest, bits = unpack_from("<HQQH", head, 110)
        root, rows = unpack_from("<QH", head, 132)
        if filters or bits > 64 or not start:
            raise WeightsError("a packed or strange heap, as tinyft's files have none; refused")
        self.offset_bytes = -(-bits // 8)
        self.starts: list[int] = []
        self.places: list[tuple[int, int]] = []
        self.read: dict[int, bytes] = {}
        self.huge: dict[int, tuple[int, int]] | None = None
        if not rows:
            self.starts, self.places = [0], [(root, start)]
        else:
            self._list_children(root, rows, start, largest)

    def _list_children(self, root: int, rows: int, start: int, largest: int) -> None:
        """List the direct blocks below the one indirect block; there are none below that."""
        head = 13 + self.offset_bytes
        block = self.blocks.checked(root, head + 8 * rows * self.width + 4, b"FHIB")
        addresses, begins = unpack_from(f"<{rows * self.width}Q", block, head), 0
        for i, address in enumerate(addresses):
            size = start << max(i // self.width - 1, 0)
            if address != UNDEFINED:
                if size > largest:
                    raise WeightsError("a heap larger than those of tinyft's files; refused")
                self.starts.append(begins)
                self.places.append((address, size))
            begins += size

    def object(self, identity: bytes) -> bytes:
        """Read one object. Raises: WeightsError if its identity leads nowhere"""
        kind, rest = identity[0] >> 4, identity[1:]
        if kind == 1:
            if self.huge is None:
                kept, records = _records(self.blocks, self.huge_index, 10_000)
                places = [unpack_from("<QQQ", record) for record in records if kept == _HUGE]
                self.huge = {number: (address, length) for address, length, number in places}
            return self.blocks.block(*self.huge[int.from_bytes(rest, "little")])
        if kind != 0:
            raise WeightsError("the file is damaged: an object of a heap has a strange identity")
        offset = int.from_bytes(rest[: self.offset_bytes], "little")
        length = int.from_bytes(rest[self.offset_bytes :], "little")
        number = bisect_right(self.starts, offset) - 1
        address, size = self.places[number]
        begin = offset - self.starts[number]
        if number < 0 or begin + length > size:
            raise WeightsError("the file is damaged: an object of a heap lies outside of it")
        if address not in self.read:
            at = 13 + self.offset_bytes
            if not self.flags & 2:
                raise WeightsError("a heap without checksums, as tinyft's files have none; refused")
            self.read[address] = self.blocks.checked(address, size, b"FHDB", at)
        self.blocks.spend(length)
        return self.read[address][begin : begin + length]


def _records(blocks: Blocks, address: int, most: int) -> tuple[int, list[bytes]]:
    """Read the kind and all records of a B-tree of version 2."""
    head = blocks.checked(address, 38, b"BTHD\0")
    kind, node_size, size, depth = head[5], *unpack_from("<IHH", head, 6)
    root, count, total = unpack_from("<QHQ", head, 16)
    if depth > _DEEPEST_B_TREE or total > most or not size:
        raise WeightsError("the index has too many or too deep entries; the file is refused")
    # The counts in a node's pointers have as many bytes as the largest possible count needs.
    own = fullest = (node_size - 10) // size
    count_bytes, widths = _bytes_for(own), [0]
    for level in range(depth):
        pointer = 8 + count_bytes + widths[level]
        fits = (node_size - 10 - pointer) // (size + pointer)
        fullest = (fits + 1) * fullest + fits
        widths.append(_bytes_for(fullest))
    records: list[bytes] = []
    pending = [(root, count, depth)] if count else []
    while pending:
        place, count, level = pending.pop()
        pointer = 8 + count_bytes + widths[level - 1] if level else 0
        length = 6 + count * size + (count + 1) * pointer + 4
        if length > node_size or len(records) + count > most:
            raise WeightsError("the file is damaged: a node of the index is too full")
        node = blocks.checked(place, length, b"BTIN" if level else b"BTLF")
        end = 6 + count * size
        records += [node[at : at + size] for at in range(6, end, size)]
        for at in range(end, length - 4, pointer) if level else ():
            below = int.from_bytes(node[at + 8 : at + 8 + count_bytes], "little")
            pending.append((unpack_from("<Q", node, at)[0], below, level - 1))
    if len(records) != total:
        raise WeightsError("the file is damaged: the index has not the entries that it claims")
    return kind, records


def _bytes_for(count: int) -> int:
    return (max(count.bit_length(), 1) - 1) // 8 + 1


def lookup3(data: bytes) -> int:
    """Compute HDF5's checksum of metadata. Source: Bob Jenkins, lookup3.c (2006), hashlittle"""
    a = b = c = (0xDEADBEEF + len(data)) & _WORD
    whole = max(len(data) - 1, 0) // 12 * 12  # the last 1 to 12 bytes are mixed otherwise
    for x, y, z in iter_unpack("<3I", data[:whole]):
        a, b, c = a + x & _WORD, b + y & _WORD, c + z & _WORD
        a = a - c & _WORD ^ (c << 4 & _WORD | c >> 28)
        c = c + b & _WORD
        b = b - a & _WORD ^ (a << 6 & _WORD | a >> 26)
        a = a + c & _WORD
        c = c - b & _WORD ^ (b << 8 & _WORD | b >> 24)
        b = b + a & _WORD
        a = a - c & _WORD ^ (c << 16 & _WORD | c >> 16)
        c = c + b & _WORD
        b = b - a & _WORD ^ (a << 19 & _WORD | a >> 13)
        a = a + c & _WORD
        c = c - b & _WORD ^ (b << 4 & _WORD | b >> 28)
        b = b + a & _WORD
    if not data:
        return c
    x, y, z = unpack_from("<3I", data[whole:].ljust(12, b"\0"))
    a, b, c = a + x & _WORD, b + y & _WORD, c + z & _WORD
    c = (c ^ b) - (b << 14 & _WORD | b >> 18) & _WORD
    a = (a ^ c) - (c << 11 & _WORD | c >> 21) & _WORD
    b = (b ^ a) - (a << 25 & _WORD | a >> 7) & _WORD
    c = (c ^ b) - (b << 16 & _WORD | b >> 16) & _WORD
    a = (a ^ c) - (c << 4 & _WORD | c >> 28) & _WORD
    b = (b ^ a) - (a << 14 & _WORD | a >> 18) & _WORD
    return (c ^ b) - (b << 24 & _WORD | b >> 8) & _WORD
