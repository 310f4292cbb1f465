"""Named arrays, attributes and texts in one HDF5 file: what weights files and checkpoints share.

::

    /                          attributes: format, format_version, content_sha256, all_sha256, and
                               the caller's
    /weights/conv1/weight      an array, called "weights.conv1.weight" in Python
    /preprocess                attributes only, called "preprocess.resize" and so on in Python
    /classes                   a text or a list of texts

A dot in Python is a slash in the file, so that `h5ls -r` shows the tree of modules.  Arrays are
stored contiguously and uncompressed: gzip saves 7 % of float32 weights and reads ten times slower.
Texts have a fixed length: variable-length ones live in a heap that a crafted file can corrupt.

What is promised: each file that a tinyft wrote is read, also after another program has changed it
in place, if it keeps to this form; what it changed must then be given the right hashes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from tinyft.errors import WeightsError
from tinyft.weights.files import LazyArray, damage_is_an_error, replacing
from tinyft.weights.hdf5.tree import (
    DEEPEST,
    MOST_ATTRIBUTES,
    MOST_DIMENSIONS,
    NAME,
    Text,
    read_tree,
    text_of,
    value_of,
    write_tree,
)

# 2: all_sha256, without which nothing told of a changed attribute or text
FORMAT_VERSION = 2
_HASH, _WHOLE_HASH = "content_sha256", "all_sha256"
_DTYPES = ("<f4", "<f2", "<f8", "<i8", "<i4", "|u1")
_LARGEST_ATTRIBUTE = 60_000  # bytes; HDF5 has 64 KiB for an attribute and what describes it
_MOST_TEXTS = 100_000  # in one list; each takes fifty times its shortest length in memory


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
        """Read every array, once their common hash is found to be the stored one.

        Raises: WeightsError if the file has changed since it was written.
        """
        arrays = {name: lazy.read() for name, lazy in self.arrays.items()}
        computed, stored = content_sha256(arrays), self.attributes.get(_HASH)
        if computed != stored:
            raise WeightsError(
                f"{self.path}: the arrays' sha256 is {computed}, the file says {stored}; it is "
                f"damaged or was edited; get it again"
            )
        return arrays


def content_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """Hash names, dtypes, shapes and values, whatever the file's layout, to 64 hex digits.

    It finds damage. It is no signature: whoever edits a file on purpose can write the new hash.
    """
    digest = hashlib.sha256()
    for path, array in sorted((name.replace(".", "/"), array) for name, array in arrays.items()):
        stored = _little_endian(array)
        shape = ",".join(str(size) for size in stored.shape)
        digest.update(_encoded(f"{path}\0{stored.dtype.str}\0{shape}\0"))
        digest.update(stored.tobytes())
    return digest.hexdigest()


def write_arrays(
    path: str | os.PathLike[str],
    format: str,
    arrays: Mapping[str, np.ndarray],
    attributes: Mapping[str, object] | None = None,
    texts: Mapping[str, Text] | None = None,
) -> str:
    """Write a file that read_arrays reads, replacing an old one whole; return its content_sha256.

    Attributes are texts, booleans, numbers and rows of these.

    Raises: WeightsError for a dtype other than float16/32/64, int32/64, uint8, for a text that
    would not come back, and for whatever else read_arrays would refuse, as too many dimensions;
    OSError if the disk is full, in which case an old file of that name is untouched.
    """
    attributes, texts = attributes or {}, texts or {}
    _check_names([*arrays, *attributes, *texts])
    for name, array in arrays.items():
        if _little_endian(array).dtype.str not in _DTYPES:
            raise WeightsError(f"{name} is {array.dtype}, which tinyft's files do not hold")
        if array.ndim > MOST_DIMENSIONS:
            raise WeightsError(f"{name} has {array.ndim} dimensions; HDF5 has {MOST_DIMENSIONS}")
    digest = content_sha256(arrays)
    stamp = {"format": format, "format_version": FORMAT_VERSION, _HASH: digest}
    stored = {name: _stored_attribute(name, v) for name, v in {**stamp, **attributes}.items()}
    stored_texts = {name: _stored_text(name, text) for name, text in texts.items()}
    whole = _all_sha256(
        {name: value_of(value) for name, value in stored.items()},
        {name: value_of(text) for name, text in stored_texts.items()},
    )
    stored[_WHOLE_HASH] = np.array(whole.encode())
    _check_counts(stored)
    content = {name: _little_endian(array) for name, array in arrays.items()} | stored_texts
    with replacing(path) as temporary, open(temporary, "xb") as file:
        write_tree(file, _by_path(content), _by_path(stored))
    return digest


def _all_sha256(attributes: Mapping[str, object], texts: Mapping[str, object]) -> str:
    """Hash all attributes but this hash, the arrays' hash among them, and all texts."""
    own = {name: value for name, value in attributes.items() if name != _WHOLE_HASH}
    return hashlib.sha256(json.dumps([own, texts], sort_keys=True).encode()).hexdigest()


def _check_names(names: Collection[str]) -> None:
    """Raises: WeightsError naming the first that the reader would refuse"""
    for name in names:
        parts = name.split(".")
        if len(parts) > DEEPEST or not all(map(NAME.fullmatch, parts)):
            raise WeightsError(
                f"a tinyft file cannot hold the name {name!r:.160}: expected at most {DEEPEST} "
                f"parts with a dot between them, each of 1 to 100 of A-Z a-z 0-9 _ -; rename it"
            )
        above = [".".join(parts[:count]) for count in range(1, len(parts))]
        if clash := [parent for parent in above if parent in names]:
            raise WeightsError(
                f"a tinyft file cannot hold {name!r:.160} beside {clash[0]!r:.160}, which would be "
                f"an array and a folder at once; rename one of the tensors"
            )


