"""The loss of a classifier.

Next: tinyft/nn/module.py
"""

from __future__ import annotations

from tinyft.errors import ShapeError
from tinyft.ops.checks import expect_shape
from tinyft.tensor import op


@op
def cross_entropy(logits, labels, *, label_smoothing=0.0, class_weights=None):
    """The mean over a batch of -log softmax(logits)[label].

    With smoothing e a label is worth 1 - e + e / C, every other class e / C. With class weights
    each picture counts as much as its label's weight.

    Shapes: logits (N, C), labels (N,) integer array, class_weights (C,) array -> ()
    Raises: ShapeError for an empty batch or a label that is no class
    Keeps: log-probabilities
    Source: PyTorch `torch.nn.functional.cross_entropy`
    """
    expect_shape("cross_entropy", "logits", logits, ("N", "C"))
    N, C = logits.shape
    if N == 0:
        raise ShapeError("cross_entropy: the batch is empty, so it has no mean loss")
    if labels.shape != (N,) or labels.dtype.kind not in "iu":
        raise ShapeError(
            f"cross_entropy: labels should be {N} integers "
            f"but are {labels.dtype} of shape {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= C:
        raise ShapeError(
            f"cross_entropy: labels go from {labels.min()} to {labels.max()}, "
            f"but logits have {C} classes"
        )
    if class_weights is not None and class_weights.shape != (C,):
        raise ShapeError(
            f"cross_entropy: class_weights should be ({C},) but is {class_weights.shape}"
        )
    if class_weights is not None:  # a float64 array would make all gradients float64
        class_weights = class_weights.astype(logits.dtype, copy=False)
    backend = logits.backend
    loss, log_probabilities = backend.softmax_cross_entropy(
        logits.data, labels, label_smoothing, class_weights
    )

    # d loss / d logits = (probabilities - target) / N
    def backward(dout):
        dlogits = backend.softmax_cross_entropy_grad(
            log_probabilities, labels, label_smoothing, class_weights
        )
        return (dlogits * dout,)

    return loss, backward
