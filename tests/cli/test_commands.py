"""Each command does what its help says."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from tinyft.backends.cpu.memory_bound import optimizers
from tinyft.cli import doctor, gradcheck, lr_find
from tinyft.cli.main import COMMANDS, build_parser
from tinyft.finetune import Evaluation, LrFinding
from tinyft.finetune.build import RECIPES
from tinyft.nn import build
from tinyft.testing.op_cases import OP_CASES
from tinyft.weights import Preprocess, Weights, export_safetensors, load_weights, save_weights

FUNCTIONS = """
import numpy as np
import tinyft as ft

def double(x):
    return x + x

@ft.op
def wrong(x):
    \"\"\"x * x with half of its gradient.\"\"\"
    def backward(dout):
        return (dout * x.data,)
    return x.data * x.data, backward

def misspelt(x):
    return x * y

class Scaled(ft.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = ft.Tensor(np.array([3.0, 4.0]), requires_grad=True)

    def forward(self, x):
        return wrong(self.scale) * x

layer = Scaled()

def inputs():
    return [np.array([1.0, 2.0])]
"""


def published(path, arch="cifar_resnet20", classes=("cat", "dog")):
    """A weights file with a classifier, as a stranger may give it."""
    arrays = build(arch, len(classes), seed=1).state_dict()
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_weights(path, Weights(arch, arrays, list(classes), Preprocess.for_architecture(arch)))
    return path


def subcommands(parser, words=()):
    """Every command's words and parser."""
    for action in parser._actions:
        if hasattr(action, "choices") and isinstance(action.choices, dict):
            for name, below in action.choices.items():
                yield from subcommands(below, (*words, name))
            return
    yield words, parser


# --------------------------------------------------------------------------------------------- help


def test_the_command_line_offers_every_recipe():
    parser = dict(subcommands(build_parser()))[("finetune",)]
    (choices,) = (a.choices for a in parser._actions if "--recipe" in a.option_strings)
    assert list(choices) == list(RECIPES)


@pytest.mark.parametrize(
    ("words", "parser"), list(subcommands(build_parser())), ids=lambda value: str(value)[:40]
)
def test_the_example_of_each_help_is_a_command_that_parses(words, parser):
    text = parser.format_help()
    examples = re.findall(r"^  (tinyft .*)$", text, re.MULTILINE)
    assert examples, text
    for example in examples:
        parsed = build_parser().parse_args(shlex.split(example.partition(" > ")[0])[1:])
        assert parsed.parser.prog == " ".join(["tinyft", *words])
    assert "--traceback" in text


def test_every_command_is_listed(tinyft):
    done = tinyft("--help")
    assert done.code == 0
    names = {words[0] for words, _ in subcommands(build_parser())}
    assert len(names) == len(COMMANDS)
    for name in names:
        assert f"    {name} " in done.out or f"    {name}\n" in done.out


class Watched(argparse.Namespace):
    """Parsed options that remember which of them were looked at."""

    def __getattribute__(self, name):
        if not name.startswith("_"):
            object.__setattr__(self, "_seen", {*self.__dict__.get("_seen", ()), name})
        return super().__getattribute__(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "finetune pictures {tiny}",
        "plan pictures {tiny}",
        "lr-find pictures --weights none --arch cifar_resnet20 --steps 20 --json",
        "predict {run} pictures/cat/0.png",
        "evaluate {run}",
        "summary cifar_resnet20",
        "warmup --arch cifar_resnet20 --batch-size 2",
        "weights list",
        "weights verify {run}/learner.h5",
        "bench --arch cifar_resnet20 --batch-size 2 --rounds 1 --alone",
        "gradcheck relu",
    ],
)
def test_no_option_is_accepted_and_ignored(trained, tiny, line):
    line = line.format(tiny=" ".join(tiny), run=trained)
    args = build_parser().parse_args(line.split(), namespace=Watched())
    args.arguments, args._seen = line.split(), set()
    assert args.run(args) == 0
    of_main = {"command", "action", "parser", "run", "arguments", "traceback", "on_interrupt"}
    ignored = {name for name in vars(args) if name[0] != "_"} - args._seen
    assert ignored <= {*of_main, "working"}


def test_version(tinyft):
    assert re.fullmatch(r"tinyft \d+\.\d+\.\d+\n", tinyft("--version").out)


# ------------------------------------------------------------------------- plan, lr-find, summary


