"""A run that is killed at any moment and resumed ends with the same bits as one that was not."""

import json
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from tinyft.inspection import Ledger

pytestmark = pytest.mark.slow


OPTIONS = ["--weights", "none", "--arch", "cifar_resnet20", "--batch-size", "4", "--seed", "3"]
OPTIONS += ["--freeze-epochs", "1", "--epochs", "2"]
STEPS = 15  # 5 in each of 3 epochs

# Runs `tinyft ...` and kills the process without a warning when NAME (dotted, in tinyft.finetune
# or os) is called for the COUNT-th time: before the call, or after it.
KILLER = """
import importlib, os, signal, sys
import tinyft.finetune.run.folder
from tinyft.cli.main import main

tinyft.finetune.run.folder.SECONDS_BETWEEN_CHECKPOINTS = 0.0 if "often" in sys.argv[4] else 60.0
owner, name = sys.argv[1].rsplit(".", 1)
module, _, part = owner.partition(":")
owner = importlib.import_module(module)
owner = getattr(owner, part) if part else owner
original, left = getattr(owner, name), int(sys.argv[2])

def counted(*arguments, **options):
    global left
    left -= 1
    if left == 0 and sys.argv[3] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*arguments, **options)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, counted)
sys.exit(main(sys.argv[5:]))
"""


def contents(run):
    """All arrays of the last and the best learner, and the metrics, to the bit."""
    found = {"metrics": (run / "metrics.csv").read_text()}
    for name in ("learner.h5", "best.h5"):
        with h5py.File(run / name) as file:

            def note(path, item, name=name):
                if isinstance(item, h5py.Dataset):
                    found[f"{name}{path}"] = (item.dtype.str, item[()].tobytes())

            file.visititems(note)
            found[f"{name} metrics"] = file.attrs["metrics"]
    ledger = Ledger.read(run)
    assert ledger.balance() == []
    for name in ("steps", "groups", "layers", "ids", "statistics", "epochs", "phases"):
        found[f"ledger {name}"] = ledger.tables[name].tobytes()
    return found


def assert_same(run, reference):
    found, expected = contents(run), contents(reference)
    different = [name for name in expected if found.get(name) != expected[name]]
    assert not different
    assert set(found) == set(expected)
    result, wanted = (json.loads((r / "run.json").read_text())["result"] for r in (run, reference))
    assert result == wanted


