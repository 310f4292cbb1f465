"""Requests that cannot be fulfilled end in one line that says what to do, and the code 2."""

import sys

import h5py
import pytest

from tinyft.cli.main import build_parser
from tinyft.cli.options import DATA, LEARNER, RECIPE
from tinyft.errors import NetworkError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("frobnicate",), "invalid choice: 'frobnicate'"),
        (("finetune", "x", "--epochs", "-1"), "expected a whole number from 0 to 10,000, got '-1'"),
        (("plan", "x", "--epochs", "99999999"), "from 0 to 10,000, got '99999999'"),
        (("gradcheck", "x.py:f", "--shapes=-2x3"), "expected shapes as 2x3,4x5; got '-2x3'"),
        (("gradcheck", "x.py:f", "--shapes", "0x3"), "expected shapes as 2x3,4x5; got '0x3'"),
        (("finetune", "x", "--epochs", "many"), "got 'many'"),
        (("finetune", "x", "--lr", "0"), "expected a learning rate above 0, often"),
        (("finetune", "x", "--lr", "nan"), "at most 100, got 'nan'"),
        (("finetune", "x", "--valid-fraction", "1"), "between 0 and 1"),
        (("plan", "x", "--weight-decay", "-1"), "expected a number >= 0, got '-1'"),
        (("plan", "x", "--label-smoothing", "2"), "expected a number from 0 to 1, got '2'"),
        (("lr-find", "x", "--optimizer", "lion"), "invalid choice: 'lion'"),
        (("finetune", "x", "--ep", "3"), "unrecognized arguments: --ep"),
        (("lr-find", "x", "--epochs", "3"), "unrecognized arguments: --epochs 3"),
        (("lr-find", "x", "--lr", "0.1"), "unrecognized arguments: --lr 0.1"),
        (("finetune", "x", "--head", "big"), "invalid choice: 'big'"),
        (("finetune", "x", "--no-augment", "--augment", "crop"), "not allowed with"),
        (("predict", "runs/1"), "required: FILE"),
        (("weights",), "required: ACTION"),
    ],
)
def test_what_cannot_be_parsed(tinyft, arguments, words):
    done = tinyft(*arguments)
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert words in done.error
    assert "--help` shows an example" in done.error


def test_every_option_of_a_plan_reaches_the_library():
    asked = vars(build_parser().parse_args(["plan"]))
    own = {"command", "run", "parser", "dir", "backend", "explain", "html", "table", "traceback",
           "working", "on_interrupt"}  # fmt: skip
    assert set(asked) - own == {*DATA, *LEARNER, *RECIPE}


def test_a_folder_called_like_published_weights(tinyft, pictures, tmp_path, monkeypatch):
    def fetch(entry):
        raise NetworkError(f"no network for {entry.arch}")

    monkeypatch.setattr("tinyft.weights.load.fetch", fetch)
    (tmp_path / "resnet18").mkdir()
    assert "no network for resnet18" in tinyft("plan", pictures, "--weights", "resnet18").error


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere", "nowhere is not a folder"),
        ("file.jpg", "file.jpg is not a folder"),
        ("empty", "no class folders with pictures in empty"),
        ("flat", "Then give the folder above"),
        (r"C:\photos\flowers", "is not a folder"),
        # Python 3.14 takes it for a folder that is not there
        ("x" * 300, "name too long" if sys.version_info < (3, 14) else "is not a folder"),
    ],
)
def test_folders_that_are_none(tinyft, tmp_path, tiny, path, words):
    (tmp_path / "file.jpg").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "0.JPG").write_bytes(b"")
    done = tinyft("finetune", path, *tiny)
    assert done.code == 2
    assert words in done.error
    assert not (tmp_path / "runs").exists()  # nothing was begun


def test_one_class(tinyft, draw, tiny):
    done = tinyft("finetune", draw({"cat": 4}), *tiny)
    assert done.code == 2
    assert "at least two classes; found only cat" in done.error


def test_one_picture(tinyft, draw, tiny):
    done = tinyft("finetune", draw({"cat": 1, "dog": 4}), *tiny)
    assert done.code == 2
    assert "a class with one picture cannot be split: cat" in done.error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--arch", "resnet19", "--weights", "none"], "'resnet19'"),
        (["--weights", "resnet19"], "no published weights are called so"),
        (["--weights", "gone.pth"], "gone.pth: No such file"),
        (["--weights", "none", "--epochs", "0"], "--epochs and --freeze-epochs are both 0"),
        (["--weights", "none", "--size", "1000000"], "a whole number from 1 to 4096"),
        (["--weights", "none", "--size", "1"], "size must be a whole number of at least 8; got 1"),
        (["--weights", "none", "--batch-size", "1"], "at least two pictures"),
    ],
)
def test_options_that_no_library_call_accepts(tinyft, pictures, options, words):
    done = tinyft("finetune", pictures, *options)
    assert done.code == 2
    assert words in done.error


def test_names_with_control_characters_stay_on_one_line(tinyft):
    done = tinyft("finetune", "two\nlines\x1b[31mred")
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert "\x1b" not in done.err


@pytest.mark.slow
def test_a_windows_name_of_a_class_is_a_name_like_any(tinyft, draw, tiny):
    done = tinyft("finetune", draw({r"C:\cat": 6, "dog ": 6}, folder=r"a b\c"), *tiny)
    assert done.code == 0, done.err
    assert "saved in runs/a_b_c-cifar_resnet20-1" in done.out


