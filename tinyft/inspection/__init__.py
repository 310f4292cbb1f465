"""Inspection: watches training from outside. Nothing below this folder imports it."""

from typing import TYPE_CHECKING

from tinyft.lazy import looked_up_in

if TYPE_CHECKING:  # the same names for editors, which do not run the look-up
    from tinyft.finetune.in_words import explain as explain
    from tinyft.inspection.dataset.looking import check as check
    from tinyft.inspection.ledger.changes import changed as changed
    from tinyft.inspection.ledger.changes import snapshot as snapshot
    from tinyft.inspection.ledger.ledger import Ledger as Ledger
    from tinyft.inspection.report.images import explain_image as explain_image
    from tinyft.inspection.report.images import grad_cams as grad_cams
    from tinyft.inspection.report.learned import judge_pictures as judge_pictures
    from tinyft.inspection.report.report import write_report as write_report
    from tinyft.inspection.trace.activations import ablate as ablate
    from tinyft.inspection.trace.activations import clamp as clamp
    from tinyft.inspection.trace.activations import swap as swap

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

if not TYPE_CHECKING:  # or every name would seem to be there
    __all__ = [*_HOME]
    __getattr__, __dir__ = looked_up_in(__name__, _HOME)  # each costs imports of its own
