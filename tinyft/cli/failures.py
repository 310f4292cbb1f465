"""From an exception to one line and an exit code.

Next: tinyft/cli/output.py
"""

from __future__ import annotations

import errno
import signal

from tinyft.cli.output import one_line
from tinyft.errors import TinyftError


class RequestError(TinyftError):
    """What was asked for cannot be done as asked; always exit code 2."""


class Stopped(KeyboardInterrupt):
    """Training ended because a signal asked for it."""

    def __init__(self, number: int):
        self.number = number


FAILED, WRONG = 1, 2

# What no other request would have prevented.
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_REMEDIES = {
    errno.ENOSPC: "; free some space and try again",
    errno.EDQUOT: "; free some space and try again",
    errno.EMFILE: "; raise the limit of open files (ulimit -n)",
}


def explain(error: BaseException, *, working: bool, on_interrupt: str = "") -> tuple[int, str]:
    """(exit code, line). `working` says that the request was understood and work had begun."""
    code = FAILED if working else WRONG
    if isinstance(error, KeyboardInterrupt):
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        return 128 + number, one_line(f"interrupted{on_interrupt}")
    if isinstance(error, RequestError):
        return WRONG, one_line(str(error))
    if isinstance(error, MemoryError):
        advice = "use a smaller --batch-size or --size"
        return FAILED, one_line(f"the memory is not enough ({error or 'no detail'}); {advice}")
    if isinstance(error, OSError):
        return FAILED if error.errno in _MACHINE else code, one_line(_of_system(error))
    if isinstance(error, TinyftError | ValueError):
        return code, one_line(str(error))
    kind = type(error).__name__
    return FAILED, one_line(f"an error in tinyft, {kind}: {error}; --traceback shows where")


def _of_system(error: OSError) -> str:
    """The file and what is wrong with it, in the system's words."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    said = error.strerror or str(error) or type(error).__name__
    return ": ".join([*names, said]) + _REMEDIES.get(error.errno, "")
