"""Work that tells how far it is, and who shows it."""

import errno
import io
import re
import threading
from types import SimpleNamespace

import pytest

from tests.finetune.conftest import small_learner
from tinyft import progress
from tinyft.progress import showing, tracked, working


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is moved."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    return now


def test_nothing_is_printed_unless_somebody_shows_it(capfd, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    assert list(tracked("abc", "spelling", 3)) == ["a", "b", "c"]
    small_learner().fine_tune(1)  # may say that it compiles
    capfd.readouterr()
    small_learner().fine_tune(1, progress=False)
    assert capfd.readouterr() == ("", "")


def test_training_prints_the_table_of_fastai(capfd):
    small_learner().fine_tune(2, progress=True)
    out = capfd.readouterr().out
    header = "epoch     train_loss  valid_loss  accuracy  time    "
    lines = out.splitlines()
    assert [line == header for line in lines] == [True, False, True, False, False]
    assert [line[:10] for line in lines[2:]] == ["epoch     ", "0         ", "1         "]
    assert [len(line) for line in lines] == 5 * [len(header)]
    assert re.fullmatch(r"\d\d:\d\d   ", lines[1][-8:])


def test_the_time_left_forgets_the_first_step_which_compiles(clock):
    with working("head alone", 10, "steps", done=2) as work:
        left = []
        for seconds in (15.0, 17.0, 19.0):
            clock.seconds = seconds
            work.advance()
            left.append(work.left())
    assert left == ["1 min 45 s left", "12 s left", "10 s left"]
    assert str(work) == "head alone: 5 of 10 steps; 10 s left"


def test_a_pipe_gets_a_line_every_30_seconds(clock):
    with showing(pipe := io.StringIO()):
        for _ in tracked(range(4), "judging", 4):
            clock.seconds += 16.0
    assert pipe.getvalue().splitlines() == [
        "  judging: 2 of 4 pictures; 32 s left",
        "  judging: 4 of 4 pictures; done",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [60, 120])
def test_a_terminal_gets_a_bar_that_fits_and_goes(monkeypatch, columns):
    for name, value in {"COLUMNS": columns, "TERM": "xterm"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(progress, "SECONDS_BEFORE_BAR", 0.0)
    with showing(terminal := Terminal()) as display:
        with working("everything", 1000, "steps") as work:
            display.timers[work].join()
            work.advance(900, "loss 3.0627, accuracy 64.81 %, and much else that is of interest")
            display.line("epoch 1 of 2")
            display.progress.refresh()
            assert display.tasks
        assert not display.tasks
    bar = terminal.getvalue().rpartition("everything: 900 of 1000 steps; ")[2]
    assert "epoch 1 of 2" in terminal.getvalue()
    assert ("of interest" in bar) == (columns == 120)


def test_a_loop_that_was_left_early_ends_quietly():
    with showing(io.StringIO(), bars=True):
        left = tracked("abc", "spelling", 3)
        assert next(left) == "a"
    left.close()


def test_kernels_that_are_compiled_are_counted():
    with showing(io.StringIO()) as display:
        for before in range(3):
            display.compile(before, 40)
        assert str(display.works[0]).startswith("compiling: 2 of 40 kernels or so; ")
        with working("head alone", 2, "steps") as work:
            work.advance()
            assert display.works == [work]


def test_other_threads_show_nothing():
    with showing(io.StringIO()):
        found = []
        thread = threading.Thread(target=lambda: found.append(progress.shown()))
        thread.start()
        thread.join()
    assert found == [None]


def test_a_terminal_that_goes_away_does_not_stop_the_bar(monkeypatch):
    written = []

    class Gone(Terminal):
        def write(self, text):
            written.append(text)
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(progress, "SECONDS_BEFORE_BAR", 0.0)
    with showing(Gone(), bars=True) as display, working("head alone", 10) as work:
        display.line("epoch 1 of 2")
        display.timers[work].join()
        work.advance()
        display.line("epoch 2 of 2")
        display.progress.refresh()
    assert all(any(f"epoch {n} of 2" in text for text in written) for n in (1, 2))
