"""tinyft: fine-tune pretrained ResNets with NumPy and Numba alone, and see every step of it.

Names are looked up when first used: importing tinyft loads neither Numba nor Pillow.
"""

from __future__ import annotations

import importlib
from typing import Any

from tinyft import display
from tinyft.lazy import looked_up_in
from tinyft.version import __version__

_HOME = {
    "Tensor": "engine.tensor",
    "no_grad": "engine.tape",
    "op": "engine.tape",
    "Node": "engine.tape",
    "observe": "engine.tape",
    "gradcheck": "testing.gradient_check",
    "compare_arrays": "testing.compare",
    "trace": "inspection.trace.recorder",
    "check": "inspection",
    "load_weights": "weights",
    "save_weights": "weights",
    "ImageFolder": "data",
    "ImageTable": "data",
    "ImageArrays": "data",
    "vision_learner": "finetune",
    "load_learner": "finetune",
    "Learner": "finetune",
    "Adam": "finetune",
    "SGD": "finetune",
    **dict.fromkeys(["Ledger", "snapshot", "changed"], "inspection"),
    **dict.fromkeys(["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"], "nn.resnet"),
    **dict.fromkeys(
        ["cifar_resnet20", "cifar_resnet32", "cifar_resnet44", "cifar_resnet56", "cifar_resnet110"],
        "nn.resnet",
    ),
    "backends": "backends",
    "data": "data",
    "errors": "errors",
    "finetune": "finetune",
    "inspection": "inspection",
    "nn": "nn",
    "ops": "ops",
    "testing": "testing",
    "weights": "weights",
}

__all__ = [*_HOME, "__version__"]
__getattr__ = looked_up_in(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)


def _as_html(value: Any) -> str:
    """Draw a `display.Displayed` for a notebook: this package alone may ask the layers above the
    engine to do so.
    """
    return importlib.import_module("tinyft.inspection.report.notebook").as_html(value)


display.renderer = _as_html
