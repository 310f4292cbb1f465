"""`tinyft finetune`, `evaluate` and `predict` in processes that cannot reach the network."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


OPTIONS = ["--weights", "none", "--arch", "cifar_resnet20", "--batch-size", "4"]
ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def job(tmp_path_factory, draw_into, run_in):
    """A finished run, with what it printed."""
    folder = tmp_path_factory.mktemp("job")
    draw_into(folder / "pictures", {"cat": 12, "dog": 12})
    done = run_in(folder, "finetune", "pictures", *OPTIONS, "--freeze-epochs", "1", "--json")
    assert done.code == 0, done.err
    return folder, done


def test_stdout_is_one_line_of_json(job):
    _, done = job
    assert len(done.out.splitlines()) == 1
    found = json.loads(done.out)
    assert found["valid_accuracy"] >= 0.75  # red against green
    assert found["valid_loss"] > 0
    assert found["seconds"] > 0
    assert found["run"] == "runs/pictures-cifar_resnet20-1"


def test_stderr_says_what_is_done(job):
    _, done = job
    assert "phase 1   head alone, 1 epoch of 5 steps." in done.err
    assert re.search(r"backend: cpu \(Numba kernels\), \d+ threads?", done.err)
    assert re.search(
        r"epoch 1 of 4 \(head alone\): loss \d+\.\d+, valid loss \d+\.\d+, accuracy \d+\.\d\d %; "
        r"\d+ s left",
        done.err,
    )
    assert "head alone: proved unchanged, 19 of 105 tensors: conv1.weight" in done.err
    assert "everything: all 105 tensors changed, as planned" in done.err
    assert "epoch 4 of 4 (everything)" in done.err
    assert ESCAPE not in done.err
    assert max(map(len, done.err.splitlines())) <= 120


def test_the_next_command_works(job, run_in):
    folder, done = job
    told = done.err.partition("\nnext, ")[2].splitlines()[1:]
    command = shlex.split(told[0])
    assert command[:2] == ["tinyft", "predict"]
    predicted = run_in(folder, *command[1:])
    assert predicted.code == 0, predicted.err
    assert re.search(r"\d+\.\d\d %  (cat|dog)  pictures/", predicted.out)


def test_evaluate_finds_what_training_found(job, run_in):
    folder, done = job
    found = json.loads(done.out)
    again = json.loads(run_in(folder, "evaluate", found["run"], "--json").out)
    assert {name: again[name] for name in ("n", "accuracy", "loss")} == {
        "n": found["n_valid"],
        "accuracy": found["valid_accuracy"],
        "loss": found["valid_loss"],
    }


def test_the_run_is_complete(job):
    folder, done = job
    run = folder / json.loads(done.out)["run"]
    assert {"run.json", "metrics.csv", "learner.h5", "best.h5", "checkpoints"} <= {
        path.name for path in run.iterdir()
    }
    description = json.loads((run / "run.json").read_text())
    assert description["finished"]
    assert description["settings"]["command"][:3] == ["tinyft", "finetune", "pictures"]
    assert len((run / "metrics.csv").read_text().splitlines()) == 1 + 20


def test_the_network_is_taken_away_indeed(environment):
    code = "import urllib.request; urllib.request.urlopen('http://localhost:9')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert b"the network was used" in done.stderr


def test_published_weights_are_announced_before_the_network_is_asked(tinyft, pictures, monkeypatch):
    done = tinyft("finetune", pictures, "--arch", "resnet18")
    assert done.code in (1, 2)
    assert "Fetching torchvision/" in done.err or "TINYFT_OFFLINE" in done.err
    assert "Traceback" not in done.err


def test_two_runs_never_share_a_folder(start_in, tmp_path, pictures):
    processes = [
        start_in(tmp_path, "finetune", pictures, *OPTIONS, "--epochs", "1", "--json")
        for _ in range(3)
    ]
    found = [json.loads(process.communicate()[0])["run"] for process in processes]
    assert sorted(found) == [f"runs/pictures-cifar_resnet20-{i}" for i in (1, 2, 3)]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_gets_a_bar_unless_it_refuses_colours(
    start_in, environment, tmp_path, pictures, colour
):
    terminal, inside = os.openpty()
    variables = {**environment, "TERM": "xterm"} | ({} if colour else {"NO_COLOR": "1"})
    pipes = {"stdout": inside, "stderr": inside, "env": variables}
    process = start_in(tmp_path, "finetune", pictures, *OPTIONS, "--epochs", "8", **pipes)
    os.close(inside)
    text = b""
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not piece:
            break
        text += piece
    os.close(terminal)
    assert process.wait(60) == 0, text
    shown = text.decode()
    assert "accuracy" in shown
    assert (ESCAPE in shown) == colour
    assert ("everything: " in shown and " steps; " in shown) == colour  # the bar's words


def test_a_reader_that_leaves_early(start_in, tmp_path):
    process = start_in(tmp_path, "summary", "cifar_resnet110")
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.wait()
    process.stderr.close()
    assert "Traceback" not in err
    assert "Exception ignored" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_takes_nothing(start_in, tmp_path):
    with open("/dev/full", "w") as full:
        process = start_in(tmp_path, "summary", "cifar_resnet20", stdout=full)
        _, err = process.communicate()
    assert process.returncode == 1
    assert err.strip().splitlines() == [
        "tinyft summary: No space left on device; free some space and try again"
    ]


def test_help_is_quick_and_loads_nothing_heavy(environment):
    code = (
        "import sys\nfrom tinyft.cli.main import main\n"
        "try: main(['finetune', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'numba', 'h5py', 'PIL', 'rich'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_real_weights_on_real_pictures(shared, tinyft):
    """Two passes over few pixels: enough to see that the pretrained body is of use."""
    data = shared / "data"
    options = ["--weights", data / "resnet18_imagenet_pq.pth", "--size", "96", "--epochs", "1"]
    done = tinyft("finetune", data / "flowers12", *options, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["valid_accuracy"] > 0.5  # by chance: 0.08
