"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever the main thread happens to be. In two places nobody can
catch it: in a callback that LLVM calls while it compiles, and in a finaliser. There Python prints
it and goes on. So it is raised elsewhere only, or a little later.

Next: tinyft/cli/failures.py
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

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
        raise KeyboardInterrupt


def _is_deaf(frame: FrameType | None) -> bool:
    while frame is not None:
        function = f"{frame.f_code.co_filename}:{frame.f_code.co_name}"
        if any(place in function for place in _DEAF):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Within this block Ctrl-C calls `interrupt`, where it would have raised KeyboardInterrupt."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ours = ours and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
