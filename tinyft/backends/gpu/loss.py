"""The loss on the GPU, where it stays until somebody reads it.

Definition: `softmax_cross_entropy` and its gradient of `backends/reference.py`.
"""

from __future__ import annotations

import numpy as np

from tinyft.backends.gpu.memory import Memory

THREADS = 128  # of loss.cu


class Loss(Memory):
    """The loss kernels of the backend."""

    def softmax_cross_entropy(self, logits, labels, label_smoothing, class_weights):
        logits, weights = self.ready("cross_entropy", logits, class_weights)
        N, C = logits.shape
        log_probabilities = self.empty((N, C), logits.dtype)
        loss = self.empty((), logits.dtype)
        losses, row_weights = self.empty((N,), np.float64), self.empty((N,), np.float64)
        arrays = logits, self._labels(labels), weights, log_probabilities, losses, row_weights
        arguments = *arrays, C, float(label_smoothing)
        options = {"dtype": logits.dtype, "threads": THREADS}
        self.launch("loss.cross_entropy", (N,), arguments, **options)
        self.launch("loss.mean_loss", (1,), (losses, row_weights, loss, N), **options)
        return loss, log_probabilities

    def softmax_cross_entropy_grad(self, log_probabilities, labels, label_smoothing, class_weights):
        kept, weights = self.ready("cross_entropy's gradient", log_probabilities, class_weights)
        N, C = kept.shape
        dlogits = self.empty((N, C), kept.dtype)
        arguments = kept, self._labels(labels), weights, dlogits, N, C, float(label_smoothing)
        options = {"dtype": kept.dtype, "threads": THREADS}
        self.launch("loss.cross_entropy_grad", (N,), arguments, **options)
        return dlogits

    def _labels(self, labels):
        """As 64-bit integers on the GPU."""
        return self.contiguous(self.upload(labels).astype(np.int64, copy=False))
