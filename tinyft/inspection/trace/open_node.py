"""One node under the microscope: its formula, and three entries of each gradient by finite
differences.

The formula is the op's own docstring, the derivative the comment above its `backward`: what is
shown is what the source says.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyft import backends
from tinyft.engine.tensor import Tensor
from tinyft.inspection.trace.kernel_watch import as_float64
from tinyft.seeds import generator

ENTRIES = 3
# Of an array's root mean square. In float64 differences are then good to about 1e-9; a larger step
# of a bias would carry some of the thousands of numbers that it shifts over a ReLU's kink.
STEP = 1e-6
KINK = 1e-4  # the slopes on both sides of a smooth function agree to this, those of a kink do not
# The ops that add and rectify in the same pass, under the names by which they are called.
FUSED = {
    "conv2d": "conv2d",
    "batch_norm_train": "batch_norm",
    "batch_norm_fixed": "batch_norm_eval",
}


@dataclass(frozen=True)
class GradientEntry:
    """One entry of a gradient: from backward, and from finite differences of forward.

    `difference` is relative to the largest number of that gradient. `kink` says that forward has
    no derivative there.
    """

    input: str
    index: tuple[int, ...]
    backward: float
    numeric: float
    difference: float
    kink: bool


def composition_of(op: str, options: dict[str, Any]) -> str:
    """The plain ops that one call stands for, from its arguments by name: "batch_norm + add +
    relu"; of what is not fused, its name.
    """
    if op not in FUSED:
        return op
    parts = [FUSED[op]]
    if options.get("residual") is not None:
        parts.append("add")
    if options.get("relu"):
        parts.append("relu")
    return " + ".join(parts)


def derivative_of(function: Callable[..., Any]) -> str:
    """The comment above an op's `backward`; empty where there is none."""
    try:
        lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    except (OSError, TypeError):  # typed at a prompt
        return ""
    at = next((i for i, line in enumerate(lines) if line.strip().startswith("def backward")), 0)
    comment: list[str] = []
    while at > 0 and lines[at - 1].strip().startswith("#"):
        at -= 1
        comment.insert(0, lines[at].strip().removeprefix("#").strip())
    return " ".join(comment).removeprefix("forward was: ")


def check_entries(
    function: Callable[..., Any],
    args: tuple,
    options: dict[str, Any],
    names: Sequence[str],
    dout: np.ndarray,
    gradients: Sequence[np.ndarray | None],
    seed: int,
) -> list[GradientEntry]:
    """For each input with a gradient its largest entry and two drawn from the others.

    The op is evaluated in float64 by the reference kernels, at the very arrays of the step;
    `dout` is the gradient that arrived.
    """
    copies = {id(value): _float64(value) for value in [*args, *options.values()]}
    args = tuple(copies[id(value)] for value in args)
    options = {name: copies[id(value)] for name, value in options.items()}
    tensors = [a for a in args if isinstance(a, Tensor)]
    tensors += [options[n] for n in names if n in options and isinstance(options[n], Tensor)]
    dout = backends.host(dout).astype(np.float64)

    def forward() -> np.ndarray:
        result, _ = function(*args, **options)
        return backends.host(result[0] if isinstance(result, tuple) else result)

    entries = []
    with backends.watch(None), backends.use("reference"):
        here = forward()
        for name, x, gradient in zip(names, tensors, gradients, strict=True):
            if gradient is None or gradient.size == 0:
                continue
            gradient = backends.host(gradient)
            for place in _places(gradient, seed):
                entries.append(_entry(forward, here, name, x.data, place, dout, gradient))
    return entries


def _float64(value: Any) -> Any:
    """A Tensor or a float array in float64, in main memory; all else as it is."""
    if isinstance(value, Tensor):
        copy = Tensor.wrap(_float64(value.data).copy())
        copy.requires_grad = value.requires_grad
        return copy
    return as_float64(value)


def _places(gradient: np.ndarray, seed: int) -> list[tuple[int, ...]]:
    """The largest entry, and others that are not 0 (if there are any): a zero checks little."""
    flat = np.abs(np.ascontiguousarray(gradient)).reshape(-1)
    largest = int(flat.argmax())
    candidates = np.flatnonzero(flat)
    if len(candidates) < ENTRIES:
        candidates = np.arange(flat.size)
    others = candidates[candidates != largest]
    drawn = generator(seed, "inspect").permutation(len(others))[: ENTRIES - 1]
    return [
        tuple(int(i) for i in np.unravel_index(flat_place, gradient.shape))
        for flat_place in (largest, *others[drawn])
    ]


def _entry(
    forward: Callable[[], np.ndarray],
    here: np.ndarray,
    name: str,
    x: np.ndarray,
    place: tuple[int, ...],
    dout: np.ndarray,
    gradient: np.ndarray,
) -> GradientEntry:
    """One entry by a central difference; `here` is the result at x itself."""
    original = x[place]
    step = STEP * (float(np.sqrt(np.mean(np.square(x)))) or 1.0)
    x[place] = original + step
    above = float((dout * (forward() - here)).sum()) / step
    x[place] = original - step
    below = float((dout * (here - forward())).sum()) / step
    x[place] = original
    numeric, analytic = (above + below) / 2, float(gradient[place])
    largest = float(np.abs(gradient).max()) or 1.0
    kink = abs(above - below) > KINK * max(largest, abs(numeric))
    return GradientEntry(name, place, analytic, numeric, abs(analytic - numeric) / largest, kink)
