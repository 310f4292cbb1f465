"""Ctrl-C reaches whoever waits for it, wherever the main thread is when it comes."""

import os
import signal
import time
import weakref
from types import SimpleNamespace

import pytest
from numba.core.typing.context import BaseContext

from tinyft import __main__
from tinyft.cli.failures import interrupt, signals_raise


class Something:
    pass


@pytest.fixture(autouse=True)
def foreground():
    """A shell ignores Ctrl-C for what it starts in the background, which tests may be."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_while_commands_are_imported(monkeypatch, capsys):
    monkeypatch.setattr("tinyft.cli.main.main", press)
    assert __main__.main() == 130
    assert capsys.readouterr().err == "tinyft: interrupted\n"


def press():
    os.kill(os.getpid(), signal.SIGINT)


def wait():
    for _ in range(500):
        time.sleep(0.01)
    pytest.fail("nothing was raised")


def test_at_once():
    with pytest.raises(KeyboardInterrupt), signals_raise():
        press()
        wait()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_a_finaliser_it_waits():
    """Python would print it there, and go on."""
    reached = []

    def finalise():
        press()
        reached.append("the end")

    with pytest.raises(KeyboardInterrupt), signals_raise():
        thing = Something()
        weakref.finalize(thing, finalise)
        del thing
        wait()
    assert reached == ["the end"]


def test_in_a_callback_of_the_compiler_it_waits(tmp_path):
    folder = tmp_path / "llvmlite"
    folder.mkdir()
    code = compile("press()\nreached.append('the end')", folder / "executionengine.py", "exec")
    reached = []
    with pytest.raises(KeyboardInterrupt), signals_raise():
        exec(code, {"press": press, "reached": reached})
        wait()
    assert reached == ["the end"]


def test_where_numba_forgets_a_global_it_waits():
    reached = []

    class Globals(dict):
        def pop(self, reference):
            press()
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt), signals_raise():
        thing = Something()
        BaseContext._insert_global(SimpleNamespace(_globals=Globals()), thing, "its type")
        del thing
        wait()
    assert reached == ["the end"]


def test_a_handler_of_somebody_else_stays():
    mine = []
    before = signal.signal(signal.SIGINT, lambda *_: mine.append(1))
    try:
        with signals_raise():
            press()
    finally:
        signal.signal(signal.SIGINT, before)
    assert mine == [1]


def test_no_frame():
    with pytest.raises(KeyboardInterrupt):
        interrupt(signal.SIGINT, None)
