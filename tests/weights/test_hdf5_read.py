"""Each hazard of an HDF5 file from a stranger, made with h5py, is refused by name."""

from __future__ import annotations

import struct

import h5py
import numpy as np
import pytest

from tinyft.errors import WeightsError
from tinyft.weights import read_arrays
from tinyft.weights.hdf5.index import lookup3


def external_link(file):
    file["w"] = h5py.ExternalLink("secret.h5", "/w")


def external_link_in_a_path(file):
    file.create_group("weights")["conv"] = h5py.ExternalLink("secret.h5", "/")


def soft_link_to_itself(file):
    file["w"] = h5py.SoftLink("/w")


def soft_link_loop(file):
    file.create_group("g")["loop"] = h5py.SoftLink("/g")


def hard_link_cycle(file):
    file.create_group("g")["up"] = file["/"]


def two_names(file):
    file["a"] = np.ones(3, "f4")
    file["b"] = file["a"]


def external_storage_relative(file):
    file.create_dataset("w", (4,), "u1", external=[("secret.bin", 0, 4)])


def external_storage_absolute(file):
    file.create_dataset("w", (4,), "u1", external=[("/etc/hostname", 0, 4)])


def virtual_dataset(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("secret.h5", "w", (4,))
    file.create_virtual_dataset("w", layout)


def third_party_filter(file):
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((4,))
    settings.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
    space = h5py.h5s.create_simple((4,))
    dataset = h5py.h5d.create(file.id, b"w", h5py.h5t.IEEE_F32LE, space, settings)
    dataset.write_direct_chunk((0,), bytes(16), 0)


def lzf(file):
    file.create_dataset("w", data=np.arange(1000, dtype="f4"), compression="lzf")


def huge_shape(file):
    file.create_dataset("w", (10**7, 10**7), "f4", chunks=(1000, 1000), compression="gzip")


def huge_contiguous_shape(file):
    file.create_dataset("w", (10**7, 10**3), "f4")


def gzip_bomb(file):
    file.create_dataset("w", data=np.zeros(10**7, "f4"), compression="gzip", compression_opts=9)


def partial_chunks(file):
    file.create_dataset("w", (100, 10), "f4", chunks=(10, 10))[:10] = 1


def never_written(file):
    file.create_dataset("w", (1000,), "f4")


def variable_length_text(file):
    file["w"] = ["a", "b"]


def references(file):
    file["a"] = np.ones(3, "f4")
    file.create_dataset("w", data=[file["a"].ref], dtype=h5py.ref_dtype)


def compound(file):
    file["w"] = np.zeros(3, [("a", "f4"), ("b", "i4")])


def enumeration(file):
    file.create_dataset("w", data=[0, 1], dtype=h5py.enum_dtype({"a": 0, "b": 1}))


def opaque(file):
    file.create_dataset("w", data=np.zeros(2, "V8"))


def committed_type(file):
    file["type"] = np.dtype("f4")


def null_dataspace(file):
    file["w"] = h5py.Empty("f4")


def too_deep(file):
    file.create_group("/".join(["g"] * 40))


def too_many(file):
    for i in range(10_001):
        file.create_group(f"g{i}")


def control_characters(file):
    file["w\n"] = np.ones(3, "f4")


def right_to_left(file):
    file["w\u202egnp"] = np.ones(3, "f4")


def undecodable_name(file):
    h5py.h5g.create(file.id, b"w\xff\xfe")


def dotted_name(file):
    file["a.b"] = np.ones(3, "f4")


def many_attributes(file):
    for i in range(100):
        file.attrs[f"a{i}"] = i


def variable_length_attribute(file):
    file.attrs["arch"] = "resnet18"


def big_attribute(file):
    file.attrs.create("a", np.zeros((10, 10)))


HAZARDS = {
    external_link: "leads elsewhere",
    external_link_in_a_path: "leads elsewhere",
    soft_link_to_itself: "leads elsewhere",
    soft_link_loop: "leads elsewhere",
    hard_link_cycle: "second name",
    two_names: "second name",
    external_storage_relative: "bytes from another file",
    external_storage_absolute: "bytes from another file",
    virtual_dataset: "virtual",
    third_party_filter: "packed by a filter",
    lzf: "packed by a filter",
    huge_shape: "packed by a filter",
    huge_contiguous_shape: "not wholly stored",
    gzip_bomb: "packed by a filter",
    partial_chunks: "stored chunked",
    never_written: "not wholly stored",
    variable_length_text: "expected numbers",
    references: "expected numbers",
    compound: "expected numbers",
    enumeration: "expected numbers",
    opaque: "expected numbers",
    committed_type: "neither a group nor an array",
    null_dataspace: "null dataspace",
    too_deep: "too deep",
    too_many: "too many or too deep",
    control_characters: "strange name",
    right_to_left: "strange name",
    undecodable_name: "strange name",
    dotted_name: "names in a tinyft file",
    many_attributes: "too many or too deep",
    variable_length_attribute: "fixed-length text",
    big_attribute: "fixed-length text",
}


@pytest.mark.parametrize("make", HAZARDS, ids=lambda make: make.__name__)
def test_hazards(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(b"secret")
    with h5py.File("secret.h5", "w") as secret:
        secret["w"] = np.ones(4, "f4")
    monkeypatch.setattr(h5py.get_config(), "track_order", True)
    with h5py.File("hostile.h5", "w", track_order=True) as file:
        make(file)
    with pytest.raises(WeightsError, match=HAZARDS[make]):
        read_arrays("hostile.h5", "tinyft-weights")


def test_a_truncated_file(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["w"] = np.ones(5000, "f4")
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(WeightsError, match="shorter than it says"):
        read_arrays(path, "tinyft-weights")


def test_an_index_that_would_take_minutes_to_check(tmp_path):
    root = b"OHDR" + struct.pack("<BBI", 2, 2, 9 << 20) + bytes(9 << 20) + bytes(4)
    sizes = (2, 8, 8, 0, 0, 2**64 - 1, 48 + len(root), 48)
    head = b"\x89HDF\r\n\x1a\n" + struct.pack("<BBBBQQQQ", *sizes)
    path = tmp_path / "a.h5"
    path.write_bytes(head + struct.pack("<I", lookup3(head)) + root)
    with pytest.raises(WeightsError, match="the index of the file is too large"):
        read_arrays(path, "tinyft-weights")
