"""The file that weights and checkpoints share: round trips, hash, atomic writing."""

from __future__ import annotations

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from tinyft.errors import WeightsError
from tinyft.weights import content_sha256, read_arrays, replacing, write_arrays
from tinyft.weights.hdf5 import index, tree

ARRAYS = {
    "weights.conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "weights.conv.bias": np.ones(2, np.float16),
    "optimizer.step": np.array(7, np.int64),
    "pictures": np.arange(4, dtype=np.uint8),
    "nothing": np.empty((0, 3), np.float64),
}


def test_round_trip(tmp_path):
    path = tmp_path / "a.h5"
    attributes = {"arch": "résnet", "n": 3, "rate": 0.5, "flag": True, "empty": "",
                  "preprocess.mean": (0.5, 0.25, 1.0)}  # fmt: skip
    texts = {"learner": '{"é": 1}' * 20_000, "classes": ["a", "zèbre"], "none": []}
    digest = write_arrays(path, "tinyft-checkpoint", ARRAYS, attributes, texts)
    arrays, found, found_texts = read_arrays(path, "tinyft-checkpoint")
    assert set(arrays) == set(ARRAYS) and found_texts == texts
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape
        assert np.array_equal(arrays[name], array)
    assert {name: found[name] for name in attributes} == attributes
    assert found["content_sha256"] == digest == content_sha256(ARRAYS)


def test_as_many_attributes_are_written_as_are_read(tmp_path):
    """The root has four of its own beside the caller's."""
    path, most = tmp_path / "a.h5", {f"a{i}": i for i in range(60)}
    grouped = {f"group.a{i}": i for i in range(64)}
    write_arrays(path, "x", ARRAYS, {**most, **grouped})
    assert read_arrays(path, "x")[1].items() >= {**most, **grouped}.items()
    for one_more, where in (("a60", "65 attributes in its root"), ("group.a64", "65 .* in group:")):
        with pytest.raises(WeightsError, match=f"{where}.* at most 64.* dotted name"):
            write_arrays(path, "x", ARRAYS, {**most, **grouped, one_more: 0})
    assert read_arrays(path, "x")[1].items() >= most.items()  # the old file is untouched


def test_the_file_is_plain_hdf5(tmp_path):
    write_arrays(tmp_path / "a.h5", "x", ARRAYS)
    with h5py.File(tmp_path / "a.h5") as file:
        dataset = file["weights/conv/weight"]
        assert dataset.chunks is None and dataset.dtype.str == "<f4"
        assert list(file["weights/conv"]) == ["weight", "bias"]  # as written, not alphabetically


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("a.h5", "b.h5"):
        write_arrays(tmp_path / name, "x", ARRAYS, {"n": 1}, {"t": "text"})
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_arrays_in_any_layout_and_order_are_stored_alike(tmp_path):
    assert content_sha256(dict(reversed(ARRAYS.items()))) == content_sha256(ARRAYS)
    transposed = np.asfortranarray(ARRAYS["weights.conv.weight"])
    assert content_sha256({"w": transposed}) == content_sha256({"w": transposed.copy("C")})
    write_arrays(tmp_path / "a.h5", "x", {"w": transposed.astype(">f4")})
    assert np.array_equal(read_arrays(tmp_path / "a.h5", "x")[0]["w"], transposed)


def test_the_hash_depends_on_name_dtype_shape_and_numbers():
    base = {"a": np.zeros(4, np.float32)}
    others = [
        {"b": base["a"]},
        {"\ud800": base["a"]},  # no text, but safetensors and torch files may name a tensor so
        {"a": np.zeros(4, np.int32)},
        {"a": base["a"].reshape(2, 2)},
        {"a": np.ones(4, np.float32)},
    ]
    assert len({content_sha256(arrays) for arrays in (base, *others)}) == 6


