"""safetensors: reading, writing, and headers that lie."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest

from tinyft.errors import WeightsError
from tinyft.weights.safetensors import open_safetensors, write_safetensors

FOUR = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def file_of(header, data=b"", length=None) -> io.BytesIO:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return io.BytesIO(struct.pack("<Q", len(text) if length is None else length) + text + data)


def test_round_trip(tmp_path):
    arrays = {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
        "half": np.ones(3, np.float16),
        "scalar": np.array(5, np.int64),
        "empty": np.empty((0, 3), np.float32),
        "flags": np.array([True, False]),
    }
    path = tmp_path / "a.safetensors"
    write_safetensors(path, arrays, {"format": "pt"})
    with open(path, "rb") as file:
        lazy, metadata = open_safetensors(file)
        found = {name: item.read() for name, item in lazy.items()}
    assert metadata == {"format": "pt"} and list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert np.array_equal(found[name], array) and found[name].flags.writeable
    raw = path.read_bytes()
    assert struct.unpack("<Q", raw[:8])[0] % 8 == 0


def test_bfloat16():
    header = {"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    lazy, _ = open_safetensors(file_of(header, struct.pack("<HH", 0x3F80, 0xC020)))
    assert lazy["w"].read().tolist() == [1.0, -2.5]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (io.BytesIO(b"\1\2\3"), "too few"),
        (file_of({}, length=2**40), "header claims"),
        (file_of(b"{oops"), "no JSON"),
        (file_of(b"[" * 100_000), "no JSON"),
        (file_of(b"[]"), "no JSON object"),
        (file_of(b'{"w": 1, "w": 1}'), "same name twice"),
        (file_of({"w": FOUR, "__metadata__": {"a": 1}}, bytes(16)), "not text to text"),
        (file_of({"w": {**FOUR, "more": 1}}, bytes(16)), "expected dtype, shape"),
        (file_of({"w": {**FOUR, "shape": [-4]}}, bytes(16)), "no counts"),
        (file_of({"w": {**FOUR, "shape": [4.0]}}, bytes(16)), "no counts"),
        (file_of({"w": {**FOUR, "shape": [2**62, 2**62]}}, bytes(16)), "needs"),
        (file_of({"w": {**FOUR, "shape": [5]}}, bytes(16)), "needs 20 bytes, the header gives 16"),
        (file_of({"w": {**FOUR, "shape": [3]}}, bytes(16)), "needs 12 bytes, the header gives 16"),
        (file_of({"w": {**FOUR, "dtype": "F8_E5M2"}}, bytes(16)), "convert it to F32"),
        (file_of({"w": {**FOUR, "dtype": []}}, bytes(16)), "convert it to F32"),
        (file_of({"w": {**FOUR, "data_offsets": [16, 0]}}, bytes(16)), "the header gives -16"),
        (file_of({"w": FOUR}, bytes(8)), "cut off"),
        (file_of({"w": FOUR}, bytes(20)), "cut off"),
        (file_of({"w": {**FOUR, "data_offsets": [4, 20]}}, bytes(20)), "overlap or a hole"),
        (file_of({"a": FOUR, "b": {**FOUR, "data_offsets": [8, 24]}}, bytes(24)), "overlap"),
    ],
)
def test_lies(file, message):
    with pytest.raises(WeightsError, match=message):
        open_safetensors(file)


def test_a_dtype_without_a_name_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(WeightsError, match="no dtype for complex64"):
        write_safetensors(path, {"w": np.ones(2, np.complex64)}, {})
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
