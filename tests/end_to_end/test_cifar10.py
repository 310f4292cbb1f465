"""Published weights reproduce their published error to the last picture."""

import io
import json

import h5py
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


# In the table of github.com/akamaster/pytorch_resnet_cifar10: 8.27 %.
WRONG, PICTURES = 827, 10_000


@pytest.fixture(scope="module")
def cifar10_folder(shared, tmp_path_factory):
    """The whole CIFAR-10 test set as lossless PNG files in a folder a class."""
    folder = tmp_path_factory.mktemp("cifar10")
    with h5py.File(shared / "data" / "cifar10_test.h5") as file:
        data, offsets, labels = (file[name][:] for name in ("data", "offsets", "labels"))
        names = [name.decode() for name in file["class_names"][:]]
    assert names == sorted(names)  # so that the folders, sorted, are in the order of the classes
    for name in names:
        (folder / name).mkdir()
    for i, label in enumerate(labels):
        picture = Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]].tobytes()))
        picture.convert("RGB").save(folder / names[label] / f"{i:05}.png", compress_level=1)
    return folder


def test_converted_resnet20_has_the_published_error(tinyft, shared, cifar10_folder, tmp_path):
    source, converted = shared / "data" / "resnet20-12fca82f.th", tmp_path / "r20.h5"
    done = tinyft("weights", "convert", source, converted)
    assert done.code == 0, done.err
    assert "cifar_resnet20" in done.out
    done = tinyft("evaluate", converted, cifar10_folder, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out.splitlines()[-1])
    assert found["n"] == PICTURES
    assert round((1 - found["accuracy"]) * PICTURES) == WRONG
    assert found["accuracy"] == (PICTURES - WRONG) / PICTURES
    assert np.isfinite(found["loss"])