def test_the_best_accuracy_is_that_of_the_best_epoch(tinyft, pictures, monkeypatch):
    accuracies = iter([0.75, 0.5])
    monkeypatch.setattr(
        "tinyft.finetune.loop.evaluate",
        lambda *_: Evaluation(n=4, accuracy=next(accuracies), loss=1.0),
    )
    done = tinyft(
        "finetune", pictures, "--weights", "none", "--arch", "cifar_resnet20", "--batch-size", 8,
        "--epochs", 1, "--freeze-epochs", 1, "--json",
    )  # fmt: skip
    figures = json.loads(done.out.splitlines()[-1])
    assert (figures["valid_accuracy"], figures["best_valid_accuracy"]) == (0.5, 0.75)


@pytest.mark.slow
def test_plan_fits_the_screen_and_trains_nothing(tinyft, pictures, tmp_path):
    for arch in ("resnet18", "cifar_resnet20"):
        options = "--weights", "none", "--freeze-epochs", "1", "--size", "32", "--table"
        done = tinyft("plan", pictures, "--arch", arch, *options)
        assert done.code == 0, done.err
        assert max(map(len, done.out.splitlines())) <= 100
        assert "Phase 1: head alone" in done.out
        assert re.search(r"layer1.* frozen ", done.out)
        assert "backend:" in done.out
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_random_weights_are_not_frozen_unless_asked(tinyft, pictures):
    done = tinyft("plan", pictures, "--weights", "none")
    assert "phase 1   everything" in done.out
    assert "random weights are not worth freezing" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan", "lr-find"])
def test_a_trained_head_is_kept_and_its_end_is_said(tinyft, trained, pictures, draw, command):
    options = [command, pictures, "--weights", f"{trained}/learner.h5", "--batch-size", "4"]
    options += ["--steps", "30"] if command == "lr-find" else ["--table"]

    def said(*more: object) -> str:
        done = tinyft(*options, *more)
        assert command == "lr-find" or done.code == 0, done.err  # such short curves may be empty
        return " ".join((done.err + done.out).split())

    assert "head: fastai, kept as the weights have it, 2 classes" in said()
    dropped = "2 classes; the trained one of the weights is dropped: "
    assert f"linear, random, {dropped}another head was asked for" in said("--head", "linear")
    options[1] = draw({"bird": 6, "dog": 6}, "others")
    assert f"fastai, random, {dropped}it is for 2 other classes, cat, dog" in said()


@pytest.mark.slow
def test_plan_takes_every_option(tinyft, pictures):
    options = "--weights none --arch cifar_resnet20 --epochs 4 --freeze-epochs 2 --lr 0.01 "
    options += "--size 40 --batch-size 5 --head linear --bn frozen --backend reference --seed 7 "
    options += "--no-augment --valid-fraction 0.5 --on-error skip --table"
    done = tinyft("plan", pictures, *options.split())
    assert done.code == 0, done.err
    for words in (
        "head: linear",
        "6 pictures to train on, 6 to validate, batches of 5; augmentation: none",
        "the middle square at 40 px",
        "head alone, 2 epochs of 1 step",
        "everything, 4 epochs",
        "by running statistics, which stay",
        "backend: reference",
    ):
        assert words in done.out, (words, done.out)


@pytest.mark.slow
def test_lr_find(tinyft, pictures, tiny):
    done = tinyft("lr-find", pictures, *tiny[:6], "--steps", "30")
    assert done.code == 0, done.err
    for rule in ("valley", "slide", "minimum", "steep"):
        assert re.search(rf"^{rule} +\d\.\d\de[+-]\d\d  \w+", done.out, re.MULTILINE)
    assert re.search(r"^1\.00e-07  \d+\.\d+", done.out, re.MULTILINE)
    found = json.loads(tinyft("lr-find", pictures, *tiny[:6], "--steps", "30", "--json").out)
    assert len(found["lr"]) == len(found["loss"]) == len(found["smooth_loss"])
    assert found["suggestions"]["minimum"]["lr"] > 0


def test_the_loss_that_explodes_does_not_flatten_the_curve_before_it():
    losses = np.array([3, 2, 1, 100], np.float32)
    rows = lr_find.curve_lines(LrFinding(np.logspace(-4, -1, 4), losses, losses, {}))[1:]
    assert [row.count("#") for row in rows] == [40, 20, 0, 40]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet10s", "resnet18", "resnet50", "cifar_resnet20"])
