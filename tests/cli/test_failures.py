"""What goes wrong while a command works: one line, code 1, and a traceback only on request."""

import errno
import json
import os
import shlex
import signal
import sys
import warnings
from pathlib import Path

import pytest

from tinyft.cli import finetune
from tinyft.cli.failures import RequestError, Stopped, exit_code_and_line, stopping
from tinyft.cli.main import main
from tinyft.cli.output import one_line
from tinyft.display import duration
from tinyft.errors import DataError, DeviceError, NetworkError, NonFiniteLossError, RunError
from tinyft.finetune import Learner
from tinyft.finetune.records import Evaluation
from tinyft.finetune.run.folder import Run
from tinyft.weights import files


@pytest.mark.parametrize(
    ("error", "working", "code", "words"),
    [
        (RunError("broken"), True, 1, "broken"),
        (RunError("broken"), False, 2, "broken"),
        (RequestError("no"), True, 2, "no"),
        (OSError(errno.ENOSPC, "No space left", "x.h5"), False, 1, "x.h5: No space left; free"),
        (OSError(errno.ENOSPC, "No space left"), True, 1, "try again; go on"),
        (OSError(errno.EFBIG, "File too large", "x.h5"), True, 1, "x.h5: File too large; go on"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), False, 2, "x: No such file"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), True, 1, "x: Permission denied"),
        (BrokenPipeError(), True, 1, "output was closed"),
        (MemoryError("cannot allocate 3 GiB"), False, 1, "enough (cannot allocate 3 GiB)"),
        (KeyboardInterrupt(), True, 130, "interrupted; go on"),
        (Stopped(signal.SIGTERM), True, 143, "interrupted; go on"),
        (DeviceError("no gpu:9"), True, 2, "no gpu:9"),
        (NonFiniteLossError("the loss is nan"), False, 1, "the loss is nan"),
        (KeyError("x"), True, 1, "an error in tinyft, KeyError: 'x'; --traceback shows where"),
        (NetworkError("gone"), False, 1, "gone"),
        (RunError("two\n  lines"), True, 1, "two lines"),
    ],
)
def test_each_error_has_its_code_and_line(error, working, code, words):
    found, line = exit_code_and_line(error, working=working, options={}, on_interrupt="; go on")
    assert found == code
    assert words in line
    assert "\n" not in line


def failing(error):
    def fail(*arguments, **options):
        raise error

    return fail


@pytest.mark.slow
def test_a_full_disk(tinyft, pictures, tiny):
    flush = files.flush_to_disk

    def full(path, *access):
        if ".h5" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        flush(path, *access)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "flush_to_disk", full)
        done = tinyft("finetune", pictures, *tiny)
    assert done.code == 1
    assert "No space left on device; free some space and try again; go on with: " in done.error
    assert tinyft(*shlex.split(done.error.partition("go on with: tinyft ")[2])).code == 0


