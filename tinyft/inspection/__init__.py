"""Inspection: watches training from outside. Nothing below this folder imports it.

Next: tinyft/inspection/freeze.py
"""

from tinyft.lookup import looked_up_in

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

__all__ = [*_HOME]
__getattr__ = looked_up_in(__name__, _HOME)  # each costs imports of its own


def __dir__() -> list[str]:
    return sorted(__all__)
