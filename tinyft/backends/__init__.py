"""Chooses who computes an array (registry.py); defines every kernel in NumPy (reference.py)."""

from tinyft.backends.reference import Backend
from tinyft.backends.registry import (
    NAMES,
    assign,
    deferred_updates,
    device_of,
    get,
    gpu_available,
    gpu_info,
    host,
    numerics,
    of,
    place,
    place_like,
    resolve,
    use,
    watch,
    why_no_gpu,
    why_no_numba,
)

__all__ = [
    "NAMES",
    "Backend",
    "assign",
    "deferred_updates",
    "device_of",
    "get",
    "gpu_available",
    "gpu_info",
    "host",
    "numerics",
    "of",
    "place",
    "place_like",
    "resolve",
    "use",
    "watch",
    "why_no_gpu",
    "why_no_numba",
]