def _check_counts(attributes: Collection[str]) -> None:
    """Raises: WeightsError naming the first group with more attributes than the reader takes"""
    for group, count in Counter(name.rpartition(".")[0] for name in attributes).items():
        if count > MOST_ATTRIBUTES:
            raise WeightsError(
                f"a tinyft file cannot hold {count} attributes in {group or 'its root'}: at most "
                f"{MOST_ATTRIBUTES}, the format's own four in the root among them; give some of "
                f"them a dotted name, as group.name, or make one text of them"
            )


def _by_path(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.replace(".", "/"): value for name, value in values.items()}


def _little_endian(array: np.ndarray) -> np.ndarray:
    """Order the array as the file holds it. (ascontiguousarray would make a scalar 1-d.)"""
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C")


def _stored_attribute(name: str, value: object) -> np.ndarray:
    """Encode a text, a boolean, or numbers as int64 or float64."""
    array = np.array(_to_be_kept(value)) if isinstance(value, str) else np.asarray(value)
    kind = array.dtype.kind
    if (kind not in "bif" and not isinstance(value, str)) or array.ndim > 1:
        raise WeightsError(
            f"{name} is {value!r:.80}: a file's attributes are texts, booleans, numbers of 64 bits "
            f"and rows of them"
        )
    if array.nbytes > _LARGEST_ATTRIBUTE:
        raise WeightsError(
            f"{name} is {'a text' if kind == 'S' else 'a row'} of {array.nbytes:,} bytes; a file's "
            f"attributes can have {_LARGEST_ATTRIBUTE:,}: shorten it"
        )
    return array if kind in "bS" else array.astype(f"<{kind}8")


def _stored_text(name: str, text: Text) -> np.ndarray:
    """Encode as UTF-8 of a fixed length; HDF5 has no length 0."""
    if isinstance(text, list) and len(text) > _MOST_TEXTS:
        raise WeightsError(
            f"{name} is a list of {len(text):,} texts; {_MOST_TEXTS:,} are allowed: join some"
        )
    encoded = _to_be_kept(text) if isinstance(text, str) else list(map(_to_be_kept, text))
    return np.array(encoded, dtype=None if len(encoded) else "S1")


def _to_be_kept(text: str) -> bytes:
    """Raises: WeightsError for a NUL, behind which HDF5 forgets the rest"""
    if "\0" in text:
        raise WeightsError(f"the text {text[:80]!r} has a NUL, which no file can keep: remove it")
    return _encoded(text)


def _encoded(text: str) -> bytes:
    """Encode as UTF-8; of a name that is no text, spell out the bytes."""
    return text.encode("utf-8", "backslashreplace")


@contextlib.contextmanager
def open_arrays(path: str | os.PathLike[str], format: str) -> Iterator[ArrayFile]:
    """Open a file of that format; its arrays can be read until the block ends.

    The whole file has passed the guard before the block begins.
    Raises: WeightsError for a hazard, damage, another format or a newer version; OSError if the
    system cannot open the file.
    """
    with damage_is_an_error(path), open(path, "rb") as file:
        try:
            stored, values = read_tree(file)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
        attributes = {_dotted(name): value for name, value in values.items()}
        _check_format(path, format, attributes)
        arrays: dict[str, LazyArray] = {}
        texts: dict[str, Text] = {}
        for name, item in stored.items():
            if item.dtype.kind == "S":
                text = item.read(file)
                if text.size > _MOST_TEXTS:
                    raise WeightsError(
                        f"{name} is a list of {text.size:,} texts; {_MOST_TEXTS:,} are allowed"
                    )
                texts[_dotted(name)] = text_of(text)
            else:
                read = partial(item.read, file)
                arrays[_dotted(name)] = LazyArray(item.shape, item.dtype.str, read)
        _check_whole(path, attributes, texts)
        yield ArrayFile(os.fspath(path), arrays, attributes, texts)


def read_arrays(
    path: str | os.PathLike[str], format: str
) -> tuple[dict[str, np.ndarray], dict[str, object], dict[str, Text]]:
    """Read arrays, attributes and texts of a file that write_arrays wrote, whoever sent it.

    Raises: as open_arrays, and WeightsError if the content does not have the stored hash.
    """
    with open_arrays(path, format) as content:
        return content.read_all(), content.attributes, content.texts


def _dotted(path: str) -> str:
    return path.replace("/", ".")


def _check_format(path: object, expected: str, attributes: Mapping[str, object]) -> None:
    kind, version = attributes.get("format"), attributes.get("format_version")
    if kind != expected:
        raise WeightsError(f"{path}: the format is {kind!r:.80}, expected {expected!r}")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        writer = attributes.get("created_by", "unknown")
        raise WeightsError(
            f"{path}: format version {version!r:.40}, written by {writer!s:.80}; this tinyft reads "
            f"up to {FORMAT_VERSION}; update tinyft"
        )


def _check_whole(path: object, attributes: dict[str, object], texts: dict[str, Text]) -> None:
    """Files of version 1 have no hash of their attributes and texts and are read as they are."""
    stored = attributes.get(_WHOLE_HASH)
    if stored is None and attributes["format_version"] == 1:
        return
    computed = _all_sha256(attributes, texts)
    if computed != stored:
        raise WeightsError(
            f"{path}: the sha256 of its attributes and texts is {computed}, the file says "
            f"{stored}; it is damaged or was edited; get it again"
        )
