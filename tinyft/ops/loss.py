"""The loss of a classifier."""

from __future__ import annotations

from typing import Any

from numpy import ndarray as Array

from tinyft import backends
from tinyft.engine.checks import expect_floats, expect_shape
from tinyft.engine.tape import Made
from tinyft.engine.tensor import Tensor, op
from tinyft.errors import ShapeError


@op
def cross_entropy(
    logits: Tensor,
    labels: Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: Array | None = None,
) -> Made:
    """The mean over a batch of -log softmax(logits)[label].

    With smoothing e a label is worth 1 - e + e / C, every other class e / C. With class weights
    each picture counts as much as its label's weight.

    Shapes: logits (N, C), labels (N,) integer array, class_weights (C,) array -> ()
    Raises: TypeError for integer logits, and labels or weights that are no such array, ShapeError
    for an empty batch, another shape or a label that is no class, ValueError for a smoothing
    outside 0 to 1
    Keeps: log-probabilities
    Source: PyTorch `torch.nn.functional.cross_entropy`
    """
    expect_shape("cross_entropy", "logits", logits.shape, ("N", "C"))
    expect_floats("cross_entropy", logits=logits)
    N, C = logits.shape
    if N == 0:
        raise ShapeError("cross_entropy: the batch is empty, so it has no mean loss")
    _check_labels(labels, N, C)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(
            f"cross_entropy: label_smoothing should be from 0 to 1 but is {label_smoothing}"
        )
    if class_weights is not None:
        _expect_array("class_weights", class_weights, "fiu", "numbers")
        expect_shape("cross_entropy", "class_weights", class_weights.shape, (C,))
        # a float64 array would make all gradients float64
        class_weights = class_weights.astype(logits.dtype, copy=False)
    backend = logits.backend
    labels = backends.place_like(labels, logits.data)  # once, for the gradient too
    loss, log_probabilities = backend.softmax_cross_entropy(
        logits.data, labels, label_smoothing, class_weights
    )

    # forward was: loss = -sum(target * log(probabilities)) / T; so: dlogits = (probabilities * t -
    # target) / T * dout. t is the sum of a row's target, T that of the batch's label weights
    # (without class weights 1 and N)
    def backward(dout):
        dlogits = backend.softmax_cross_entropy_grad(
            log_probabilities, labels, label_smoothing, class_weights
        )
        return (dlogits * dout,)

    return loss, backward


def _check_labels(labels: Any, N: int, C: int) -> None:
    """Raises: TypeError, ShapeError"""
    _expect_array("labels", labels, "iu", "integers, the number of each row's class")
    if labels.shape != (N,):
        raise ShapeError(
            f"cross_entropy: labels should be ({N},), a class for each row of logits, "
            f"but is {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= C:
        raise ShapeError(
            f"cross_entropy: labels should be from 0 to {C - 1}, since logits have {C} classes, "
            f"but go from {labels.min()} to {labels.max()}"
        )


def _expect_array(argument: str, value: Any, kinds: str, content: str) -> None:
    """Raise TypeError unless `value` is an array whose dtype is of one of these kinds."""
    if isinstance(value, Tensor) or not hasattr(value, "dtype"):
        remedy = "its .data" if isinstance(value, Tensor) else f"np.array({argument})"
        raise TypeError(
            f"cross_entropy: {argument} should be an array of {content}, but is a "
            f"{type(value).__name__}; pass {remedy}"
        )
    if value.dtype.kind not in kinds:
        raise TypeError(
            f"cross_entropy: {argument} should be an array of {content}, but is {value.dtype} "
            f"{value.shape}"
        )
