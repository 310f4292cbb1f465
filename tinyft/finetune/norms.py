"""How large a step was, per layer group: measured around the optimizer step, on request.

Next: tinyft/finetune/learner.py
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tinyft.finetune.groups import Group


def group_norms(groups: list[Group]) -> Callable[[], list[dict[str, float]]]:
    """Call before the optimizer's step; call the result after it, for one dict a group.

    gradient_norm, update_norm (weights after minus before), weight_norm (after): L2 over all
    tensors of the group. updated: how many tensors have a gradient.
    """
    before = [{n: p.data.copy() for n, p in group.parameters.items()} for group in groups]
    gradients = [[p.grad for p in group.parameters.values()] for group in groups]

    def measure() -> list[dict[str, float]]:
        return [
            {
                "gradient_norm": norm([g for g in grads if g is not None]),
                "update_norm": norm([p.data - old[n] for n, p in group.parameters.items()]),
                "weight_norm": norm([p.data for p in group.parameters.values()]),
                "updated": sum(g is not None for g in grads),
            }
            for group, old, grads in zip(groups, before, gradients, strict=True)
        ]

    return measure


def norm(arrays: list[np.ndarray]) -> float:
    """The L2 norm over all elements of all arrays, in float64."""
    return math.sqrt(sum(float(np.square(a, dtype=np.float64).sum()) for a in arrays))