def test_summary_counts_every_parameter_once(tinyft, arch):
    done = tinyft("summary", arch, "--size", "32")
    assert done.code == 0, done.err
    *rows, total = done.out.splitlines()[1:]
    numbers = [int(row.split()[-1].replace(",", "")) for row in rows]
    expected = build(arch).count_parameters()
    assert sum(numbers) == expected
    assert total.startswith(f"{expected:,} parameters in all, {expected:,} of them train; ")
    assert "conv1" in rows[0]
    assert rows[-1].startswith("fc ")


def test_summary_shows_shapes_and_leaves_the_model_as_it_was():
    model = build("cifar_resnet20")
    before = {name: array.copy() for name, array in model.state_dict().items()}
    text = str(model.summary())
    line = r"^layer2\.0\.conv1 +conv2d +\(N, 16, 16, 32\) +2\.36 M +weights +4,608$"
    assert re.search(line, text, re.MULTILINE)
    line = r"^\(network\) +global_average_pool +\(N, 64\) +- +- +0$"
    assert re.search(line, text, re.MULTILINE)
    assert model.training
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())


# ---------------------------------------------------------------------------------------- gradcheck


def test_gradcheck_of_an_op(tinyft):
    done = tinyft("gradcheck", "relu")
    assert done.code == 0
    assert re.search(r"^(\d+) of \1 cases passed$", done.out, re.MULTILINE)
    done = tinyft("gradcheck", "relux")
    assert done.code == 2
    assert "there is no op 'relux'; there are add, " in done.error


@pytest.mark.slow
def test_gradcheck_draws_numbers_that_a_relu_lets_through():
    small = [c for c in OP_CASES if "one channel" in c.label and c.label[-4:] in ("used", "relu")]
    assert len(small) == 6
    for case in small:
        for seed in range(10):  # of one pixel, seed 1 gives a number below zero
            assert gradcheck.check_case(case, argparse.Namespace(seed=seed, mode=None)) < 1


@pytest.mark.parametrize(
    ("label", "seed"),
    [
        ("batch_norm 64 channels", 22),  # rounding that looked like a kink
        ("batch_norm_eval 64 channels, residual, relu", 281),  # a kink at a third of the step
    ],
)
def test_gradcheck_raises_no_false_alarm(label, seed):
    (case,) = [case for case in OP_CASES if str(case) == label]
    assert gradcheck.check_case(case, argparse.Namespace(seed=seed, mode=None)) < 1


def test_gradcheck_of_an_own_function(tinyft, tmp_path):
    (tmp_path / "own.py").write_text(FUNCTIONS)
    assert "gradcheck double: passed" in tinyft("gradcheck", "own.py:double").out
    done = tinyft("gradcheck", "own.py:double", "--shapes", "2x3", "--mode", "full")
    assert "mode full" in done.out
    assert "(2, 3)" in done.out
    done = tinyft("gradcheck", "own.py:wrong")
    assert done.code == 1
    first, *_, last = done.out.splitlines()
    assert "the gradient of input 0 (x) of wrong is wrong" in first
    assert last.startswith("  likely cause: half of what it should be")
    done = tinyft("gradcheck", "own.py:layer")
    assert done.code == 1
    assert "the gradient of parameter scale of Scaled is wrong" in done.out


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("own.py:gone", "has no function gone"),
        ("gone.py:f", "is no Python file"),
        ("broken.py:f", "cannot be run (ZeroDivisionError"),
        ("bare.py:f", "has no inputs()"),
        ("own.py:misspelt", "own.py:misspelt cannot be checked (NameError: name 'y'"),
    ],
)
def test_gradcheck_says_what_is_missing(tinyft, tmp_path, argument, words):
    (tmp_path / "own.py").write_text(FUNCTIONS)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "bare.py").write_text("def f(x): return x")
    done = tinyft("gradcheck", argument)
    assert done.code == 2
    assert words in done.error


def test_shapes_are_for_functions(tinyft):
    assert "--shapes is for a function" in tinyft("gradcheck", "relu", "--shapes", "2x3").error
    assert "expected shapes as 2x3" in tinyft("gradcheck", "a.py:f", "--shapes", "2by3").error


# ------------------------------------------------------------------------------- predict, evaluate


