"""Inspection: watches training from outside. Nothing below this folder imports it."""

from tinyft.lazy import looked_up_in

_HOME = {
    "Ledger": "ledger.ledger",
    **dict.fromkeys(["ablate", "clamp", "swap"], "trace.activations"),
    "changed": "ledger.changes",
    "check": "dataset.looking",
    "explain": ".finetune.in_words",
    "explain_image": "report.images",
    "grad_cams": "report.images",
    "judge_pictures": "report.learned",
    "snapshot": "ledger.changes",
    "write_report": "report.report",
}

__all__ = [*_HOME]
__getattr__ = looked_up_in(__name__, _HOME)  # each costs imports of its own


def __dir__() -> list[str]:
    return sorted(__all__)
