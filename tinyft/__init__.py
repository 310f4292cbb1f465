"""tinyft: fine-tune pretrained ResNets with NumPy and Numba alone, and see every step of it.

Names are looked up when first used: importing tinyft loads neither Numba nor Pillow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tinyft import display
from tinyft.lazy import looked_up_in
from tinyft.version import __version__

if TYPE_CHECKING:  # the same names for editors, which do not run the look-up
    from tinyft import backends as backends
    from tinyft import data as data
    from tinyft import errors as errors
    from tinyft import finetune as finetune
    from tinyft import inspection as inspection
    from tinyft import nn as nn
    from tinyft import ops as ops
    from tinyft import testing as testing
    from tinyft import weights as weights
    from tinyft.data import ImageArrays as ImageArrays
    from tinyft.data import ImageFolder as ImageFolder
    from tinyft.data import ImageTable as ImageTable
    from tinyft.engine.tape import Node as Node
    from tinyft.engine.tape import no_grad as no_grad
    from tinyft.engine.tape import observe as observe
    from tinyft.engine.tensor import Tensor as Tensor
    from tinyft.engine.tensor import op as op
    from tinyft.finetune import RECIPES as RECIPES
    from tinyft.finetune import SGD as SGD
    from tinyft.finetune import Adam as Adam
    from tinyft.finetune import Learner as Learner
    from tinyft.finetune import load_learner as load_learner
    from tinyft.finetune import vision_learner as vision_learner
    from tinyft.inspection import Ledger as Ledger
    from tinyft.inspection import changed as changed
    from tinyft.inspection import check as check
    from tinyft.inspection import snapshot as snapshot
    from tinyft.inspection.trace.recorder import trace as trace
    from tinyft.nn.resnet import cifar_resnet20 as cifar_resnet20
    from tinyft.nn.resnet import cifar_resnet32 as cifar_resnet32
    from tinyft.nn.resnet import cifar_resnet44 as cifar_resnet44
    from tinyft.nn.resnet import cifar_resnet56 as cifar_resnet56
    from tinyft.nn.resnet import cifar_resnet110 as cifar_resnet110
    from tinyft.nn.resnet import resnet18 as resnet18
    from tinyft.nn.resnet import resnet34 as resnet34
    from tinyft.nn.resnet import resnet50 as resnet50
    from tinyft.nn.resnet import resnet101 as resnet101
    from tinyft.nn.resnet import resnet152 as resnet152
    from tinyft.testing.compare import compare_arrays as compare_arrays
    from tinyft.testing.gradient_check import gradcheck as gradcheck
    from tinyft.weights import load_weights as load_weights
    from tinyft.weights import save_weights as save_weights

_HOME = {
    "Tensor": "engine.tensor",
    "no_grad": "engine.tape",
    "op": "engine.tensor",
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
    "RECIPES": "finetune",
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

if not TYPE_CHECKING:  # or every name would seem to be there
    __all__ = [*_HOME, "__version__"]
    __getattr__, __dir__ = looked_up_in(__name__, _HOME)


def _as_html(value: Any) -> str:
    """Draw a `display.Displayed` for a notebook: this package alone may ask the layers above the
    engine to do so.
    """
    return importlib.import_module("tinyft.inspection.report.notebook").as_html(value)


display.renderer = _as_html