@pytest.mark.slow
def test_predict_prints_json_and_lines(tinyft, trained):
    files = ["pictures/cat/0.png", "pictures/dog/0.png"]
    found = json.loads(tinyft("predict", trained, *files, "--json").out)
    assert [entry["file"] for entry in found] == files
    assert all(set(entry) >= {"file", "label", "probability", "probabilities"} for entry in found)
    assert all(set(entry["probabilities"]) == {"cat", "dog"} for entry in found)
    assert all(entry["label"] in ("cat", "dog") for entry in found)
    assert all(0.5 <= entry["probability"] <= 1 for entry in found)
    assert len(tinyft("predict", f"{trained}/best.h5", "pictures").out.splitlines()) == 12


@pytest.mark.slow
def test_predict_names_or_skips_what_it_cannot_read(tinyft, trained, tmp_path):
    (tmp_path / "page.jpg").write_text("<html>")
    done = tinyft("predict", trained, "pictures/cat/0.png", "page.jpg")
    assert done.code == 2
    assert "page.jpg: not a picture" in done.error
    done = tinyft("predict", trained, "pictures/cat/0.png", "page.jpg", "gone.jpg", "--on-error",
                  "skip", "--json")  # fmt: skip
    assert done.code == 0
    assert len(json.loads(done.out)) == 1
    assert "skipped page.jpg" in done.err
    assert "skipped gone.jpg" in done.err


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="no pipes with names, no files with holes there")
def test_predict_refuses_a_pipe_and_what_is_larger_than_the_memory(tinyft, trained, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "pipe.jpg: not a regular file but a pipe" in tinyft("predict", trained, "pipe.jpg").error
    with open(tmp_path / "big.jpg", "wb") as file:
        file.truncate(1 << 40)
    assert "big.jpg: not a picture of a known format" in tinyft("predict", trained, "big.jpg").error


@pytest.mark.slow
def test_predict_passes_over_in_folders_what_training_passes_over(tinyft, trained, pictures):
    for leftover in (".hidden.png", "cat/._0.png", "__MACOSX/0.png"):
        (pictures / leftover).parent.mkdir(exist_ok=True)
        (pictures / leftover).write_bytes(b"no picture")
    done = tinyft("predict", trained, pictures)
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 12


def test_predict_with_published_weights(tinyft, pictures, tmp_path):
    file = published(tmp_path / "two.h5")
    done = tinyft("predict", file, "pictures/cat/0.png", "--json")
    assert json.loads(done.out)[0]["label"] in ("cat", "dog")


@pytest.mark.slow
def test_evaluate_all_pictures_or_the_validation_part(tinyft, trained, draw):
    assert json.loads(tinyft("evaluate", trained, "pictures", "--json").out)["n"] == 12
    split = draw({"train/cat": 4, "train/dog": 4, "test/cat": 3, "test/dog": 2}, folder="split")
    assert json.loads(tinyft("evaluate", trained, split, "--json").out)["n"] == 5
    done = tinyft("evaluate", trained, split)
    assert re.search(r"error \d+\.\d\d % \(\d wrong of 5\), loss", done.out)


@pytest.mark.slow
def test_evaluate_weights_on_folders_that_stand_for_their_classes(tinyft, pictures, tmp_path, draw):
    named = published(tmp_path / "named.h5")
    by_name = tinyft("evaluate", named, "pictures", "--json")
    assert by_name.code == 0, by_name.err
    other = published(tmp_path / "other.h5", classes=("x", "y"))
    by_order = tinyft("evaluate", other, "pictures", "--json")
    assert "the sorted names of the folders stand for the 2 classes" in by_order.err
    assert json.loads(by_order.out) == json.loads(by_name.out)
    only_dogs = tinyft("evaluate", named, draw({"dog": 6}, folder="dogs"), "--json")
    assert json.loads(only_dogs.out)["n"] == 6  # the name decides, not the place
    done = tinyft("evaluate", other, draw({"a": 2, "b": 2, "c": 2}, folder="three"))
    assert done.code == 2
    assert "has 3 classes and the weights tell 2 apart" in done.error
    done = tinyft("evaluate", named)
    assert done.code == 2
    assert "Give a folder" in done.error


def test_weights_without_a_classifier_evaluate_nothing(tinyft, pictures, tmp_path):
    arrays = build("cifar_resnet20", 2).state_dict()
    body = {n: np.ascontiguousarray(a) for n, a in arrays.items() if not n.startswith("fc.")}
    preprocess = Preprocess.for_architecture("cifar_resnet20")
    save_weights(tmp_path / "body.h5", Weights("cifar_resnet20", body, None, preprocess))
    done = tinyft("evaluate", "body.h5", "pictures")
    assert done.code == 2
    assert "apart" in done.error or "classifier" in done.error


# ------------------------------------------------------------------------------------------ weights


@pytest.mark.slow
def test_weights_there_and_back(tinyft, tmp_path):
    source = published(tmp_path / "a.h5")
    done = tinyft("weights", "export", source, "b.safetensors")
    assert done.code == 0, done.err
    assert "cifar_resnet20" in done.out
    done = tinyft("weights", "convert", "b.safetensors", "c.h5")
    assert done.code == 0, done.err
    assert "preprocessing assumed" in done.out
    first, last = load_weights(source), load_weights(tmp_path / "c.h5")
    assert list(first.arrays) == list(last.arrays)
    assert all(np.array_equal(first.arrays[name], last.arrays[name]) for name in first.arrays)
    assert tinyft("weights", "convert", "b.safetensors", "half.h5", "--half").code == 0
    assert (tmp_path / "half.h5").stat().st_size < 0.6 * (tmp_path / "c.h5").stat().st_size


def test_a_run_is_exported_for_onnx_runtime_and_for_pytorch(tinyft, trained, tmp_path):
    done = tinyft("weights", "export", trained, "out.onnx")
    assert done.code == 0, done.err
    assert "takes pictures (N, 32, 32, 3) uint8 RGB" in done.out
    assert b"GlobalMaxPool" in (tmp_path / "out.onnx").read_bytes()
    assert not (tmp_path / "load_in_pytorch.py").exists()
    for source in (trained, f"{trained}/learner.h5"):
        done = tinyft("weights", "export", source, "out.safetensors")
        assert done.code == 0, done.err
        assert "load_in_pytorch.py: loads it in PyTorch" in done.out
    (tmp_path / "load_in_pytorch.py").write_text("mine = 1")
    done = tinyft("weights", "export", trained, "out.safetensors", "--best")
    assert done.code == 0 and "stays as it is" in done.err
    assert (tmp_path / "load_in_pytorch.py").read_text() == "mine = 1"


def test_export_refuses_what_it_cannot_write(tinyft, trained, tmp_path):
    def refused(*arguments):
        done = tinyft("weights", "export", *arguments)
        assert done.code == 2, (done.out, done.err)
        return done.error

    assert "should end in .onnx or .safetensors; got out.pt" in refused(trained, "out.pt")
    (tmp_path / "a.onnx").mkdir()
    assert "a.onnx is a folder" in refused(trained, "a.onnx")
    assert "there is no folder nowhere" in refused(trained, "nowhere/a.onnx")
    assert "--best is for a run's folder" in refused(f"{trained}/best.h5", "b.onnx", "--best")
    assert "pictures is no run" in refused("pictures", "b.onnx")
    arrays = load_weights(f"{trained}/learner.h5").arrays
    body = {n: a for n, a in arrays.items() if not n.startswith("head.")}
    preprocess = Preprocess.for_architecture("cifar_resnet20")
    for own, message in (({}, "no classifier"), ({"head.a": np.ones(2, np.float32)}, "own")):
        odd = Weights("cifar_resnet20", body | own, None, preprocess, {"head": "custom"})
        save_weights(tmp_path / "odd.h5", odd)
        assert message in refused("odd.h5", "b.onnx")
    done = tinyft("weights", "export", "odd.h5", "b.safetensors")
    assert done.code == 0 and "no head of tinyft's" in done.err
    (tmp_path / trained / "learner.h5").unlink()
    assert "or take its best epoch with --best" in refused(trained, "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_convert_refuses_another_architecture_and_the_source_itself(tinyft, tmp_path):
    published(tmp_path / "a.h5")
    done = tinyft("weights", "convert", "a.h5", "b.h5", "--arch", "resnet18")
    assert done.code == 2
    assert "a.h5 is a cifar_resnet20, not a resnet18" in done.error
    done = tinyft("weights", "convert", "a.h5", "a.h5")
    assert done.code == 2
    assert "is the file to be read" in done.error
    done = tinyft("weights", "convert", "a.h5", "b.pth")
    assert done.code == 2
    assert "should end in .h5" in done.error


@pytest.mark.slow
def test_verify_finds_what_was_changed(tinyft, tmp_path):
    published(tmp_path / "a.h5")
    done = tinyft("weights", "verify", "a.h5")
    assert done.code == 0, done.err
    assert "every number is finite" in done.out
    assert json.loads(tinyft("weights", "verify", "a.h5", "--json").out)["classes"] == 2
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["weights/conv1/weight"][0, 0, 0, 0] += 1
    done = tinyft("weights", "verify", "a.h5")
    assert done.code == 1
    assert "a.h5" in done.error
    assert tinyft("weights", "verify", "gone.h5").code == 2


def test_names_from_a_file_do_not_steer_the_terminal(tinyft, tmp_path):
    weights = load_weights(published(tmp_path / "a.h5"))
    arrays = weights.arrays | {"head.\x1b[2J\nsha256 0": np.zeros(1, np.float32)}
    export_safetensors(replace(weights, arrays=arrays), tmp_path / "a.safetensors")
    done = tinyft("weights", "verify", "a.safetensors")
    assert done.code == 0, done.err
    assert r"extra head.\x1b[2J sha256 0" in done.out.splitlines()[2]


def test_list(tinyft):
    done = tinyft("weights", "list", "--arch", "resnet50")
    assert done.code == 0
    header, *rows = done.out.splitlines()
    assert header.split() == ["name", "architecture", "accuracy", "size", "licence"]
    assert len(rows) > 10 and all("resnet50" in row for row in rows)
    assert len(json.loads(tinyft("weights", "list", "--json").out)) > 10
    assert tinyft("weights", "list", "--arch", "resnet10s").out.endswith("(comes with tinyft)\n")
    assert tinyft("weights", "list", "--arch", "vgg16").code == 2


def test_fetch_names_what_is_near(tinyft, monkeypatch, tmp_path):
    monkeypatch.setenv("TINYFT_OFFLINE", "1")
    monkeypatch.setenv("TINYFT_HOME", str(tmp_path / "home"))
    done = tinyft("weights", "fetch", "resnet180")
    assert done.code == 2
    assert "resnet18" in done.error
    done = tinyft("weights", "fetch", "resnet18")
    assert done.code == 1
    assert "TINYFT_OFFLINE forbids" in done.error


# ---------------------------------------------------------------------------------- warmup, doctor


@pytest.mark.slow
def test_warmup(tinyft, monkeypatch):
    kernels, run_pieces = [], optimizers.run_pieces

    def listed(kernel, *arguments, **options):
        kernels.append(kernel.__name__)
        run_pieces(kernel, *arguments, **options)

    monkeypatch.setattr(optimizers, "run_pieces", listed)
    done = tinyft("warmup", "--arch", "cifar_resnet20", "--batch-size", "2")
    assert done.code == 0, done.err
    assert done.out.startswith("ready after")
    assert "sum_pieces" in kernels  # of a run, which measures its steps


@pytest.mark.slow
@pytest.mark.parametrize("command", ["warmup", "bench --rounds 1"])
def test_numba_that_may_not_compile_is_said(command, tmp_path):
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tinyft", *command.split()],
        capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode != 0
    assert "needs Numba: unset NUMBA_DISABLE_JIT" in done.stderr


@pytest.mark.slow
def test_doctor_without_compiling():
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tinyft", "doctor"], capture_output=True, text=True, env=environment
    )
    assert "backend: reference (plain NumPy): works" in done.stdout
    assert "backend cpu: backend 'cpu' needs Numba: unset NUMBA_DISABLE_JIT" in done.stdout


@pytest.mark.slow
def test_doctor_says_which_folder_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    environment = os.environ | {"TINYFT_HOME": str(tmp_path / "file")}
    done = subprocess.run(
        [sys.executable, "-m", "tinyft", "doctor"], capture_output=True, text=True, env=environment
    )
    assert "weights, which cannot be written; set TINYFT_HOME to a folder that can" in done.stdout
    assert "all works, but for a folder that cannot be written" in done.stdout


def test_doctor(tinyft):
    done = tinyft("doctor")
    assert done.code == 0, done.out
    assert "all is well" in done.out
    assert "MISSING" not in done.out
    with open(Path(__file__).parents[2] / "pyproject.toml", "rb") as file:
        required = tomllib.load(file)["project"]["dependencies"]
    assert {re.match(r"[\w-]+", text)[0] for text in required} <= set(doctor.PACKAGES)
    assert "backend: reference (plain NumPy): works" in done.out
