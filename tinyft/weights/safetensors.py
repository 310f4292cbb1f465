"""Reads and writes safetensors files: a JSON header, then the arrays, nothing to execute.

::

    8 bytes          length of the header, little-endian
    header           {"conv1.weight": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]},
                      ..., "__metadata__": {text: text}}
    arrays           C-contiguous and little-endian, without holes or overlaps

Source: github.com/huggingface/safetensors, README (Format), version 0.8.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from functools import partial
from typing import BinaryIO

import numpy as np

from tinyft.errors import WeightsError
from tinyft.weights.files import LazyArray, replacing
from tinyft.weights.torch.tensors import are_counts, bfloat16_to_float32

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "bfloat16",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8  # the arrays begin at a multiple of this
# ResNet-152's header has some 90 kB (the library itself allows 100 MB).
_LARGEST_HEADER = 16 << 20


def is_safetensors(head: bytes) -> bool:
    """Tell whether a file's first bytes are a length and the beginning of a JSON object."""
    return head[8:9] == b"{"


def open_safetensors(file: BinaryIO) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """Find the arrays of a file opened for reading bytes, not read yet, and its metadata.

    Raises: WeightsError for a header that is malformed, has duplicate names, or whose entries do
    not cover the data exactly.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise WeightsError(f"the file has {size} bytes, too few for a safetensors file")
    (length,) = _LENGTH.unpack(head)
    start = _LENGTH.size + length
    if length > _LARGEST_HEADER or start > size:
        raise WeightsError(
            f"the header claims {length:,} bytes in a file of {size:,}; it is damaged or no "
            f"safetensors file"
        )
    try:
        header = json.loads(
            file.read(length).decode("utf-8"), object_pairs_hook=_without_duplicates
        )
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"the safetensors header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise WeightsError("the safetensors header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise WeightsError("the safetensors metadata is not text to text; the file is damaged")
    entries = {name: _entry(name, value) for name, value in header.items()}
    _check_cover(entries, size - start)
    arrays = {
        name: LazyArray(
            shape, dtype, partial(_read, file, start + begin, end - begin, shape, dtype)
        )
        for name, (dtype, shape, begin, end) in entries.items()
    }
    return arrays, metadata


_Entry = tuple[str, tuple[int, ...], int, int]


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse equal names, of which one JSON parser keeps the last, another the first."""
    header = dict(pairs)
    if len(header) != len(pairs):
        raise WeightsError("the safetensors header has the same name twice; the file is refused")
    return header


def _entry(name: str, value: object) -> _Entry:
    """Return one entry's dtype, shape and place, if they agree with one another."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"{name[:80]}: expected dtype, shape and data_offsets; file damaged")
    lists = value["shape"], value["data_offsets"]
    shape, offsets = (tuple(each) if isinstance(each, list) else None for each in lists)
    if not (are_counts(shape) and are_counts(offsets) and len(offsets) == 2):
        raise WeightsError(f"{name[:80]}: shape or data_offsets are no counts; file damaged")
    dtype = _DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise WeightsError(
            f"{name[:80]}: the dtype {value['dtype']!r:.40} is not read; convert it to F32"
        )
    begin, end = offsets
    needed = math.prod(shape) * (2 if dtype == "bfloat16" else np.dtype(dtype).itemsize)
    if end - begin != needed:
        raise WeightsError(
            f"{name[:80]}: shape {value['shape']!r:.80} of {value['dtype']} needs {needed:,} "
            f"bytes, the header gives {end - begin:,}; the file is damaged"
        )
    return dtype, shape, begin, end


def _check_cover(entries: Mapping[str, _Entry], size: int) -> None:
    """Check that the entries follow one another from the first byte of the data to the last."""
    position = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            raise WeightsError(
                f"{name[:80]} begins at byte {begin:,} of the data, {position:,} was expected "
                f"(an overlap or a hole); the file is damaged"
            )
        position = end
    if position != size:
        raise WeightsError(f"the tensors take {position:,} bytes, the file has {size:,}; cut off?")


def _read(
    file: BinaryIO, begin: int, length: int, shape: tuple[int, ...], dtype: str
) -> np.ndarray:
    file.seek(begin)
    raw = file.read(length)
    if dtype == "bfloat16":
        return bfloat16_to_float32(np.frombuffer(raw, "<u2").reshape(shape))
    stored = np.dtype(dtype)
    return np.frombuffer(raw, stored).reshape(shape).astype(stored.newbyteorder("="))


def write_safetensors(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write arrays under their names, in their order; an existing file is replaced whole.

    Raises: WeightsError for a dtype that the format lacks; OSError if the disk is full.
    """
    names = {np.dtype(dtype): name for name, dtype in _DTYPES.items() if dtype != "bfloat16"}
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, array in arrays.items():
        dtype = names.get(array.dtype.newbyteorder("<"))
        if dtype is None:
            raise WeightsError(f"{name}: safetensors has no dtype for {array.dtype}")
        offsets = [position, position + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        position += array.nbytes
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    with replacing(path) as temporary, open(temporary, "xb") as file:
        file.write(_LENGTH.pack(len(text)) + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
