"""What a careless user types, over all commands: one line that says what was expected, what came
and what to do; the house's exit code; no traceback; and nothing is written or lost.

A row is `command line | words that the message holds`; "! " before it where the request was right
and its work failed (exit code 1 instead of 2). All run in one folder, which stays as it is.
"""

import contextlib
import io
import os
import shlex
import shutil
import zipfile

import h5py
import numpy as np
import pytest

from tinyft.cli.main import main

RUN = "runs/pictures-cifar_resnet20-1"
MOST = 500  # characters of a message: no lists of shapes
NEVER = ("Traceback", "an error in tinyft", "<class", "NoneType", "object at 0x")

WEIGHTS = """
! weights verify keras.h5 | another program wrote it (Keras, h5py)
! weights verify model.keras | it is a Keras model
! weights verify photos.zip | it is an archive: give a checkpoint of PyTorch or safetensors
! weights verify arrays.npz | it is arrays of NumPy (npz)
weights verify arrays.npy | it is an array of NumPy
weights verify page.pth | it is a web page; download the file itself
weights verify indented.h5 | it is a web page
weights verify pointer.pth | it is a Git LFS pointer to them; `git lfs pull`
weights verify empty.pth | it is empty; get it again
weights verify answer.json | it is JSON
weights verify pictures/cat/0.png | it is a picture; pictures come as DIR
weights verify packed.gz | it is packed by gzip; unpack it first
weights verify words.txt | nor safetensors: it begins with b'weights,'
weights verify pictures | pictures is no file; expected one of weights
weights verify smal.h5 | smal.h5 is no file; expected one of weights; did you mean small.h5?
weights fetch resnt18 | did you mean resnet18
weights fetch timm/resnet50.a1_in1 | did you mean timm/resnet50.a1_in1k
weights fetch resnet10s.h5 | no published weights are called so
weights lst | invalid choice: 'lst'; did you mean list?
weights | ACTION
weights verify | required: FILE
weights convert page.pth out.h5 | it is a web page
weights convert empty.pth out.h5 | it is empty
weights convert arrays.npz out.h5 | arrays of NumPy
weights convert gone.pth out.h5 | gone.pth: No such file
weights export page.pth out.safetensors | it is a web page
weights export pictures out.safetensors | pictures is no run
"""

COMMANDS = """
finetun | invalid choice: 'finetun'; did you mean finetune?
train pictures | invalid choice: 'train'
evalute run pictures | did you mean evaluate?
lrfind pictures | did you mean lr-find?
--versoin | unrecognized arguments: --versoin; did you mean --version?
finetune pictures --epoch 3 | unrecognized arguments: --epoch 3; did you mean --epochs?
finetune pictures --batchsize 3 | did you mean --batch-size?
finetune pictures --weight none | did you mean --weights?
predict RUN pictures/cat/0.png --bset | did you mean --best?
finetune pictures more | unrecognized arguments: more
finetune https://example.com/photos | https://example.com/photos is an address
finetune pictures --weights=http://example.com/resnet18.pth | is an address
predict RUN https://example.com/cat.jpg | download what is there
"""

TRAINING = """
finetune pictures --lr 1e9 | expected a learning rate, often from 0.0001 to 0.1, at most 100
finetune pictures --lr -1 | expected a number above 0, got '-1'
finetune pictures --arch resnet81 --weights none | got 'resnet81'; did you mean resnet18?
finetune pictures --arch ResNet-18 | did you mean resnet18?
finetune pictures --weights small.h5 --arch resnet50 | is a cifar_resnet20, not a resnet50
finetune pictures --weights resnet18 --arch resnet50 | resnet18 is a resnet18, not a resnet50; give
finetune pictures --weights small.safetensors --arch resnet18 | cifar_resnet20, not a resnet18
finetune picture | did you mean pictures?
finetune links | links to folders are not followed
finetune one | files outside a class folder: 1; is it one class of several?
"""


def rows(text):
    """(command line, exit code, words) of each line."""
    for line in text.strip().splitlines():
        command, _, words = line.partition(" | ")
        yield command.removeprefix("! "), 1 if command.startswith("! ") else 2, words


ROWS = [row for text in (WEIGHTS, COMMANDS, TRAINING) for row in rows(text)]


@pytest.fixture(scope="module")
def workplace(once_trained, tmp_path_factory):
    """Two classes of pictures, a run on them, its network as a file, and much that is neither."""
    folder = tmp_path_factory.mktemp("careless")
    shutil.copytree(once_trained, folder, dirs_exist_ok=True)
    described = folder / RUN / "run.json"
    described.write_text(described.read_text().replace(str(once_trained), str(folder)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fill()
        yield folder


def fill():
    """Put into the current folder what the rows name."""
    for file, content in {
        "page.pth": b"<!DOCTYPE html><html>404</html>",
        "indented.h5": b"\n <html>404</html>",
        "pointer.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46\n",
        "empty.pth": b"",
        "answer.json": b'{"error": "not found"}',
        "packed.gz": b"\x1f\x8b\x08\0",
        "words.txt": b"weights, really",
    }.items():
        with open(file, "wb") as out:
            out.write(content)
    with h5py.File("keras.h5", "w") as file:
        file.attrs["keras_version"] = b"2.1"
        file["conv1/kernel:0"] = np.zeros((3, 3))
    for file, member in (("model.keras", "model.weights.h5"), ("photos.zip", "cat.png")):
        with zipfile.ZipFile(file, "w") as content:
            content.writestr(member, b"x")
    np.savez("arrays.npz", a=np.zeros(3))
    np.save("arrays.npy", np.zeros(3))
    for folder in ("one", "links"):
        os.mkdir(folder)
    shutil.copy("pictures/cat/0.png", "one")
    for name in ("cat", "dog"):
        os.symlink(os.path.abspath(f"pictures/{name}"), f"links/{name}")
    shutil.copy(f"{RUN}/learner.h5", "small.h5")
    assert call("weights export small.h5 small.safetensors")[0] == 0


def call(command):
    """(code, stdout, stderr) of a command line, within this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(shlex.split(command.replace("RUN", RUN)))
        except SystemExit as ended:
            code = ended.code
    return code, out.getvalue(), err.getvalue()


def contents(folder):
    """Every file below the folder, with its size and when it was written."""
    found = {}
    for above, _, files in os.walk(folder):
        for file in files:
            path = os.path.join(above, file)
            status = os.lstat(path)
            found[path] = status.st_size, status.st_mtime_ns
    return found


@pytest.mark.parametrize(("command", "code", "words"), ROWS, ids=[row[0] for row in ROWS])
def test_a_command_line(workplace, command, code, words):
    before = contents(workplace)
    found, out, err = call(command)
    *notes, line = err.strip().splitlines()
    assert words in line, line
    assert found == code
    assert out == ""
    assert line.startswith("tinyft") and len(line) < MOST, line
    assert not [note for note in notes if note.startswith("tinyft ")]
    assert not [word for word in NEVER if word in err], err
    assert contents(workplace) == before


def test_no_command_is_a_start_page(workplace):
    code, out, err = call("")
    assert (code, err) == (0, "")
    commands = [line.split("   ")[0].strip() for line in out.splitlines() if "  tinyft" in line]
    assert commands[:2] == ["tinyft finetune", "tinyft check photos/"] and len(commands) == 5
    assert "tinyft --help" in commands