def test_an_existing_folder_is_not_written_into(tinyft, trained, pictures, tiny):
    done = tinyft("finetune", pictures, *tiny, "--out", trained)
    assert done.code == 2
    assert "exists already; give another folder, or resume it" in done.error


def test_a_folder_that_cannot_be_made(tinyft, pictures, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    done = tinyft("finetune", pictures, *tiny, "--out", "file/run")
    assert done.code == 2
    assert "the run cannot be written" in done.error
    (tmp_path / "runs").write_text("")
    done = tinyft("finetune", pictures, *tiny)
    assert done.code == 2
    assert "the run cannot be written" in done.error


@pytest.mark.parametrize("command", [("predict", "x.png"), ("evaluate", "x")])
def test_what_was_trained_must_be_there(tinyft, tmp_path, command):
    (tmp_path / "folder").mkdir()
    name, argument = command
    done = tinyft(name, "folder", argument)
    assert done.code == 2
    assert "folder is no run" in done.error
    done = tinyft(name, "gone.h5", argument)
    assert done.code == 2
    assert "gone.h5: No such file" in done.error
    done = tinyft(name, "gone.h5", argument, "--best")
    assert done.code == 2
    assert "--best is for a run's folder" in done.error


def test_a_run_that_is_not_finished_says_how_to_finish_it(tinyft, trained, tmp_path):
    (tmp_path / trained / "learner.h5").unlink()
    described = tmp_path / trained / "run.json"
    described.write_text(described.read_text().replace('"finished": true', '"finished": false'))
    done = tinyft("predict", trained, "pictures/cat/0.png")
    assert done.code == 2
    assert f"tinyft finetune --resume {trained}; or take its best epoch with --best" in done.error
    assert tinyft("predict", trained, "pictures/cat/0.png", "--best").code == 0


def test_a_learner_that_is_gone_or_damaged_is_named(tinyft, trained, tmp_path):
    file = tmp_path / trained / "learner.h5"
    with h5py.File(file, "r+") as content:
        content["weights/conv1/weight"][0, 0, 0, 0] += 1
    done = tinyft("predict", trained, "pictures/cat/0.png")
    assert done.error.startswith(f"tinyft predict: {trained}/learner.h5: the arrays' sha256 is ")
    assert done.error.endswith("get it again; or take its best epoch with --best")
    file.unlink()
    done = tinyft("predict", trained, "pictures/cat/0.png")
    words = f"{trained} is finished, and its learner.h5 is gone: put it back; or take its best"
    assert words in done.error


def test_pictures_that_were_moved_are_asked_for(tinyft, trained, pictures):
    pictures.rename(pictures.parent / "moved")
    done = tinyft("inspect", trained, "--step", 0)
    assert f"{trained} began with the pictures in {pictures}, which is no longer" in done.error


def test_classes_that_the_network_does_not_know(tinyft, trained, draw):
    other = draw({"cat": 2, "horse": 2}, folder="other")
    done = tinyft("evaluate", trained, other)
    assert done.code == 2
    assert "horse" in done.error


def test_a_finished_run_is_not_resumed(tinyft, trained):
    done = tinyft("finetune", "--resume", trained)
    assert done.code == 2
    assert "is finished; there is nothing to resume" in done.error


@pytest.mark.parametrize(
    "options",
    [
        ["--lr", "0.1"],
        ["--epochs", "2"],
        ["--arch", "resnet18"],
        ["--weights", "other.pth"],
        ["--size", "64"],
        ["--bn", "frozen"],
        ["--no-augment"],
        ["--out", "elsewhere"],
        ["elsewhere"],
    ],
)
def test_resume_refuses_what_contradicts_the_run(tinyft, trained, options):
    done = tinyft("finetune", "--resume", trained, *options)
    assert done.code == 2
    assert options[0].replace("--no-augment", "--augment").replace("elsewhere", "") in done.error
    assert "contradicts" in done.error


def test_resume_accepts_what_does_not_contradict(tinyft, trained, pictures, tiny):
    same = "--lr", "0.002", "--backend", "reference"  # the device is not the run's
    done = tinyft("finetune", pictures, *tiny, *same, "--resume", trained)
    assert "contradicts" not in done.error
    assert "nothing to resume" in done.error


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "tinyft-run", "settings": 3}'])
def test_a_damaged_run(tinyft, tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(text)
    done = tinyft("finetune", "--resume", "run")
    assert done.code == 2
    assert "run.json is damaged" in done.error


@pytest.mark.parametrize(
    "command", [["finetune", ""], ["predict", "run", ""], ["evaluate", "", "x"]]
)
def test_an_empty_name_is_not_the_current_folder(tinyft, command):
    done = tinyft(*command)
    assert done.code == 2
    assert "an argument is empty; is it a variable that is not set?" in done.error


@pytest.mark.parametrize("place", ["raise SystemExit(0)", "def f(x): raise SystemExit(0)"])
def test_a_checked_file_that_ends_python_is_no_success(tinyft, tmp_path, place):
    file = tmp_path / "mine.py"
    file.write_text(f"{place}\n")
    done = tinyft("gradcheck", f"{file}:f", "--shapes", "2")
    assert done.code == 2
    assert "SystemExit: 0" in done.error
