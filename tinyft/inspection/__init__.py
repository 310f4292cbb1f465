"""Inspection: watches training from outside. Nothing below this folder imports it.

Next: tinyft/inspection/freeze.py
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Ledger": "ledger",
    "changed": "freeze",
    "explain": "plan_in_words",
    "explain_image": "image_stages",
    "grad_cams": "grad_cam",
    "judge_pictures": "learned",
    "snapshot": "freeze",
    "write_report": "report",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """A public name, from its file when it is first used: each costs imports of its own."""
    if name not in _HOME:
        raise AttributeError(f"module 'tinyft.inspection' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tinyft.inspection.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
