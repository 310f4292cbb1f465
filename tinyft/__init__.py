"""tinyft: fine-tune pretrained ResNets with NumPy and Numba alone, and see every step of it.

Names are looked up when first used: importing tinyft loads neither Numba nor h5py nor Pillow.

Next: tinyft/tensor.py
"""

from __future__ import annotations

import importlib
from typing import Any

from tinyft import display

__version__ = "0.1.0"

_HOME = {
    "Tensor": "tensor",
    "no_grad": "tensor",
    "op": "tensor",
    "gradcheck": "gradient_check",
    "trace": "inspection.microscope",
    "load_weights": "weights",
    "save_weights": "weights",
    "ImageFolder": "data",
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
}
_MODULES = (
    "backends",
    "data",
    "errors",
    "finetune",
    "inspection",
    "nn",
    "ops",
    "testing",
    "weights",
)

__all__ = [*_HOME, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"tinyft.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"tinyft.{name}")
    else:
        raise AttributeError(f"module 'tinyft' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _as_html(value: Any) -> str:
    """What a notebook shows of a `display.Displayed`: this package alone may ask the layers above
    the engine to draw for it.
    """
    return importlib.import_module("tinyft.inspection.notebook").as_html(value)


display.renderer = _as_html
