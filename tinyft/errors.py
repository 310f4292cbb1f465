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
call is Python's own ``TypeError``, and a file that the system will not open stays an ``OSError``.
"""

from __future__ import annotations

import math


class TinyftError(Exception):
    """The root: catching it catches every error that tinyft raises on purpose."""


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
