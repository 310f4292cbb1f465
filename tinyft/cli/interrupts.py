"""Ctrl-C that is not lost, and signals of a scheduler or a closed terminal that end alike.

Python raises KeyboardInterrupt wherever the main thread happens to be. In two places nobody can
catch it: in a callback that LLVM calls while it compiles, and in a finaliser. There Python prints
it and goes on. So it is raised elsewhere only, or a little later. The other signals would end the
process without a word.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from tinyft.cli.failures import Stopped

LATER = 0.02  # s
# Files whose functions are called from where an exception goes nowhere; of Numba's, what a global
# that is gone calls.
_DEAF = (
    f"{os.sep}llvmlite{os.sep}",
    f"{os.sep}weakref.py:",
    os.sep + os.path.join("numba", "core", "typing", "context.py:on_disposal"),
)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal's handler: raises KeyboardInterrupt, as soon as it would be heard."""
    if _is_deaf(frame):
        threading.Timer(LATER, signal.raise_signal, [number]).start()
    else:
        raise Stopped(number)


def stopping() -> list[int]:
    """The signals that ask for an end: Ctrl-C, a scheduler's, and that of a terminal which goes
    away, unless `nohup` had it ignored.
    """
    found = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return found


def _is_deaf(frame: FrameType | None) -> bool:
    while frame is not None:
        function = f"{frame.f_code.co_filename}:{frame.f_code.co_name}"
        if any(place in function for place in _DEAF):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Within this block the signals of `stopping` call `interrupt`, where nobody else has set what
    they do.
    """
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
