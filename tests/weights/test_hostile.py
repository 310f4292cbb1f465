"""Hostile files, and honest ones with flipped bits: refused, quickly, and nothing runs."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from torch_assembler import state_dict_legacy, state_dict_zip

from tinyft.errors import WeightsError
from tinyft.weights import export_safetensors, load_weights, read_arrays, save_weights, write_arrays

pytestmark = pytest.mark.slow


# File, and what the message says of it.
HOSTILE = {
    "evil_legacy.pth": r"nothing was executed.*posix\.system",
    "evil_zip.pth": r"nothing was executed.*posix\.system",
    "lying_storage.pth": "promises 4,000,000,000 bytes and has 16",
    "lying_size.pth": "reaches element",
    "missing_storage.pth": "missing from the file",
    "external_link.h5": "leads elsewhere",
    "external_storage.h5": "old-style group",
    "soft_link_dangling.h5": "old-style group",
    "group_loop.h5": "old-style group",
    "hdf5_hang.h5": "old-style group",
    "huge_shape.h5": "old-style group",
    "images_bad_offsets.h5": "old-style group",
    "truncated.h5": "damaged",
    "not_hdf5.h5": "damaged",
    "lying_header_length.safetensors": "header claims",
    "lying_offsets.safetensors": "the file has 16",
    "lying_shape.safetensors": "needs 4,000,000,000,000 bytes",
    "negative_shape.safetensors": "no counts",
    "overlap.safetensors": "overlap",
    "not_json.safetensors": "no JSON",
    "short.safetensors": "neither HDF5, nor a torch checkpoint, nor safetensors",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name, shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = time.perf_counter()
    with pytest.raises(WeightsError, match=HOSTILE[name]):
        load_weights(shared / "data" / "hostile" / name)
    assert time.perf_counter() - start < 5
    assert list(tmp_path.iterdir()) == []


def test_every_hostile_weights_file_is_in_the_list(shared):
    suffixes = (".pth", ".th", ".h5", ".safetensors")
    found = [p.name for p in (shared / "data" / "hostile").iterdir() if p.suffix in suffixes]
    assert sorted(found) == sorted(HOSTILE)


@pytest.fixture(scope="module")
def honest(tmp_path_factory, arrays) -> dict[str, bytes]:
    """Small honest files of each format, by name."""
    from tinyft.weights import Preprocess, Weights

    folder = tmp_path_factory.mktemp("honest")
    weights = Weights("cifar_resnet20", arrays, None, Preprocess(32, 32))
    save_weights(folder / "weights.h5", weights)
    export_safetensors(weights, folder / "a.safetensors")
    small = {"a.b": np.ones((2, 3), np.float32)}
    write_arrays(folder / "small.h5", "tinyft-weights", small, {"n": 1}, {"text": "x"})
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files["zip.pt"] = state_dict_zip(arrays)
    files["legacy.th"] = state_dict_legacy(arrays)
    return files


NAMES = ["weights.h5", "small.h5", "a.safetensors", "zip.pt", "legacy.th"]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, most of them in the structure, and sometimes the end cut off."""
    changed = bytearray(data)
    reach = min(len(data), rng.choice([500, 8000, len(data)]))
    start = rng.choice([0, len(data) - reach])
    for _ in range(rng.choice([1, 2, 20])):
        changed[start + rng.randrange(reach)] = rng.choice([0, 255, rng.randrange(256)])
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.2 else changed)


@pytest.mark.parametrize("name", NAMES)
def test_damage_ends_in_an_error_that_can_be_caught(name, honest, tmp_path):
    rng = random.Random(name)
    path, noticed = tmp_path / name, 0
    for _ in range(150):
        path.write_bytes(damaged(honest[name], rng))
        for read in (load_weights, lambda path: read_arrays(path, "tinyft-weights")):
            try:
                read(path)
            except (WeightsError, OSError):
                noticed += 1
    assert noticed > 150  # most damage is seen; a changed weight is only another weight


@pytest.mark.parametrize("name", NAMES)
def test_each_truncation_is_noticed(name, honest, tmp_path):
    data, path = honest[name], tmp_path / name
    for length in [*range(0, 600, 37), *range(600, len(data), len(data) // 20), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises((WeightsError, OSError)):
            load_weights(path)