@pytest.fixture(scope="module")
def folder(tmp_path_factory, draw_into):
    """Pictures, and the run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("resume")
    draw_into(folder / "pictures", {"cat": 12, "dog": 12})
    return folder


@pytest.fixture(scope="module")
def reference(folder, run_in):
    done = run_in(folder, "finetune", "pictures", *OPTIONS, "--out", "reference")
    assert done.code == 0, done.err
    assert len((folder / "reference" / "metrics.csv").read_text().splitlines()) == 1 + STEPS
    return folder / "reference"


RUN = "tinyft.finetune.run.folder"


@pytest.mark.parametrize(
    ("function", "count", "moment", "checkpoints", "begun"),
    [
        (f"{RUN}:Run.after_step", 1, "before", "rare", 0),  # nothing written but run.json
        (f"{RUN}:Run.after_step", 3, "after", "rare", 0),  # metrics, but no checkpoint
        (f"{RUN}:Run.after_step", 3, "after", "often", 3),  # within the frozen phase
        (f"{RUN}:Run._append", 7, "after", "often", 6),  # metrics ahead of the checkpoint
        (f"{RUN}:Run.checkpoint", 1, "after", "rare", 5),  # at the border of the phases
        (f"{RUN}:Run._drop_old", 9, "before", "often", 9),  # two checkpoints, an epoch's too
        (f"{RUN}.save", 1, "after", "rare", 0),  # best.h5 ahead of its checkpoint
        (f"{RUN}:Run.checkpoint", 3, "after", "rare", 15),  # all steps made, nothing reported
        (f"{RUN}:Run.end", 1, "after", "rare", None),  # too late
        ("os.replace", 3, "before", "often", 0),  # the ledger under its temporary name
        ("os.replace", 5, "before", "often", 1),  # a checkpoint under its temporary name
        (f"{RUN}.write_json", 2, "before", "rare", 15),  # learner.h5 saved, not said to be
    ],
)
def test_killed_and_resumed(
    folder, reference, run_in, environment, tmp_path, function, count, moment, checkpoints, begun
):
    run = tmp_path / "run"
    command = [sys.executable, "-c", KILLER, function, str(count), moment, checkpoints]
    command += ["finetune", "pictures", *OPTIONS, "--out", str(run)]
    killed = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = run_in(folder, "finetune", "--resume", run, "--json")
    if begun is None:
        assert done.code == 2
        assert "finished" in done.one_line_error()
    else:
        assert done.code == 0, done.err
        assert f"{begun} of {STEPS} steps were made before" in done.err
        assert json.loads(done.out)["run"] == str(run)
        assert "the head alone had " in done.err  # also if that was before
    assert_same(run, reference)
    assert not [*run.rglob("*.part")]


@pytest.mark.parametrize("count", [1, 2])
def test_killed_before_it_could_be_resumed(folder, reference, run_in, environment, tmp_path, count):
    """With pictures.csv or run.json under its temporary name: the same command begins anew."""
    run = tmp_path / "run"
    command = ["finetune", "pictures", *OPTIONS, "--out", str(run)]
    killer = [sys.executable, "-c", KILLER, "os.replace", str(count), "before", "rare"]
    killed = subprocess.run([*killer, *command], cwd=folder, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert [*run.glob(".*.part")]
    assert "start it anew" in run_in(folder, "finetune", "--resume", run).one_line_error()
    assert run_in(folder, *command).code == 0
    assert_same(run, reference)
    assert not [*run.rglob("*.part")]


def test_killed_at_any_time_and_several_times(folder, reference, start_in, run_in, tmp_path):
    """The clock decides. A run that was killed before it began is begun again."""
    run, kills = tmp_path / "run", 0
    for seconds in (0.4, 0.6, 0.8, 1.0, 1.2):
        begun = (run / "run.json").exists()
        if not begun:
            shutil.rmtree(run, ignore_errors=True)
        what = ["--resume", run] if begun else ["pictures", *OPTIONS, "--out", run]
        process = start_in(folder, "finetune", *what)
        time.sleep(seconds)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills > 1
    if not (run / "run.json").exists():
        shutil.rmtree(run, ignore_errors=True)
        assert run_in(folder, "finetune", "pictures", *OPTIONS, "--out", run).code == 0
    elif not json.loads((run / "run.json").read_text())["finished"]:
        assert run_in(folder, "finetune", "--resume", run).code == 0
    assert_same(run, reference)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_politely(folder, reference, start_in, run_in, tmp_path, number):
    run = tmp_path / "run"
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the run would inherit a deaf ear
    process = start_in(folder, "finetune", "pictures", *OPTIONS, "--out", run)
    deadline = time.monotonic() + 60
    while not (run / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert err.strip().splitlines()[-1] == (
        f"tinyft finetune: interrupted; go on with: tinyft finetune --resume {run}"
    )
    assert [*(run / "checkpoints").glob("*.h5")]
    assert run_in(folder, "finetune", "--resume", run).code == 0
    assert_same(run, reference)


def test_resume_notices_changed_pictures(folder, reference, run_in, tmp_path):
    pictures = tmp_path / "pictures"
    shutil.copytree(folder / "pictures", pictures)
    description = json.loads((reference / "run.json").read_text())
    description["data"]["arguments"]["path"] = str(pictures)
    description["finished"] = False
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    (run / "run.json").write_text(json.dumps(description))
    (pictures / "cat" / "0.png").unlink()
    done = run_in(folder, "finetune", "--resume", run)
    assert "the pictures of" in done.one_line_error()
    assert "have changed since it began (1 of them: cat/0.png)" in done.one_line_error()


def test_resume_says_that_other_versions_may_give_other_bits(folder, reference, run_in, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    description = json.loads((run / "run.json").read_text())
    description["finished"] = False
    description["versions"]["numpy"] = "1.0"
    (run / "run.json").write_text(json.dumps(description))
    done = run_in(folder, "finetune", "--resume", run)
    assert done.code == 0, done.err
    assert f"note: numpy was 1.0 and is {np.__version__} now: the bits may differ" in done.err
