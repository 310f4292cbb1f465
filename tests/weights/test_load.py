"""load_weights and save_weights, over each format and nesting."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from torch_assembler import (
    MAGIC_NUMBER,
    Global,
    state_dict_legacy,
    state_dict_zip,
    storage,
    tensor,
    write,
)

from tinyft.errors import WeightsError
from tinyft.weights import (
    Preprocess,
    detect_format,
    export_safetensors,
    load_weights,
    read_arrays,
    save_weights,
    write_arrays,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "torch_digests.json"


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == np.float32 and found[name].flags.c_contiguous
        assert np.array_equal(found[name], array), name


def test_native_round_trip(weights, tmp_path):
    path = tmp_path / "a.tinyft.h5"
    learner = {"learner": json.dumps({"head": "linear"})}
    digest = save_weights(path, replace(weights, extra=learner))
    found = load_weights(path)
    assert_same(found.arrays, weights.arrays)
    assert found.arch == weights.arch and found.classes == weights.classes
    assert found.preprocess == weights.preprocess and found.extra == learner
    assert found.num_classes == 10 and found.report.fits
    assert found.metadata["licence"] == "MIT" and found.metadata["content_sha256"] == digest
    assert found.metadata["created_by"].startswith("tinyft")
    assert save_weights(tmp_path / "b.h5", found) == digest


def test_half_precision_is_for_kernels_and_matrices_only(weights, tmp_path):
    save_weights(tmp_path / "a.h5", weights, half=True)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["weights/conv1/weight"].dtype == file["weights/fc/weight"].dtype == "<f2"
        assert file["weights/bn1/running_var"].dtype == file["weights/fc/bias"].dtype == "<f4"
    found = load_weights(tmp_path / "a.h5").arrays
    assert found["conv1.weight"].dtype == np.float32
    np.testing.assert_allclose(found["conv1.weight"], weights.arrays["conv1.weight"], rtol=1e-3)


def test_transposed_views_are_saved_in_the_published_shape(weights, tmp_path):
    kernel = weights.arrays["conv1.weight"]
    view = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1)
    save_weights(
        tmp_path / "a.h5", replace(weights, arrays=weights.arrays | {"conv1.weight": view})
    )
    assert_same(load_weights(tmp_path / "a.h5").arrays, weights.arrays)


def test_a_fine_tuned_head_comes_back(weights, tmp_path):
    body = {n: a for n, a in weights.arrays.items() if not n.startswith("fc.")}
    head = {
        "head.bn1.weight": np.ones(64, np.float32),
        "head.linear2.bias": np.ones(10, np.float32),
    }
    tuned = replace(weights, arrays=body | head, metadata={"head": "fastai"})
    save_weights(tmp_path / "a.h5", tuned)
    found = load_weights(tmp_path / "a.h5")
    assert_same(found.arrays, body | head)
    assert found.num_classes == 10 and found.metadata["head"] == "fastai"


WRAPPINGS = {
    "bare": lambda state: state,
    "imagenet example": lambda state: {
        "epoch": 89, "arch": "resnet", "optimizer": {"state": {}},
        "state_dict": {f"module.{name}": value for name, value in state.items()},
    },
    "lightning": lambda state: {
        "state_dict": {f"model.{name}": value for name, value in state.items()},
        "hyper_parameters": Global("argparse.Namespace"),
    },
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "cifar": lambda state: {name.replace("fc.", "linear."): v for name, v in state.items()},
}  # fmt: skip


@pytest.mark.parametrize("make", [state_dict_zip, state_dict_legacy])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_torch_files(make, wrapping, arrays, tmp_path):
    tracked = {**arrays, "bn1.num_batches_tracked": np.array(3, "<i8")}
    path = write(tmp_path, "a.pth.tar", make(tracked, WRAPPINGS[wrapping]))
    found = load_weights(path)
    assert_same(found.arrays, arrays)
    assert found.arch == "cifar_resnet20" and found.preprocess.assumed and found.classes is None
    assert found.metadata["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "preprocessing assumed: 32/32" in str(found.report)


def test_newer_pickles_in_the_old_container(arrays, tmp_path):
    """Protocol 3 spells a state dict as protocol 2 does; 4 and 5 have opcodes of their own."""
    third = state_dict_legacy(arrays).replace(b"\x80\x02", b"\x80\x03", 4)
    assert_same(load_weights(write(tmp_path, "a.pth", third)).arrays, arrays)
    for protocol in (4, 5):
        path = write(tmp_path, "b.pth", pickle.dumps(MAGIC_NUMBER, protocol=protocol))
        with pytest.raises(WeightsError, match=r"opcode FRAME.*save it again with torch\.save"):
            load_weights(path)


def test_safetensors_round_trip(weights, tmp_path):
    head = {"head.linear.weight": weights.arrays["fc.weight"]}
    head["head.linear.bias"] = weights.arrays["fc.bias"]
    body = {n: a for n, a in weights.arrays.items() if not n.startswith("fc.")}
    export_safetensors(replace(weights, arrays=body | head), tmp_path / "a.safetensors")
    assert_same(load_weights(tmp_path / "a.safetensors").arrays, weights.arrays)


def test_float64_is_rounded_and_said(arrays, tmp_path):
    doubles = {name: array.astype("<f8") for name, array in arrays.items()}
    found = load_weights(write(tmp_path, "a.pt", state_dict_zip(doubles)))
    assert_same(found.arrays, arrays)
    assert f"{len(arrays)} float64 tensors rounded" in str(found.report)


@pytest.mark.slow
def test_imagenet_names_are_assumed_for_1000_classes(shared):
    found = load_weights(shared / "data" / "resnet18_imagenet_pq.pth")
    assert found.arch == "resnet18" and found.classes[340] == "zebra"
    assert "class names assumed" in str(found.report)


@pytest.mark.parametrize("name", ["resnet20-12fca82f.th", "resnet18_imagenet_pq.pth"])
def test_real_files_are_equal_to_what_torch_reads(name, shared):
    golden = json.loads(GOLDEN.read_text())["files"][name]
    found = load_weights(shared / "data" / name)
    digests = {
        key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in found.arrays.items()
    }
    renamed = {
        key.removeprefix("module.").replace("linear.", "fc."): digest
        for key, digest in golden.items()
    }
    assert digests == renamed


WRONG = {
    "27 values that are NaN": {
        "conv1.weight": lambda a: np.where(np.arange(16) < 1, np.nan, a.T).T
    },
    "1 values that are NaN or inf": {"fc.bias": lambda a: np.where(a == a[0], np.inf, a)},
    "negative variances": {"bn1.running_var": np.negative},
    r"shape: fc.weight: expected \(10, 64\), found \(64, 10\)": {"fc.weight": np.transpose},
    r"fc.weight: expected \(9, 64\)": {"fc.bias": lambda a: a[:9]},
    r"fc.bias: expected \(10,\), found \(10, 1\)": {"fc.bias": lambda a: a[:, None]},
    r"fc.bias: expected \(1,\), found \(1, 10\)": {"fc.bias": lambda a: a[None]},
    "missing from the file: fc.bias": {"fc.bias": None},
    "missing from the file: fc.weight": {"fc.weight": None},
    r"layer1.0.conv1.weight: expected \(16, 16, 3, 3\)": {
        "layer1.0.conv1.weight": lambda a: a[:, :8]
    },
    "missing from the file: bn1.bias": {"bn1.bias": None},
    "not in the network: extra.weight": {"extra.weight": lambda _: np.ones(3, "<f4")},
    "bn1.bias is stored as <i8, expected floats": {"bn1.bias": lambda a: np.ones(16, "<i8")},
    "16 values that are NaN": {"bn1.bias": lambda a: np.full(16, 1e300)},  # beyond float32
}


@pytest.mark.parametrize("message", WRONG)
def test_weights_that_do_not_fit(message, arrays, tmp_path):
    wrong = dict(arrays)
    for name, change in WRONG[message].items():
        array = wrong.pop(name, None)
        if change is not None:
            wrong[name] = np.ascontiguousarray(change(array))
    path = write(tmp_path, "a.pt", state_dict_zip(wrong))
    with pytest.raises(WeightsError, match=message):
        load_weights(path)


def test_views_that_repeat_a_few_numbers_without_end(arrays, tmp_path):
    """Each is below the limit of one tensor; none of them is ever read."""

    def with_heads(state):
        view = tensor(storage("0", "Float", arrays["conv1.weight"].size), 0, (1 << 20,), (0,))
        return {**state, **{f"head.{i}": view for i in range(40)}}

    path = write(tmp_path, "a.pt", state_dict_zip(arrays, with_heads))
    with pytest.raises(WeightsError, match=r"would take 168,\d+,\d+ in memory.*contiguous"):
        load_weights(path)


def test_an_architecture_that_is_not_the_files(arrays, weights, tmp_path):
    path = write(tmp_path, "a.pt", state_dict_zip(arrays))
    with pytest.raises(WeightsError, match="this is a cifar_resnet20, not a resnet18"):
        load_weights(path, arch="resnet18")
    save_weights(tmp_path / "a.h5", weights)
    with pytest.raises(
        WeightsError, match=r"^resnet10s is a resnet10s, not a resnet50; give arch='resnet10s' or"
    ):
        load_weights("resnet10s", arch="resnet50")  # nothing about a file that comes with tinyft
    with pytest.raises(WeightsError, match="is a cifar_resnet20, not a resnet18"):
        load_weights(tmp_path / "a.h5", arch="resnet18")


def test_unknown_objects_beside_the_weights(arrays, tmp_path):
    beside = state_dict_zip(arrays, lambda state: {"x": Global("os.system"), "model": state})
    path = write(tmp_path, "a.pt", beside)
    with pytest.raises(WeightsError, match=r"os\.system.*ignore_unknown=True"):
        load_weights(path)
    assert_same(load_weights(path, ignore_unknown=True).arrays, arrays)
    path = write(
        tmp_path, "b.pt", state_dict_zip(arrays, lambda s: {"x": Global("os.system"), **s})
    )
    with pytest.raises(WeightsError, match=r"'x' of the state dict is a os\.system"):
        load_weights(path, ignore_unknown=True)


def edit(path, texts=None, **attributes):
    """Write the file anew with other attributes or texts, as its writer would have, hash included;
    None leaves one out.
    """
    arrays, found, found_texts = read_arrays(path, "tinyft-weights")
    kept = {n: value for n, value in {**found, **attributes}.items() if value is not None}
    write_arrays(path, "tinyft-weights", arrays, kept, {**found_texts, **(texts or {})})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "format version 3"),
        ({"format": "other"}, "format is 'other'"),
        ({"arch": None}, "arch is missing"),
        ({"arch": "resnet19"}, "no architecture 'resnet19'"),
        ({"num_classes": None}, "num_classes is missing"),
        ({"num_classes": 11}, r"num_classes is 11, but fc.bias has the shape \(10,\)"),
        ({"stride_in_1x1": True}, "stride in the 1x1"),
        ({"bn_eps": 1e-3}, "epsilon of 0.001"),
        ({"content_sha256": "0" * 64}, "the file says 000"),
    ],
)
def test_native_files_that_say_something_wrong(change, message, weights, tmp_path):
    save_weights(tmp_path / "a.h5", weights)
    edit(tmp_path / "a.h5", **change)
    with pytest.raises(WeightsError, match=message):
        load_weights(tmp_path / "a.h5")


@pytest.mark.parametrize("variant", [{"stride_in_1x1": True}, {"bn_eps": 1e-3}])
def test_a_variant_that_no_reader_would_take_is_not_written(variant, weights, tmp_path):
    with pytest.raises(WeightsError, match="the file is for"):
        save_weights(tmp_path / "a.h5", replace(weights, metadata=variant))


def test_class_names_must_be_as_many_as_classes(weights, tmp_path):
    save_weights(tmp_path / "a.h5", weights)
    edit(tmp_path / "a.h5", texts={"classes": ["a", "b"]})
    with pytest.raises(WeightsError, match="no list of 10 names"):
        load_weights(tmp_path / "a.h5")


def test_native_preprocessing_has_no_defaults(weights, tmp_path):
    save_weights(tmp_path / "a.h5", weights)
    edit(tmp_path / "a.h5", **{"preprocess.std": None})
    with pytest.raises(WeightsError, match=r"missing \['std'\]"):
        load_weights(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("weights/conv1/weight", np.ones((3, 16, 3, 3), "f4"), "of another shape: conv1.weight"),
        ("weights/bn1/weight", np.ones(16, "f2"), "expected <f4"),
        ("weights/bn1/weight", np.ones(16, "i4"), "expected <f4"),
        ("other", np.ones(16, "f4"), "outside /weights"),
    ],
)
def test_native_arrays_that_are_wrong(name, data, message, weights, tmp_path):
    save_weights(tmp_path / "a.h5", weights)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        if name in file:
            del file[name]
        file[name] = data
    with pytest.raises(WeightsError, match=message):
        load_weights(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "resnet19"}, "no architecture"),
        ({"classes": ["a"]}, "1 class names for a last layer of 10"),
        ({"metadata": {"colour": "red"}}, r"no metadata \['colour'\]"),
        ({"arrays": {"fc.bias": np.array([np.nan] * 10)}}, "NaN"),
    ],
)
def test_what_save_refuses(change, message, weights, tmp_path):
    with pytest.raises(WeightsError, match=message):
        save_weights(tmp_path / "a.h5", replace(weights, **change))
    assert not list(tmp_path.iterdir())


def test_float16_has_a_range(weights, tmp_path):
    large = weights.arrays | {"fc.weight": np.full((10, 64), 1e6, np.float32)}
    with pytest.raises(WeightsError, match="beyond float16's range; save it without half"):
        save_weights(tmp_path / "a.h5", replace(weights, arrays=large), half=True)


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_weights(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError):
        load_weights("none.pth")
    with pytest.raises(WeightsError, match="no file or folder 'resnet19'"):
        load_weights("resnet19")
    with pytest.raises(OSError):
        load_weights(tmp_path)


def test_an_architecture_means_its_published_default(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYFT_OFFLINE", "1")
    monkeypatch.setenv("TINYFT_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="forbids to fetch torchvision/resnet50-v2"):
        load_weights("resnet50")


def test_formats_are_told_by_content(tmp_path):
    signature = b"\x89HDF\r\n\x1a\n"
    assert detect_format(write(tmp_path, "a.pth", signature)) == "tinyft"
    assert detect_format(write(tmp_path, "b.h5", b"PK\x03\x04")) == "torch"
    assert detect_format(write(tmp_path, "c.h5", b"\x08" + b"\0" * 7 + b"{}")) == "safetensors"
    length_that_looks_like_a_pickle = b"\x80\x02" + b"\0" * 6 + b"{}"
    path = write(tmp_path, "c.h5", length_that_looks_like_a_pickle)
    assert detect_format(path) == "safetensors"
    for data in (b"", b"#!text".ljust(512, b"\0") + signature, b"\xff\xd8\xff\xe0 a picture"):
        with pytest.raises(WeightsError, match="neither HDF5, nor a torch checkpoint"):
            detect_format(write(tmp_path, "d.h5", data))


@pytest.mark.slow
def test_weights_are_read_and_written_without_h5py_numba_and_pillow(tmp_path):
    code = (
        "import sys, tinyft.weights as w\n"
        f"w.save_weights({str(tmp_path / 'a.h5')!r}, w.load_weights('resnet10s'))\n"
        "print([name for name in ('h5py', 'numba', 'PIL') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_preprocess_of_a_published_file_is_known_by_its_digest(arrays, tmp_path, monkeypatch):
    from tinyft.weights import find, read

    path = write(tmp_path, "renamed.bin", state_dict_zip(arrays))
    entry = replace(find("resnet50"), preprocess=Preprocess(resize=40, crop=32))
    monkeypatch.setattr(read, "with_digest", lambda digest: entry)
    found = load_weights(path)
    assert found.preprocess == entry.preprocess and found.metadata["licence"] == "BSD-3-Clause"
