"""The guard at the door of an HDF5 file from a stranger.

HDF5 is a file system in a file: it has links into other files, datasets whose bytes lie elsewhere,
plugins that are loaded to decompress, and headers that can promise any size.  tinyft's own files
use none of that.  ``walk`` goes through the whole tree, one component of a path at a time, and
refuses whatever a plain file of plain arrays does not have.

Next: tinyft/weights/hdf5_chunks.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from tinyft.errors import WeightsError
from tinyft.weights.hdf5_chunks import check_chunks

if TYPE_CHECKING:
    import h5py

# ResNet-152 with two optimizer moments per parameter has some 3,000 groups and datasets.
_MOST_OBJECTS = 10_000
_DEEPEST = 12
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
# Weights deflate by a tenth; what inflates 64-fold is a bomb (deflate can reach 1030).
_LARGEST_INFLATION, _ALWAYS_ALLOWED = 64, 64 << 10
_LARGEST_TOTAL = 8 << 30  # bytes of all arrays; ResNet-152 with its optimizer has 0.7 GB
_MOST_ATTRIBUTES = 64
_LARGEST_ATTRIBUTE = 64 << 10  # HDF5's own limit for a compactly stored attribute


def walk(file: h5py.File) -> tuple[dict[str, h5py.Dataset], dict[str, h5py.Group]]:
    """Every dataset and every group of the file by its path (``weights/conv1/weight``, root "").

    Raises: WeightsError at the first object that is not a plain group or a plain array.
    """
    guard = _Guard(os.path.getsize(file.filename))
    guard.visit("", file["/"], depth=0)
    return guard.datasets, guard.groups


class _Guard:
    """What the walk has seen so far."""

    def __init__(self, file_size: int) -> None:
        self.file_size = file_size
        self.datasets: dict[str, h5py.Dataset] = {}
        self.groups: dict[str, h5py.Group] = {}
        self.seen: set[tuple[int, object]] = set()
        self.stored = 0
        self.unpacked = 0

    def visit(self, path: str, item: object, depth: int) -> None:
        """Check one object and, if it is a group, all that is in it."""
        import h5py

        self._check_new(path, item)
        if isinstance(item, h5py.Group):
            _check_spelling(path)
            self.groups[path] = item
            for name in self._names(path, item, depth):
                child = f"{path}/{name}" if path else name
                self.visit(child, item[name], depth + 1)
        elif isinstance(item, h5py.Dataset):
            check_dataset(path, item, self.file_size)
            _check_spelling(path)
            self._count(path, item)
            self.datasets[path] = item
        else:
            raise WeightsError(f"{path} is neither a group nor an array; the file is refused")

    def _check_new(self, path: str, item: object) -> None:
        """Two names for one object could be a cycle, in which a walk never ends."""
        import h5py

        info = h5py.h5o.get_info(item.id)
        identity = (info.fileno, info.addr)
        if identity in self.seen:
            raise WeightsError(f"{path} is a second name of an object (a cycle?); refused")
        self.seen.add(identity)

    def _names(self, path: str, group: h5py.Group, depth: int) -> list[str]:
        """The names in a group, whose number, depth, kind of link and spelling are harmless."""
        import h5py

        count = group.id.get_num_objs()
        if depth >= _DEEPEST or len(self.seen) + count > _MOST_OBJECTS:
            raise WeightsError(
                f"{path or 'the root'} is too deep or holds too many objects ({count:,}); refused"
            )
        names = list(group)
        for name in names:
            if not isinstance(name, str) or not _plain_text(name):
                raise WeightsError(f"{path} holds the strange name {name!r:.80}; refused")
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                kind = type(link).__name__
                raise WeightsError(f"{path}/{name[:80]} leads elsewhere ({kind}); it is refused")
        return names

    def _count(self, path: str, dataset: h5py.Dataset) -> None:
        """Many small lies add up: the sums have limits, too."""
        self.stored += dataset.id.get_storage_size()
        self.unpacked += dataset.nbytes
        if self.stored > self.file_size or self.unpacked > _LARGEST_TOTAL:
            raise WeightsError(f"{path}: the arrays claim more bytes than the file can hold")


def _plain_text(name: str) -> bool:
    return name not in ("", ".", "..") and name.isprintable()


def _check_spelling(path: str) -> None:
    """Dots would be slashes in another spelling, and two names could become one."""
    name = path.rpartition("/")[2]
    if path and not _NAME.fullmatch(name):
        raise WeightsError(f"{path[:160]!r}: names in a tinyft file consist of A-Z a-z 0-9 _ -")


def check_names(names: Collection[str]) -> None:
    """What the walk through a file with arrays of these dotted names would refuse.

    Raises: WeightsError naming the first array whose name no tinyft file can hold
    """
    for name in names:
        parts = name.split(".")
        if len(parts) > _DEEPEST or not all(map(_NAME.fullmatch, parts)):
            raise WeightsError(
                f"a tinyft file cannot hold the name {name!r:.160}: expected at most {_DEEPEST} "
                f"parts with a dot between them, each of 1 to 100 of A-Z a-z 0-9 _ -; rename it"
            )
        above = [".".join(parts[:count]) for count in range(1, len(parts))]
        if clash := [parent for parent in above if parent in names]:
            raise WeightsError(
                f"a tinyft file cannot hold {name!r:.160} beside {clash[0]!r:.160}, which would be "
                f"an array and a folder at once; rename one of the tensors"
            )


def check_dataset(path: str, dataset: h5py.Dataset, file_size: int) -> None:
    """Refuse a dataset that is not a plain array of numbers or fixed-length text, all of it stored.

    Raises: WeightsError naming the dataset and what is wrong with it.
    """
    if dataset.shape is None:
        raise WeightsError(f"{path} has no shape (a null dataspace); the file is refused")
    if dataset.id.get_create_plist().get_external_count():
        raise WeightsError(f"{path} takes its bytes from another file; refused")
    if dataset.is_virtual:
        raise WeightsError(f"{path} is put together from other files (virtual); refused")
    _check_dtype(path, dataset)
    stored, nbytes = dataset.id.get_storage_size(), dataset.nbytes
    if nbytes > _LARGEST_INFLATION * stored + _ALWAYS_ALLOWED or stored > file_size:
        raise WeightsError(
            f"{path} of shape {dataset.shape} claims {nbytes:,} bytes and stores {stored:,}; "
            f"the file is damaged or made to deceive"
        )
    _check_complete(path, dataset, file_size)


def _check_dtype(path: str, dataset: h5py.Dataset) -> None:
    """Plain numbers and fixed-length text: no references, no variable length, no records."""
    import h5py

    plain = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING)
    dtype, kind = dataset.dtype, dataset.id.get_type()
    if kind.get_class() not in plain or kind.committed() or dtype.hasobject:
        raise WeightsError(f"{path} has the type {dtype!r:.80}, expected numbers or fixed text")


def _check_complete(path: str, dataset: h5py.Dataset, file_size: int) -> None:
    """Missing pieces read as zeros without an error, so the stored bytes are counted instead."""
    if dataset.chunks is not None:
        check_chunks(path, dataset)
        return
    offset, nbytes = dataset.id.get_offset() or 0, dataset.nbytes
    if dataset.id.get_storage_size() != nbytes or offset + nbytes > file_size:
        raise WeightsError(f"{path} is not wholly stored in the file; write it again")


def read_attributes(path: str, item: h5py.Group) -> dict[str, object]:
    """A group's attributes: text, numbers, booleans, and short tuples of floats.

    Raises: WeightsError for any other type or size, before it is read.
    """
    import h5py

    if h5py.h5a.get_num_attrs(item.id) > _MOST_ATTRIBUTES:
        raise WeightsError(f"{path or 'the root'} has too many attributes; the file is refused")
    values: dict[str, object] = {}
    for name in item.attrs:
        attribute = item.attrs.get_id(name)
        kind = attribute.get_type().get_class()
        small = attribute.get_storage_size() <= _LARGEST_ATTRIBUTE and len(attribute.shape) <= 1
        plain = kind in (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM)
        if not _plain_text(name) or not small or not plain or attribute.dtype.hasobject:
            raise WeightsError(
                f"{path or 'the root'}: the attribute {name!r:.80} is no number, boolean or "
                "fixed-length text; the file is refused"
            )
        values[name] = _plain_value(item.attrs[name])
    return values


def _plain_value(value: object) -> object:
    """NumPy's scalars as Python's."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if getattr(value, "ndim", 0):
        return tuple(value.tolist())
    plain = value.item() if hasattr(value, "item") else value
    return plain.decode("utf-8") if isinstance(plain, bytes) else plain
