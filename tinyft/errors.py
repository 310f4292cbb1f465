"""The few exceptions that a user of tinyft can catch.

::

    TinyftError
    ├── ShapeError (also a ValueError)   two arrays do not fit together
    ├── DeviceError                      a device is missing, or arrays are on different ones
    ├── WeightsError                     a weights file cannot be read, trusted, fetched or fitted
    │   └── NetworkError                 ... because the network or a server failed
    ├── DataError                        a folder, picture or array of examples cannot be used
    ├── RunError                         a run's folder cannot be written, read or resumed
    └── NonFiniteLossError               the loss became NaN or infinite

Every message says what was expected, what was given, and what to do about it.  A wrong type in a
call is Python's own `TypeError`, and a file that the system will not open stays an `OSError`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Self


class TinyftError(Exception):
    """The root: catching it catches every error that tinyft raises on purpose.

    `remedy` is the end of the message, with {name} for an argument of the call that failed, whose
    value is given beside it. Python reads `name=value` there, the command line its own option:

        DataError("2 pictures are broken", remedy="skip them with {on_error}", on_error="skip")
    """

    def __init__(self, message: str = "", *, remedy: str = "", **arguments: Any):
        self.message = message
        self.remedy = remedy
        self.arguments: dict[str, Any] = arguments
        super().__init__(self.spelled(lambda name, value: f"{name}={value!r}"))

    def spelled(self, argument: Callable[[str, Any], str]) -> str:
        """The message with each argument of the remedy as `argument(name, value)` spells it."""
        if not self.remedy:
            return self.message
        spelled = {name: argument(name, value) for name, value in self.arguments.items()}
        return f"{self.message}; {self.remedy.format(**spelled)}"

    def about(self, source: str) -> Self:
        """The same error with "source: " before its message."""
        named = copy.copy(self)
        named.message = f"{source}: {self.message}"
        named.args = (f"{source}: {self}",)
        return named


class ShapeError(TinyftError, ValueError):
    """Arrays whose shapes do not fit the operation that was asked of them."""


class DeviceError(TinyftError):
    """A device that is not there, or arrays that lie on different devices."""


class WeightsError(TinyftError):
    """Weights that cannot be read, are refused as unsafe, or do not fit the architecture."""


class NetworkError(WeightsError):
    """Published weights that could not be had, or not all of them; trying again may help."""


class DataError(TinyftError):
    """Pictures, folders or labels that cannot be used."""


class RunError(TinyftError):
    """A run's folder that cannot be written, read or resumed."""


class NonFiniteLossError(TinyftError):
    """A loss that is NaN or infinite, and is `loss`; the message names the step, the rates and a
    remedy.
    """

    def __init__(self, message: str, loss: float = math.nan):
        super().__init__(message)
        self.loss = loss
