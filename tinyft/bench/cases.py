"""What is measured, and by whom: networks with their batches, and the sides that compute them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyft.seeds import generator

Side = Callable[[], Any]  # computes once; the loss, or the logits

LR, MOMENTUM = 1e-3, 0.9


@dataclass(frozen=True)
class Case:
    """A network and the batch it is given. `size` in pixels."""

    arch: str
    batch_size: int
    size: int

    def __str__(self) -> str:
        return f"{self.arch}, batch {self.batch_size}, {self.size} px"


CASES = (
    Case("resnet18", 16, 224),
    Case("resnet50", 16, 224),
    Case("cifar_resnet20", 128, 32),
    Case("resnet18", 64, 64),
)
MODES = ("training", "inference")


def batch(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Noise as pictures (N, H, W, 3) and labels (N,) below 10, the same at each call."""
    draw = generator(0, "bench")
    shape = (case.batch_size, case.size, case.size, 3)
    return draw.standard_normal(shape, np.float32), draw.integers(0, 10, case.batch_size)
