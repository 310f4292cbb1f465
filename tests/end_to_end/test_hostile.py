"""Every hostile file through the commands that a user would give it to: one line, never a
traceback, and nothing in it is executed.
"""

import contextlib
import io
import shutil

import pytest

from tinyft.cli.main import main

pytestmark = pytest.mark.slow


TRAINING = ["--weights", "none", "--arch", "cifar_resnet20", "--epochs", "1", "--batch-size", "4"]

# Pictures that only look odd; all others are refused.
GOOD = {
    "animated.gif", "bilevel.png", "cmyk.jpg", "exif_orientation6.jpg", "gray.jpg", "gray16.png",
    "gray_alpha.png", "one_pixel.png", "palette_transparency.png", "png_named.jpg",
    "progressive.jpg", "rgb16.png", "rgba.png",
}  # fmt: skip
BAD = {
    "bomb_100000x100000.png", "text_named.jpg", "truncated.jpg", "very_wide_20000x2.png",
    "zero_bytes.png", "zero_width.png",
}  # fmt: skip
PICTURES = sorted(GOOD | BAD)
WEIGHTS = [
    "evil_legacy.pth", "evil_zip.pth", "external_link.h5", "external_storage.h5", "group_loop.h5",
    "hdf5_hang.h5", "huge_shape.h5", "images_bad_offsets.h5", "lying_header_length.safetensors",
    "lying_offsets.safetensors", "lying_shape.safetensors", "lying_size.pth", "lying_storage.pth",
    "missing_storage.pth", "negative_shape.safetensors", "not_hdf5.h5", "not_json.safetensors",
    "overlap.safetensors", "short.safetensors", "soft_link_dangling.h5", "truncated.h5",
]  # fmt: skip


def run(*arguments):
    """(code, stdout, stderr) of a command, within this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, draw_into):
    """Pictures, and a run on them."""
    folder = tmp_path_factory.mktemp("hostile")
    draw_into(folder / "pictures", {"cat": 6, "dog": 6})
    run("finetune", folder / "pictures", *TRAINING, "--out", folder / "run")
    return folder


def hostile(shared, name):
    folder = shared / "data" / "hostile"
    if not folder.is_dir():
        pytest.skip(f"no hostile files in {folder}")
    return folder / name


def assert_refused(found, file):
    code, _, err = found
    line = err.strip().splitlines()[-1]
    assert code in (1, 2)
    assert "Traceback" not in err
    assert file.name in line
    assert "an error in tinyft" not in line


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(shared, workplace, tmp_path, name):
    file = hostile(shared, name)
    folder = tmp_path / "pictures"
    shutil.copytree(workplace / "pictures", folder)
    shutil.copy(file, folder / "cat")
    found = run("finetune", folder, *TRAINING, "--out", tmp_path / "run")
    predicted = run("predict", workplace / "run", file)
    if name in GOOD:
        assert found[0] == predicted[0] == 0, (found, predicted)
        return
    assert_refused(found, file)
    assert_refused(predicted, file)
    code, _, err = run("finetune", folder, *TRAINING, "--on-error", "skip", "--out", tmp_path / "b")
    assert code == 0, err
    assert "1 of 13 pictures cannot be used" in err


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(shared, workplace, tmp_path, monkeypatch, name):
    file = hostile(shared, name)
    monkeypatch.chdir(tmp_path)
    pictures = workplace / "pictures"
    for command in (
        ("weights", "convert", file, tmp_path / "out.h5"),
        ("weights", "export", file, tmp_path / "out.safetensors"),
        ("weights", "verify", file),
        ("finetune", pictures, "--weights", file),
        ("evaluate", file, pictures),
        ("predict", file, pictures / "cat" / "0.png"),
    ):
        assert_refused(run(*command), file)
    assert list(tmp_path.iterdir()) == []  # nothing written, nothing executed


def test_no_hostile_file_is_forgotten(shared):
    files = {path.name for path in hostile(shared, "x").parent.iterdir() if path.suffix != ".py"}
    assert files == {*PICTURES, *WEIGHTS}