def test_a_process_without_stdout_or_stderr(tinyft, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
        assert main(["summary", "cifar_resnet20"]) == 0
        getattr(sys, name).close()
        monkeypatch.undo()


def test_a_warning_is_a_note(tinyft, monkeypatch):
    def warn(args):
        warnings.warn("two\nlines", stacklevel=1)
        return 0

    monkeypatch.setattr("tinyft.cli.summary.run", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = tinyft("summary", "resnet18")
    assert done.err == "note: two lines\n"


def test_memory_that_is_not_enough(tinyft, pictures, tiny, monkeypatch):
    monkeypatch.setattr(Learner, "train_step", failing(MemoryError("Unable to allocate 1 TiB")))
    done = tinyft("finetune", pictures, *tiny)
    assert done.code == 1
    assert "the memory is not enough (Unable to allocate 1 TiB)" in done.error


def test_a_loss_that_is_no_number(tinyft, pictures, tiny, monkeypatch):
    monkeypatch.setattr(Learner, "train_step", failing(NonFiniteLossError("the loss is nan")))
    done = tinyft("finetune", pictures, *tiny)
    assert done.code == 1
    assert done.error == "tinyft finetune: the loss is nan"


@pytest.mark.slow
def test_a_validation_that_is_no_number_ends_the_run(tinyft, pictures, tiny, monkeypatch):
    found = Evaluation(n=2, accuracy=0.5, loss=float("nan"))
    monkeypatch.setattr("tinyft.finetune.loop.evaluate", lambda *_, **__: found)
    done = tinyft("finetune", pictures, *tiny)
    assert done.code == 1
    assert "the validation after step 1 has a loss of nan (learning rates: " in done.error
    assert "training diverged. Use a smaller learning rate" in done.error


@pytest.mark.slow
def test_a_mistake_of_ours_shows_its_traceback_on_request_only(tinyft, pictures, tiny, monkeypatch):
    monkeypatch.setattr(Learner, "train_step", failing(KeyError("oops")))
    assert "an error in tinyft, KeyError: 'oops'" in tinyft("finetune", pictures, *tiny).error
    done = tinyft("finetune", pictures, *tiny, "--traceback")
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.err


@pytest.mark.slow
def test_a_picture_that_turns_out_to_be_cut_off(tinyft, pictures, tiny):
    whole = (pictures / "cat" / "0.png").read_bytes()
    (pictures / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])
    done = tinyft("finetune", pictures, *tiny)
    assert done.code == 2
    assert "1 of 12 pictures cannot be used" in done.error and "cat/0.png" in done.error
    assert done.error.endswith("remove them, or leave them out with --on-error skip")
    assert not Path("runs").exists()  # nothing was begun
    done = tinyft("finetune", pictures, *tiny, "--on-error", "skip", "--json")
    assert done.code == 0, done.err
    assert "note: skipped: 1 of 12 pictures cannot be used: cat/0.png" in done.err


def test_an_option_that_a_command_lacks_is_not_advised():
    error = DataError("cat/0.png: broken")
    skips = {"on_error": None}
    assert "--on-error skip" in exit_code_and_line(error, working=True, options=skips)[1]
    assert exit_code_and_line(error, working=True, options={})[1] == "cat/0.png: broken"
    _, line = exit_code_and_line(error, working=True, options={"on_error": "skip"})
    assert line == "cat/0.png: broken; it could be read when the folder was opened"
    go_on = "; go on with: tinyft finetune --resume a"
    _, line = exit_code_and_line(error, working=True, options=skips, on_interrupt=go_on)
    assert line == f"cat/0.png: broken{go_on} --on-error skip"
    lost = DataError("1 picture is gone", remedy="mend it, or use {on_error}", on_error="skip")
    assert exit_code_and_line(lost, working=False, options={})[1] == "1 picture is gone"
    _, line = exit_code_and_line(MemoryError(), working=True, options=skips | {"batch_size": None})
    assert line == "the memory is not enough; use a smaller --batch-size"
    _, line = exit_code_and_line(MemoryError(), working=True, options=skips)
    assert line == "the memory is not enough"


def test_the_option_is_named_as_it_is_typed(tinyft, pictures, tiny):
    (pictures / "cat" / "page.jpg").write_text("<html>")
    done = tinyft("finetune", pictures, *tiny)
    assert done.code == 2
    assert "leave them out with --on-error skip" in done.error


def test_a_run_that_another_process_works_on(tinyft, trained, tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / trained / ".lock"):
        done = tinyft("finetune", "--resume", trained)
    assert done.code == 2
    assert "another process is at work" in done.error


def test_the_first_signal_asks_and_the_second_stops(capsys):
    training = Run(path=None)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), finetune.noted_signals(training) as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert training.stop_requested
        assert received == [signal.SIGINT]
        assert "once more stops at once" in capsys.readouterr().err
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_under_nohup_a_terminal_that_goes_away_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in stopping()
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_training_ends_with_a_line(tinyft, pictures, tiny, monkeypatch, number):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may be ignoring it
    monkeypatch.setattr(Learner, "plan", lambda *_, **__: os.kill(os.getpid(), number))
    done = tinyft("finetune", pictures, *tiny)
    signal.signal(signal.SIGINT, before)
    assert (done.code, done.err.splitlines()[-1]) == (128 + number, "tinyft finetune: interrupted")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
def test_stopping_leaves_a_checkpoint_and_says_how_to_go_on(tinyft, pictures, tiny, tmp_path):
    stop = Run.after_step

    def stop_at_once(self, learner, record):
        os.kill(os.getpid(), signal.SIGINT)
        stop(self, learner, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "after_step", stop_at_once)
        done = tinyft("finetune", pictures, *tiny, "--epochs", "3")
    assert done.code == 130
    folder = "runs/pictures-cifar_resnet20-1"
    assert done.error.endswith(f"interrupted; go on with: tinyft finetune --resume {folder}")
    assert [p.name for p in (tmp_path / folder / "checkpoints").iterdir()] == ["000001.h5"]
    for ledger in (tmp_path / folder).glob("ledger.*"):
        ledger.unlink()
    done = tinyft("finetune", "--resume", folder, "--json")
    assert done.code == 0, done.err
    assert "note: the steps before are in no ledger; it begins with this session" in done.err
    assert "1 of 6 steps were made before" in done.err
    assert json.loads(done.out)["run"] == folder


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="file names are text there")
def test_a_run_whose_name_is_no_text(tinyft, pictures, tiny):
    done = tinyft("finetune", pictures, *tiny, "--out", os.fsdecode(b"run-\xff"))
    assert done.code == 0, done.err
    run = Path(os.fsdecode(b"run-\xff"))
    assert (run / "learner.h5").exists()
    pages = ("report", run), ("diff", run, "--html", "d"), ("inspect", run, "--step=0", "--html=i")
    for page in pages:
        assert tinyft(*page).code == 0
    assert "run-\\udcff" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.skipif(os.name != "posix", reason="a folder in use cannot be deleted there")
def test_a_current_folder_that_is_gone(tinyft, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = tinyft("summary", "resnet18")
    monkeypatch.chdir(tmp_path)
    assert done.code == 2
    assert "the current folder no longer exists" in done.error


def test_words():
    assert one_line("a\tb\n c\x07\n") == "a b c\\x07"
    assert one_line("my  photos 12.30\u202fPM ") == "my  photos 12.30\u202fPM "
    assert [duration(s) for s in (0.4, 59.6, 185, 7800)] == [
        "0 s",
        "1 min 00 s",
        "3 min 05 s",
        "2 h 10 min",
    ]