def test_a_file_that_h5py_has_grown_is_read_and_keeps_its_identity(tmp_path):
    """With more than eight links h5py turns a group into a heap and a tree."""
    arrays = {f"w.layer{i}": np.full((2, i), i, np.float32) for i in range(200)}
    digest = write_arrays(tmp_path / "a.h5", "x", {}, {"content_sha256": content_sha256(arrays)})
    with h5py.File(tmp_path / "a.h5", "a") as file:
        group = file.create_group("w", track_order=True)
        for name, array in arrays.items():
            group[name.removeprefix("w.")] = array
    found, attributes, _ = read_arrays(tmp_path / "a.h5", "x")
    assert list(found) == list(arrays) and attributes["content_sha256"] != digest
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


@pytest.mark.parametrize("change", ["attribute", "text", "classes", "name", "hash", "version"])
def test_a_changed_attribute_or_text_is_refused(change, tmp_path):
    texts = {"state": '{"step": 3}', "classes": ["cat", "dog"]}
    write_arrays(tmp_path / "a.h5", "x", ARRAYS, {"count": 3}, texts)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        if change == "attribute":
            file.attrs["count"] = 2
        elif change == "text":
            file["state"][()] = b'{"step": 2}'
        elif change == "classes":
            file["classes"][0] = b"bat"
        elif change == "name":
            file.attrs["cound"] = 3
            del file.attrs["count"]
        elif change == "hash":
            del file.attrs["all_sha256"]
        else:
            file.attrs["format_version"] = 1
    with pytest.raises(WeightsError, match=r"a\.h5: the sha256 of its attributes and texts is "):
        read_arrays(tmp_path / "a.h5", "x")


def test_a_file_without_that_hash_is_read_as_it_is(tmp_path):
    """Version 1 had none."""
    write_arrays(tmp_path / "a.h5", "x", ARRAYS, {"count": 3}, {"text": "x"})
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file.attrs["all_sha256"]
        file.attrs["format_version"] = 1
        file.attrs["count"] = 2
    arrays, attributes, texts = read_arrays(tmp_path / "a.h5", "x")
    assert (set(arrays), attributes["count"], texts) == (set(ARRAYS), 2, {"text": "x"})


def test_an_edited_file_is_refused(tmp_path):
    write_arrays(tmp_path / "a.h5", "x", ARRAYS)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["weights/conv/weight"][0, 0, 0, 0] = 99
    with pytest.raises(WeightsError, match=r"\.h5: the arrays' sha256 is .* the file says"):
        read_arrays(tmp_path / "a.h5", "x")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.h5"
    path.write_bytes(b"old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be opened there")
def test_a_new_name_is_on_the_disk_before_anything_relies_on_it(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.fstat(fd).st_ino), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("renamed"), replace(*names)))
    with replacing(tmp_path / "a.h5") as temporary:
        temporary.write_bytes(b"whole")
    assert done == [(tmp_path / "a.h5").stat().st_ino, "renamed", tmp_path.stat().st_ino]


def test_an_unknown_dtype_is_refused_before_writing(tmp_path):
    with pytest.raises(WeightsError, match="w is complex64"):
        write_arrays(tmp_path / "a.h5", "x", {"w": np.ones(2, np.complex64)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    ["head.my layer", "head.\x1b[31mred", "head.a\nb", "head.a\0b", "head." + "x" * 101, "head.a/b",
     "head.", "head..x", "head./../../x", "head.\ud800", "head" + ".a" * 12, "head.a.b"],
)  # fmt: skip
def test_a_name_that_no_reader_would_take_is_refused_before_writing(name, tmp_path):
    with pytest.raises(WeightsError, match=r"cannot hold .*'head.*rename"):
        write_arrays(tmp_path / "a.h5", "x", {name: np.ones(2), "head.a": np.ones(2)})
    assert not list(tmp_path.iterdir())


def test_another_format_and_a_newer_version(tmp_path):
    path = tmp_path / "a.h5"
    write_arrays(path, "tinyft-weights", ARRAYS, {"created_by": "tinyft 9.9"})
    with pytest.raises(WeightsError, match="format is 'tinyft-weights', expected 'other'"):
        read_arrays(path, "other")
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 3
    with pytest.raises(WeightsError, match=r"version 3, written by tinyft 9\.9.*update tinyft"):
        read_arrays(path, "tinyft-weights")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "none.h5", "x")


