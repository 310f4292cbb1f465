"""The list of published weights."""

from __future__ import annotations

import re

import pytest

from tinyft.errors import WeightsError
from tinyft.weights import ARCHITECTURES, entries, find, imagenet_classes
from tinyft.weights.published.registry import sources, with_digest


def test_every_entry_is_complete():
    assert len({entry.id for entry in entries()}) == len(entries()) >= 36
    for entry in entries():
        assert (
            entry.arch in ARCHITECTURES and entry.licence and entry.size > 0
        ) or entry.bundled_file
        assert entry.bundled_file or entry.url.startswith("https://")
        assert re.fullmatch(r"([0-9a-f]{8}|[0-9a-f]{64})?", entry.sha256)
        assert not entry.preprocess.assumed


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("resnet18", "torchvision/resnet18-v1"),
        ("resnet34", "torchvision/resnet34-v1"),
        ("resnet50", "torchvision/resnet50-v2"),
        ("resnet101", "torchvision/resnet101-v2"),
        ("resnet152", "torchvision/resnet152-v2"),
        ("timm/resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
    ],
)
def test_defaults_are_those_of_fastai(arch, expected):
    assert find(arch).id == expected


def test_preprocessing_is_the_entrys_own():
    v2 = find("resnet50").preprocess
    assert (v2.resize, v2.crop, v2.interpolation) == (232, 224, "bilinear")
    assert find("timm/resnet34.ra4_e3600_r224_in1k").preprocess.mean == (0.5, 0.5, 0.5)


def test_a_folder_is_no_file_of_weights(tmp_path):
    with pytest.raises(WeightsError, match="is a folder; give a file of weights"):
        find(str(tmp_path))


def test_a_misspelt_name_gets_near_ones():
    with pytest.raises(
        WeightsError, match=r"no file or folder 'timm/resnet50.a9_in1k'.*did you mean timm/resnet50"
    ):
        find("timm/resnet50.a9_in1k")


def test_a_file_is_known_by_its_digest():
    entry = find("resnet18")
    assert with_digest(entry.sha256) == entry
    assert with_digest("0" * 64) is None


def test_class_names():
    names = imagenet_classes()
    assert len(names) == 1000 and names[1] == "goldfish" and names[340] == "zebra"


def test_no_pickle_is_read_where_the_same_weights_have_a_signed_safetensors_file():
    (twin, own) = sources(find("resnet18"))
    assert (twin.id, twin.format, own.id) == (
        "timm/resnet18.tv_in1k",
        "safetensors",
        "torchvision/resnet18-v1",
    )
    assert sources(find("resnet50")) == [find("resnet50")]  # tv2_in1k: no sha256 was published
    for entry in entries():
        assert sources(entry)[-1] == entry
        assert entry.same_weights_as in ("", *(other.id for other in entries()))


def test_the_torchvision_versions_and_timms_permissive_networks_are_all_there():
    ids = {entry.id for entry in entries()}
    torchvision = {f"torchvision/resnet{depth}-v1" for depth in (18, 34, 50, 101, 152)}
    torchvision |= {f"torchvision/resnet{depth}-v2" for depth in (50, 101, 152)}  # 18, 34 have none
    assert torchvision <= ids
    for depth in (18, 34, 50):
        assert len([name for name in ids if name.startswith(f"timm/resnet{depth}.")]) >= 5
    assert {e.licence for e in entries()} == {"BSD-3-Clause", "Apache-2.0", "MIT"}
