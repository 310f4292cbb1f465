"""The feature cache: a body that cannot change need not look at the same picture twice.

While the whole body is frozen, its batch norms included (bn="frozen"), and pictures are not
augmented, the body is a function of the picture alone. Its output is then computed once a picture
and kept, for validation too; the head trains and is judged on what is kept. The plan says where
that happens and what it saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from tinyft import backends
from tinyft.data.loader import Batch, PictureData
from tinyft.engine.tape import no_grad
from tinyft.engine.tensor import Tensor
from tinyft.finetune.training import Training
from tinyft.nn.layer_table import feature_shape, halves
from tinyft.nn.layers import Dropout
from tinyft.weights.preprocess import Preprocess

BUDGET = 1 << 30  # bytes; a body's output beyond that is computed anew each time


class FeatureCache:
    """The frozen body's output for each training picture: (1, h, w, C) by the picture's id; and
    for the validation pictures, batch by batch: (N, h, w, C) with their labels.
    """

    def __init__(self, training: Training):
        self.body: Callable[[Tensor], Tensor] = halves(training.model)[0]
        self.prepare: Callable[[np.ndarray], Tensor] = training.input
        self.data: PictureData = training.own_data()
        self.preprocess: Preprocess = training.preprocess
        self.kept: dict[int, np.ndarray] = {}
        self.validation: list[tuple[np.ndarray, np.ndarray]] = []

    def to(self, device: str) -> None:
        """Move all that is kept to a device."""
        self.kept = {i: backends.place(array, device) for i, array in self.kept.items()}
        self.validation = [(backends.place(a, device), labels) for a, labels in self.validation]

    def features(self, batch: Batch) -> Tensor:
        """(N, h, w, C), from memory or, if the pictures of the batch are new, computed.

        An epoch leaves out the pictures that fill no batch, and shuffling scatters them over the
        next: when the first of them is met, all that are missing are computed at once.
        """
        ids, size = batch.ids.tolist(), self.data.batch_size
        new = [i for i in ids if i not in self.kept]
        if len(new) == size:
            self._keep(batch)
        elif new:
            # filled up to whole batches, since the last bits may depend on a batch's size
            missing = [i for i in self.data.ids("train").tolist() if i not in self.kept]
            full = np.array(missing + list(self.kept)[: -len(missing) % size])
            for others in self.data.chosen_pictures("train", full, self.preprocess):
                self._keep(others)
        rows = [self.kept[i] for i in ids]
        return Tensor.wrap(backends.of(rows[0]).concatenate(rows, 0))

    def _keep(self, batch: Batch) -> None:
        with no_grad():
            computed = self.body(self.prepare(batch.images)).data
        for row, i in enumerate(batch.ids.tolist()):
            self.kept[i] = computed[row : row + 1].copy()

    def valid_features(
        self, body: Callable[[Tensor], Tensor], batches: Callable[[], Iterable[Batch]]
    ) -> Iterator[tuple[Tensor, np.ndarray]]:
        """The validation pictures' features and labels: computed by `body` from `batches()` the
        first time, then from memory. Under no_grad.
        """
        if self.validation:
            yield from ((Tensor.wrap(array), labels) for array, labels in self.validation)
            return
        computed = []
        for batch in batches():
            features = body(self.prepare(batch.images))
            computed.append((features.data, batch.labels))
            yield features, batch.labels
        self.validation = computed  # only if there was no error


def cacheable_bytes(training: Training) -> int:
    """Bytes that the features of all pictures take while the body is frozen; 0 where they cannot
    be kept.
    """
    data = training.own_data()
    if training.bn != "frozen" or data.augment is not None:
        return 0
    modules = training.model.named_modules()
    if any(isinstance(m, Dropout) and not name.startswith("head.") for name, m in modules):
        return 0  # which gives other features each time
    shape = feature_shape(training.model, training.adjusted_preprocess().crop)
    if shape is None:
        return 0
    numbers = (data.n_train + data.n_valid) * math.prod(shape)
    needed = numbers * np.dtype(training.dtype).itemsize
    return needed if needed <= BUDGET else 0