FULL = """
import gc, os, resource, sys
import numpy as np
from tinyft.weights import write_arrays

arrays = {f"part{i}.x": np.ones(20_000, np.float32) for i in range(20)}
write_arrays("a.h5", "t", {"x": np.zeros(3, np.float32)})
resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, resource.RLIM_INFINITY))
for _ in range(3):
    try:
        write_arrays("a.h5", "t", arrays, {"group.attribute": 1}, {"text": "t"})
    except OSError as error:
        print(error.strerror, error.filename)
    gc.collect()
print(os.listdir())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as Unix does")
def test_a_disk_that_takes_no_more_is_an_error_and_no_crash(tmp_path):
    """In a process of its own, since the limit is for all of it."""
    code = [sys.executable, "-W", "error", "-c", FULL]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(code, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [*["File too large a.h5"] * 3, "['a.h5']"]
    assert read_arrays(tmp_path / "a.h5", "t")[0]["x"].shape == (3,)  # the old one is whole


def test_a_text_that_would_not_come_back_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    with pytest.raises(WeightsError, match=r"licence is a text of 70,000 bytes; .*shorten it"):
        write_arrays(path, "tinyft-weights", ARRAYS, {"licence": "x" * 70_000})
    with pytest.raises(WeightsError, match="has a NUL, which no file can keep"):
        write_arrays(path, "tinyft-weights", ARRAYS, {}, {"classes": ["a\0", "b"]})
    assert not path.exists()


@pytest.mark.parametrize(
    "arrays, attributes, texts, words",
    [
        ({"w": np.ones((1,) * 33)}, {}, {}, "w has 33 dimensions"),
        ({}, {"mean": tuple(range(9000))}, {}, "mean is a row of 72,000 bytes; .*shorten it"),
        ({}, {"mean": ((1.0, 2.0), (3.0, 4.0))}, {}, "mean is .*rows of them"),
        ({}, {"names": ("a", "b")}, {}, "names is .*texts, booleans"),
        ({}, {"count": 2**64}, {}, "count is .*64 bits"),
        ({}, {}, {"classes": ["x"] * 100_001}, "classes is a list of 100,001 texts"),
    ],
)
def test_what_no_reader_would_take_is_refused(arrays, attributes, texts, words, tmp_path):
    with pytest.raises(WeightsError, match=words):
        write_arrays(tmp_path / "a.h5", "x", arrays, attributes, texts)
    assert not list(tmp_path.iterdir())


def test_an_index_is_written_that_is_read_and_none_larger(tmp_path, monkeypatch):
    monkeypatch.setattr(tree, "_MOST_OBJECTS", 20)
    for module in (tree, index):
        monkeypatch.setattr(module, "MOST_METADATA", 70_000)
    path = tmp_path / "a.h5"
    arrays = {f"w{i}": np.ones(()) for i in range(18)} | {"d": np.ones((1,) * 32)}
    most = {"mean": tuple(range(7500)), "none": (), "flags": (True, False)}
    write_arrays(path, "x", arrays, most)
    found, attributes, _ = read_arrays(path, "x")
    assert found.keys() == arrays.keys() and attributes.items() >= most.items()
    for one_more in ({"g.w": np.ones(())}, {"w18": np.ones(())}):
        with pytest.raises(WeightsError, match=r"cannot hold 2[12] arrays and groups"):
            write_arrays(path, "x", arrays | one_more, most)
    with pytest.raises(WeightsError, match=r"bytes of names and attributes.* 70,000"):
        write_arrays(path, "x", arrays, most | {"text": "x" * 9000})
    assert read_arrays(path, "x")[1].items() >= most.items()  # the old file is untouched
