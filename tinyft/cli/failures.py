"""Ends of a command that fails: an exception becomes one line and an exit code,
and signals become exceptions.

One rule: 2 is for what was asked, 1 for what happened. So what a command refuses before its work
begins is 2, and what ends the work is 1; each command says `args.working = True` between the two.
Where only the kind of the error can tell, it does: a device or a setting of the environment that is
none is 2, whenever it is first used; a loss that is NaN, too little memory, a full disk, no
network are 1, however early.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from tinyft.cli.output import one_line
from tinyft.errors import (
    DataError,
    DeviceError,
    NetworkError,
    NonFiniteLossError,
    TinyftError,
    WeightsError,
)


class RequestError(TinyftError):
    """A request that cannot be done as asked; always exit code 2."""


class Stopped(KeyboardInterrupt):
    """Training ended because a signal asked for it."""

    def __init__(self, number: int):
        self.number = number


FAILED, WRONG = 1, 2

# What no other request would have prevented.
_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
)
_REMEDIES = {
    errno.ENOSPC: "; free some space and try again",
    errno.EDQUOT: "; free some space and try again",
    errno.EMFILE: "; raise the limit of open files (ulimit -n)",
}


_RESTORE = "put them back as they were, or go on without them: --on-error skip"


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    """Within this block an error about a file says which file it is."""
    try:
        yield
    except WeightsError as error:
        if str(source) in str(error):
            raise
        raise error.about(source) from error


def exit_code_and_line(
    error: BaseException, *, working: bool, options: Mapping[str, Any], on_interrupt: str = ""
) -> tuple[int, str]:
    """(exit code, line). `working` says that the request was understood and work had begun,
    `options` are the command's, as they were given or not, and `on_interrupt` says how to go on
    with what was stopped by no fault of its own.
    """
    code = FAILED if working else WRONG
    if isinstance(error, KeyboardInterrupt):
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        return 128 + number, one_line(f"interrupted{on_interrupt}")
    if isinstance(error, RequestError | DeviceError):
        return WRONG, one_line(str(error))
    if isinstance(error, BrokenPipeError):
        return FAILED, "the output was closed before everything was written"
    if isinstance(error, MemoryError):
        return FAILED, one_line(f"the memory is not enough{_of_memory(error, options)}")
    if isinstance(error, OSError):
        if error.errno in _MACHINE:
            return FAILED, one_line(_of_system(error) + on_interrupt)
        return code, one_line(_of_system(error))
    if isinstance(error, NetworkError | NonFiniteLossError):  # nothing that was asked is wrong
        return FAILED, one_line(str(error))
    if isinstance(error, TinyftError | ValueError):
        return code, one_line(_in_options(error, working, options, on_interrupt))
    kind = type(error).__name__
    return FAILED, one_line(f"an error in tinyft, {kind}: {error}; --traceback shows where")


def _of_memory(error: MemoryError, options: Mapping[str, Any]) -> str:
    """Tell what could not be had, and the options that the command has against it."""
    smaller = {"batch_size": "--batch-size", "size": "--size"}
    has = [option for name, option in smaller.items() if name in options]
    advice = "" if _resumes(options) else " or ".join(has)
    detail = f" ({error})" if str(error) else ""
    return detail + (f"; use a smaller {advice}" if advice else "")


def _in_options(
    error: Exception, working: bool, options: Mapping[str, Any], on_interrupt: str
) -> str:
    """The library's message, its remedy and its arguments as options of the command line."""
    if not isinstance(error, TinyftError):
        return _spelled(str(error), options)
    if "on_error" in error.arguments:
        if "on_error" not in options or (_resumes(options) and options["on_error"] == "skip"):
            return error.message
        return f"{error.message}; {_RESTORE}" if _resumes(options) else error.spelled(_option)
    text = error.spelled(_option)
    if working and "on_error" in options and isinstance(error, DataError):
        if on_interrupt:  # a run, which can go on
            text += f"{on_interrupt} --on-error skip"
        elif options["on_error"] == "skip":
            text += "; it could be read when the folder was opened"
        else:
            text += "; --on-error skip leaves out such pictures"
    return _spelled(text, options)


def _spelled(text: str, options: Mapping[str, Any]) -> str:
    """The text with arguments of Python, head='linear', as this command's options, --head linear"""

    def typed(match: re.Match[str]) -> str:
        return _option(match[1], match[2].strip("'")) if match[1] in options else match[0]

    return re.sub(r"\b(\w+)=('\w+'|\d+(?:\.\d+)?)(?![\w.])", typed, text)


def _option(name: str, value: Any) -> str:
    """An argument of the library as it is typed here."""
    option = "--" + name.replace("_", "-")
    if value is True:  # the one such is an option of another command than that which failed
        return f"{option} (weights convert)"
    return f"{option} {'none' if value is None else shlex.quote(str(value))}"


def _resumes(options: Mapping[str, Any]) -> bool:
    """True if a run goes on, which it only does with the pictures and options that it had."""
    return options.get("resume") is not None


def _of_system(error: OSError) -> str:
    """The file and what is wrong with it, in the system's words."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    said = error.strerror or str(error) or type(error).__name__
    return ": ".join([*names, said]) + _REMEDIES.get(error.errno or 0, "")


# -------------------------------------------------------------------------------------- signals

# Python raises KeyboardInterrupt wherever the main thread happens to be. Where C code called back
# into Python (a callback of LLVM's compiler, a finaliser), an exception has nobody to go to: Python
# prints it and goes on, and the Ctrl-C is lost. There the signal is sent again a little later.

LATER = 0.02  # s
# Files whose functions C code calls back; Numba's is called when a global is garbage-collected.
_CALLED_BACK = (
    f"{os.sep}llvmlite{os.sep}",
    f"{os.sep}weakref.py:",
    os.sep + os.path.join("numba", "core", "typing", "context.py:on_disposal"),
)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal's handler: raises KeyboardInterrupt, as soon as somebody can catch it."""
    if _is_called_back(frame):
        threading.Timer(LATER, signal.raise_signal, [number]).start()
    else:
        raise Stopped(number)


def stopping() -> list[int]:
    """The signals that ask for an end: Ctrl-C, a scheduler's, and that of a terminal which goes
    away, unless `nohup` had it ignored.
    """
    signals: list[int] = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


def _is_called_back(frame: FrameType | None) -> bool:
    while frame is not None:
        function = f"{frame.f_code.co_filename}:{frame.f_code.co_name}"
        if any(place in function for place in _CALLED_BACK):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Let the signals of `stopping` call `interrupt`, where no other handler is set."""
    ours = {}
    if threading.current_thread() is threading.main_thread():
        nobodys = (signal.default_int_handler, signal.SIG_DFL)
        before = {number: signal.getsignal(number) for number in stopping()}
        ours = {number: handler for number, handler in before.items() if handler in nobodys}
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
