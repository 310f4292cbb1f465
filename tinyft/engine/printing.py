"""What a Tensor says of itself, in a terminal and in a notebook.

Tensor (16, 32, 32, 16) float32; made by conv2d in layer1.0.conv1; -3.1 to 2.9, mean 0.012
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinyft import backends

if TYPE_CHECKING:
    from tinyft.engine.tape import Recorded

SMALL = 100  # numbers: the values of a larger one, even shortened by NumPy, would fill a screen


def facts(tensor: Recorded) -> str:
    """One line: shape, dtype, the op and the layer that made it, its range, its gradient's norm."""
    words = [f"Tensor {tensor.shape} {tensor.dtype}"]
    if tensor.name:
        words.append(f"named {tensor.name}")
    if tensor.node:
        layer = f" in {tensor.node.layer}" if tensor.node.layer else ""
        words.append(f"made by {tensor.node.op}{layer}")
    elif tensor.requires_grad:
        words.append("a leaf that requires a gradient")
    words += _range(backends.host(tensor.data))
    if tensor.grad is not None:
        words.append(f"gradient of norm {norm(tensor.grad):.4g}")
    return "; ".join(words)


def norm(array: np.ndarray) -> float:
    """The Euclidean norm, summed in float64."""
    return float(np.sqrt(np.square(backends.host(array), dtype=np.float64).sum()))


def _range(values: np.ndarray) -> list[str]:
    """Of the finite numbers, and how many are not: one NaN would hide the others."""
    if values.dtype.kind not in "iuf" or values.size < 2:
        return []
    finite = values[np.isfinite(values)]
    words = []
    if finite.size:
        mean = finite.mean(dtype=np.float64)
        words.append(f"{finite.min():.4g} to {finite.max():.4g}, mean {mean:.4g}")
    if finite.size < values.size:
        words.append(f"{values.size - finite.size} of {values.size} are NaN or infinite")
    return words


def as_text(tensor: Recorded) -> str:
    """What `print` shows: the facts; of a small tensor its values too."""
    if tensor.size > SMALL:
        return facts(tensor)
    values = str(tensor.data)
    return facts(tensor) + ("\n" if "\n" in values else ": ") + values


def as_repr(tensor: Recorded) -> str:
    """What a prompt echoes: a small tensor's values; of a large one the facts."""
    if tensor.size > SMALL:
        return f"<{facts(tensor)}>"
    made_by = f", made by {tensor.node.op}" if tensor.node else ""
    return f"Tensor({tensor.data}{made_by})"
