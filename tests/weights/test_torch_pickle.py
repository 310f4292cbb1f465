"""torch checkpoints: containers, views, dtypes, and lies about sizes."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from torch_assembler import (
    Call,
    Global,
    Persistent,
    legacy_bytes,
    state_dict_legacy,
    state_dict_zip,
    storage,
    tensor,
    tensor_of,
    whole,
    zip_bytes,
)

from tinyft.errors import WeightsError
from tinyft.weights.torch.checkpoint import ZipCheckpoint, open_checkpoint
from tinyft.weights.torch.tensors import Inert

TWELVE = np.arange(12, dtype="<f4")


def read(data: bytes):
    """Each tensor of a checkpoint as an array, other values as they are."""
    checkpoint = open_checkpoint(io.BytesIO(data))
    return {
        name: checkpoint.lazy(value).read() if hasattr(value, "strides") else value
        for name, value in checkpoint.content.items()
    }


def view_of_twelve(offset, shape, strides, count=12):
    content = {"w": tensor(storage("7", "Float", count), offset, shape, strides)}
    return zip_bytes(content, {"7": TWELVE.tobytes()})


@pytest.mark.parametrize("make", [state_dict_zip, state_dict_legacy])
@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2", "<i8", "<i4", "|u1"])
def test_honest_files(make, dtype):
    arrays = {"a": np.arange(6).reshape(2, 3).astype(dtype), "b": np.ones((), dtype)}
    found = read(make(arrays))
    assert found["a"].dtype == dtype and found["b"].shape == ()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "expected"),
    [
        (0, (4, 3), (1, 4), TWELVE.reshape(3, 4).T),
        (2, (3, 2), (4, 1), TWELVE.reshape(3, 4)[:, 2:]),
        (5, (4,), (0,), np.full(4, 5.0)),
        (0, (1, 2, 2, 3), (12, 1, 6, 2), TWELVE.reshape(1, 2, 3, 2).transpose(0, 3, 1, 2)),
        (11, (), (), np.float32(11)),
        (0, (0, 5), (5, 1), np.empty((0, 5))),
    ],
    ids=["transposed", "sliced", "expanded", "channels last", "scalar", "empty"],
)
def test_views(offset, shape, strides, expected):
    found = read(view_of_twelve(offset, shape, strides))["w"]
    assert found.flags.c_contiguous and found.flags.owndata and found.shape == expected.shape
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "message"),
    [
        (1, (12,), (1,), "reaches element 12 of a storage of 12"),
        (0, (4, 4), (4, 1), "reaches element 15"),
        (-1, (4,), (1,), "no count"),
        (0, (4,), (-1,), "no count"),
        (0, (2**63 - 1,), (2**62,), "reaches element"),
        (0, (2, 2), (1,), "more sizes than strides"),
        (0, (1 << 40,), (0,), "repeats a storage of 12"),
        (0, (1,) * 9, (1,) * 9, "no count"),
        (0, (True,), (1,), "no count"),
    ],
)
def test_views_outside_their_storage(offset, shape, strides, message):
    with pytest.raises(WeightsError, match=message):
        read(view_of_twelve(offset, shape, strides))


def test_storage_shorter_than_promised():
    with pytest.raises(WeightsError, match="promises 4,000,000,000 bytes and has 48"):
        read(view_of_twelve(0, (12,), (1,), count=10**9))


def test_bfloat16_is_exact():
    values = np.array([1.0, -2.5, 3e38, 0.0078125], "<f4")
    raw = (values.view("<u4") >> 16).astype("<u2")
    content = {"w": tensor(storage("0", "BFloat16", 4), 0, (4,), (1,))}
    found = read(zip_bytes(content, {"0": raw.tobytes()}))["w"]
    assert np.array_equal(found, (raw.astype("<u4") << 16).view("<f4"))
    assert found[1] == -2.5


@pytest.mark.parametrize(
    "data",
    [
        zip_bytes({"w": tensor_of("0", TWELVE)}, {"0": TWELVE.astype(">f4").tobytes()},
                  byteorder="big"),
        legacy_bytes({"w": tensor_of("0", TWELVE)}, {"0": TWELVE.astype(">f4")},
                     little_endian=False),
    ],
)  # fmt: skip
def test_big_endian(data):
    found = read(data)["w"]
    assert found.dtype.isnative and np.array_equal(found, TWELVE)


def test_the_root_may_have_any_name_and_the_members_may_be_deflated():
    data = state_dict_zip({"w": TWELVE}, root="a.b.c", compression=zipfile.ZIP_DEFLATED)
    assert np.array_equal(read(data)["w"], TWELVE)


@pytest.mark.slow
def test_a_member_that_unpacks_to_more_than_it_promises_costs_no_memory():
    zeros = bytes(200 << 20)
    data = bytearray(zip_bytes(zeros, {}, compression=zipfile.ZIP_DEFLATED))
    directory = data.index(b"PK\1\2")
    data[directory + 24 : directory + 28] = struct.pack("<I", 1000)  # what data.pkl unpacks to
    del zeros
    tracemalloc.start()
    with pytest.raises(WeightsError, match="another size than it promises"):
        read(bytes(data))
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(("method", "number"), [(zipfile.ZIP_BZIP2, 12), (zipfile.ZIP_LZMA, 14)])
def test_other_packings_of_zip_are_refused(method, number):
    with pytest.raises(WeightsError, match=f"packed by method {number} of zip"):
        read(state_dict_zip({"w": TWELVE}, compression=method))


def test_a_storage_of_many_small_tensors_is_read_once(monkeypatch):
    parts = {str(i): tensor(storage("0", "Float", 12), i, (1,), (1,)) for i in range(12)}
    data, reads = zip_bytes(parts, {"0": TWELVE.tobytes()}), []
    original = ZipCheckpoint.read
    monkeypatch.setattr(ZipCheckpoint, "read", lambda *args: reads.append(args) or original(*args))
    assert [found[0] for found in read(data).values()] == list(range(12))
    assert len(reads) == 1


def test_wrong_checksums_are_what_torch_may_write():
    data = state_dict_zip({"w": TWELVE})
    for member in ("data/0", "data.pkl"):
        data = with_wrong_checksum(data, member)
    assert np.array_equal(read(data)["w"], TWELVE)


def test_one_wrong_checksum_is_damage():
    with pytest.raises(WeightsError, match="storage 0 does not have its checksum"):
        read(with_wrong_checksum(state_dict_zip({"w": TWELVE}), "data/0"))


def with_wrong_checksum(data, member):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        checksum = struct.pack("<I", archive.getinfo(f"archive/{member}").CRC)
    assert data.count(checksum) == 2
    return data.replace(checksum, b"\1\2\3\4")


def test_a_member_outside_the_file_is_refused():
    data = bytearray(state_dict_zip({"w": TWELVE}))
    directory = data.index(b"PK\1\2")
    data[directory + 42 : directory + 46] = b"\xff\xff\xff\x7f"  # where the first member begins
    with pytest.raises(WeightsError, match="claims to lie outside the file"):
        read(bytes(data))


def test_old_and_wrapped_rebuilders():
    stored = storage("0", "Float", 12)
    old = Call("torch._utils._rebuild_tensor", (stored, 0, (12,), (1,)))
    parameter = Call(
        "torch._utils._rebuild_parameter", (old, True, Call("collections.OrderedDict", ()))
    )
    found = read(zip_bytes({"a": old, "b": parameter}, {"0": TWELVE.tobytes()}))
    assert np.array_equal(found["a"], TWELVE) and np.array_equal(found["b"], TWELVE)


def test_shared_storage_gives_independent_arrays():
    view = tensor(storage("0", "Float", 12), 0, (12,), (1,))
    found = read(zip_bytes({"a": view, "b": view}, {"0": TWELVE.tobytes()}))
    found["a"][:] = 0
    assert np.array_equal(found["b"], TWELVE)


def test_signs_hidden_in_metadata_are_not_overlooked():
    negative = tensor(storage("0", "Float", 12), 0, (12,), (1,), {"neg": True})
    found = read(zip_bytes({"w": negative}, {"0": TWELVE.tobytes()}))["w"]
    assert isinstance(found, Inert) and "negative or conjugate" in found.name


def test_unreadable_dtypes_are_named():
    float8 = Call(
        "torch._utils._rebuild_tensor_v3",
        (storage("0", "storage.Untyped", 12), 0, (12,), (1,), False,
         Call("collections.OrderedDict", ()), Global("torch.float8_e5m2")),
    )  # fmt: skip
    found = read(zip_bytes({"w": float8}, {"0": b"\0" * 12}))
    assert found["w"] == Inert("tensor of dtype torch.float8_e5m2")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zip_bytes({}, {}, extra={"archive/constants.pkl": b""}), "TorchScript"),
        (zip_bytes({}, {}, extra={"other/data.pkl": b""}), "has 2"),
        (zip_bytes({}, {}, byteorder="middle"), "byte order"),
        (zip_bytes({"w": tensor_of("0", TWELVE)}, {}), "missing from the file"),
        (zip_bytes(b"\x80\x02}" + b"N0" * (9 << 20) + b".", {}), "at most"),
        (zip_bytes({}, {"0": bytes(200 << 20)}, compression=zipfile.ZIP_DEFLATED), "unpacks to"),
        (state_dict_zip({"w": TWELVE})[:-30], "damaged or cut off"),
        (b"\0" * 257 + b"ustar\x0000", "tar checkpoint of torch 0.1.*0.4"),
        (b"hello, world", "no torch checkpoint"),
        (whole({"a": 1}), "no torch checkpoint; save it with torch.save"),
        (legacy_bytes({"w": tensor_of("0", TWELVE)}, {"0": TWELVE}, counts={"0": 9}), "damaged"),
        (legacy_bytes({"w": tensor_of("0", TWELVE)}, {}), "missing from the file"),
        (legacy_bytes({}, {"0": TWELVE}), "does not fit the pickle"),
        (state_dict_legacy({"w": TWELVE})[:-8], "cut off"),
        (legacy_bytes({"w": Persistent(("module", "Net", "net.py", "code"))}, {}), "pickled model"),
        (legacy_bytes({"w": tensor_of("0", TWELVE, ("0", 0, 12))}, {"0": TWELVE}), "torch 0.1"),
        (zip_bytes({"w": Persistent(("storage",))}, {}), "no storage"),
        (zip_bytes({"w": tensor_of("0", TWELVE)}, {"0": b""}, root="x"), "has 0"),
    ],
)  # fmt: skip
def test_refusals(data, message):
    with pytest.raises(WeightsError, match=message):
        read(data)


def test_a_quantised_storage_is_named():
    content = {"w": tensor(storage("0", "QInt8", 12), 0, (12,), (1,))}
    with pytest.raises(WeightsError, match=r"torch\.QInt8Storage.*convert it to float32"):
        read(zip_bytes(content, {"0": bytes(12)}))


def test_two_members_of_one_name():
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = zip_bytes({}, {}, extra={"archive/version": b"3"})
    with pytest.raises(WeightsError, match="same name"):
        read(data)
