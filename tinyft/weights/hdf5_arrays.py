"""Named arrays, attributes and texts in one HDF5 file: what weights files and checkpoints share.

::

    /                          attributes: format, format_version, content_sha256, and the caller's
    /weights/conv1/weight      an array, called "weights.conv1.weight" in Python
    /preprocess                attributes only, called "preprocess.resize" and so on in Python
    /classes                   a text or a list of texts

A dot in Python is a slash in the file, so that ``h5ls -r`` shows the tree of modules.  Arrays are
stored contiguously and uncompressed: gzip saves 7 % of float32 weights and reads ten times slower.
Texts have a fixed length: variable-length ones live in a heap that a crafted file can corrupt.

Next: tinyft/weights/hdf5.py
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tinyft.errors import WeightsError
from tinyft.weights.files import LazyArray, damage_is_an_error, replacing
from tinyft.weights.hdf5_disk import new_hdf5
from tinyft.weights.hdf5_guard import check_names, read_attributes, walk

if TYPE_CHECKING:
    import h5py

FORMAT_VERSION = 1
_HASH = "content_sha256"
_DTYPES = ("<f4", "<f2", "<f8", "<i8", "<i4", "|u1")
# What a file system answers that has no locks at all (some network and container mounts).
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)

_LARGEST_ATTRIBUTE = 60_000  # bytes; HDF5 has 64 KiB for an attribute and what describes it

Attribute = str | int | float | bool | tuple[float, ...]
Text = str | list[str]


@dataclass(frozen=True)
class ArrayFile:
    """The content of the file at `path`: arrays not read yet, attributes and texts, under dotted
    names.

    A plain text and a list of texts are told apart by the dataset's shape.
    """

    path: str
    arrays: dict[str, LazyArray]
    attributes: dict[str, object]
    texts: dict[str, Text]

    def read_all(self) -> dict[str, np.ndarray]:
        """Every array, once their common hash is found to be the stored one.

        Raises: WeightsError if the file has changed since it was written.
        """
        arrays = {name: lazy.read() for name, lazy in self.arrays.items()}
        found, stored = content_sha256(arrays), self.attributes.get(_HASH)
        if found != stored:
            raise WeightsError(
                f"{self.path}: the arrays' sha256 is {found}, the file says {stored}; it is "
                f"damaged or was edited; get it again"
            )
        return arrays


def content_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """A hash of names, dtypes, shapes and numbers, whatever the file's layout: 64 hex digits.

    It finds damage. It is no signature: whoever edits a file on purpose can write the new hash.
    """
    digest = hashlib.sha256()
    for path, array in sorted((_path(name), array) for name, array in arrays.items()):
        stored = _little_endian(array)
        shape = ",".join(str(size) for size in stored.shape)
        digest.update(_encoded(f"{path}\0{stored.dtype.str}\0{shape}\0"))
        digest.update(stored.tobytes())
    return digest.hexdigest()


def write_arrays(
    path: str | os.PathLike[str],
    format: str,
    arrays: Mapping[str, np.ndarray],
    attributes: Mapping[str, Attribute] | None = None,
    texts: Mapping[str, Text] | None = None,
) -> str:
    """Write a file that read_arrays reads, replacing an old one whole; its content_sha256.

    Raises: WeightsError for a dtype other than float16/32/64, int32/64, uint8, for a name that
    read_arrays would refuse, and for a text that would not come back; OSError if the disk is full,
    in which case an old file of that name is untouched.
    """
    check_names(arrays)
    for name, array in arrays.items():
        if _little_endian(array).dtype.str not in _DTYPES:
            raise WeightsError(f"{name} is {array.dtype}, which tinyft's files do not hold")
    digest = content_sha256(arrays)
    stamp = {"format": format, "format_version": FORMAT_VERSION, _HASH: digest}
    with replacing(path) as temporary, new_hdf5(temporary) as file:
        for name, value in {**stamp, **(attributes or {})}.items():
            _write_attribute(file, name, value)
        for name, array in arrays.items():
            _group(file, name).create_dataset(
                _path(name).rpartition("/")[2], data=_little_endian(array), track_times=False
            )
        for name, text in (texts or {}).items():
            _write_text(file, name, text)
    return digest


def _path(name: str) -> str:
    return name.replace(".", "/")


def _little_endian(array: np.ndarray) -> np.ndarray:
    """The array as the file holds it. (ascontiguousarray would make a scalar one-dimensional.)"""
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C")


def _group(file: h5py.File, name: str) -> h5py.Group:
    """The group that a dotted name lies in, made if need be."""
    parent = _path(name).rpartition("/")[0]
    if not parent or parent in file:
        return file[parent or "/"]
    above = _group(file, parent.replace("/", "."))
    return above.create_group(parent.rpartition("/")[2], track_order=True)


def _write_attribute(file: h5py.File, name: str, value: Attribute) -> None:
    owner, last = _group(file, name), name.rpartition(".")[2]
    if isinstance(value, str):
        text = _to_be_kept(value)
        if len(text) > _LARGEST_ATTRIBUTE:
            raise WeightsError(
                f"{name} is a text of {len(text):,} bytes; a file's attributes can have "
                f"{_LARGEST_ATTRIBUTE:,}: shorten it"
            )
        owner.attrs.create(last, np.array(text, dtype=_text_type(len(text))))
    else:
        owner.attrs[last] = np.asarray(value)


def _write_text(file: h5py.File, name: str, text: Text) -> None:
    encoded = _to_be_kept(text) if isinstance(text, str) else list(map(_to_be_kept, text))
    longest = len(encoded) if isinstance(encoded, bytes) else max(map(len, encoded), default=1)
    data = np.array(encoded, dtype=_text_type(longest))
    _group(file, name).create_dataset(name.rpartition(".")[2], data=data, track_times=False)


def _to_be_kept(text: str) -> bytes:
    """Raises: WeightsError for a NUL, behind which HDF5 forgets the rest"""
    if "\0" in text:
        raise WeightsError(f"the text {text[:80]!r} has a NUL, which no file can keep: remove it")
    return _encoded(text)


def _encoded(text: str) -> bytes:
    """UTF-8; of a name that is no text, the bytes spelt out."""
    return text.encode("utf-8", "backslashreplace")


def _text_type(length: int) -> np.dtype:
    """Fixed-length UTF-8; HDF5 has no length 0."""
    import h5py

    return h5py.string_dtype("utf-8", max(length, 1))


@contextlib.contextmanager
def open_arrays(path: str | os.PathLike[str], format: str) -> Iterator[ArrayFile]:
    """The content of a file of that format; arrays can be read until the block ends.

    The whole file has passed the guard before the block begins.
    Raises: WeightsError for a hazard, damage, another format or a newer version; OSError if the
    system cannot open the file.
    """
    with damage_is_an_error(path), _open(path) as file:
        datasets, groups = walk(file)
        attributes = _attributes(groups)
        _check_format(path, format, attributes)
        yield ArrayFile(
            path=os.fspath(path),
            arrays={
                _dotted(name): LazyArray(item.shape, item.dtype.str, partial(_read, item))
                for name, item in datasets.items()
                if item.dtype.kind != "S"
            },
            attributes=attributes,
            texts={
                _dotted(name): _read_text(item)
                for name, item in datasets.items()
                if item.dtype.kind == "S"
            },
        )


def read_arrays(
    path: str | os.PathLike[str], format: str
) -> tuple[dict[str, np.ndarray], dict[str, object], dict[str, Text]]:
    """The arrays, attributes and texts of a file that write_arrays wrote, from whomever it comes.

    Raises: as open_arrays, and WeightsError if the content does not have the stored hash.
    """
    with open_arrays(path, format) as content:
        return content.read_all(), content.attributes, content.texts


@contextlib.contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    import h5py

    with open(path, "rb"):
        pass  # a missing or forbidden file is reported by the system, in its own words
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise WeightsError(f"{path} is being written by another process; try later") from error
        if error.errno not in _NO_LOCKS:
            raise WeightsError(f"{path} is damaged or no HDF5 file ({error})") from error
        file = h5py.File(path, "r", locking=False)
    with file:
        yield file


def _dotted(path: str) -> str:
    return path.replace("/", ".")


def _attributes(groups: Mapping[str, h5py.Group]) -> dict[str, object]:
    """All attributes under dotted names: the root's plainly, others after their group's name."""
    return {
        f"{_dotted(path)}.{name}" if path else name: value
        for path, group in groups.items()
        for name, value in read_attributes(path, group).items()
    }


def _check_format(path: object, expected: str, attributes: Mapping[str, object]) -> None:
    found, version = attributes.get("format"), attributes.get("format_version")
    if found != expected:
        raise WeightsError(f"{path}: the format is {found!r:.80}, expected {expected!r}")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        writer = attributes.get("created_by", "unknown")
        raise WeightsError(
            f"{path}: format version {version!r:.40}, written by {writer!s:.80}; this tinyft reads "
            f"up to {FORMAT_VERSION}; update tinyft"
        )


def _read(dataset: h5py.Dataset) -> np.ndarray:
    """A new array of native byte order."""
    array = np.empty(dataset.shape, dataset.dtype.newbyteorder("="))
    if array.size:
        dataset.read_direct(array)
    return array


def _read_text(dataset: h5py.Dataset) -> Text:
    raw = np.empty(dataset.shape, dataset.dtype)
    dataset.read_direct(raw)
    if raw.ndim == 0:
        return bytes(raw[()]).decode("utf-8")
    return [bytes(item).decode("utf-8") for item in raw.reshape(-1)]
