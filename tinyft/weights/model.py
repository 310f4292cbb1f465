"""A network's weights in memory, with everything that is needed to use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tinyft.errors import WeightsError
from tinyft.weights.preprocess import Preprocess
from tinyft.weights.report import LoadReport


@dataclass(frozen=True)
class Weights:
    """Weights as load_weights returns them and save_weights takes them.

    ``arrays`` has torchvision's names; ``metadata`` what is known of their origin (``source_url``,
    ``licence``, ``training``, ``head``, ...); ``extra`` further texts, such as a learner's JSON.

    Shapes: each array is float32 and C-contiguous, convolutions (F, C, R, S), ``fc`` (out, in).
    """

    arch: str
    arrays: dict[str, np.ndarray]
    classes: list[str] | None
    preprocess: Preprocess
    metadata: dict[str, object] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    report: LoadReport = field(default_factory=LoadReport)

    @property
    def num_classes(self) -> int | None:
        """How many classes the last layer tells apart; None for a body without one."""
        if "fc.bias" in self.arrays:
            return len(self.arrays["fc.bias"])
        if self.classes is not None:
            return len(self.classes)
        recorded = self.metadata.get("num_classes")
        return recorded if isinstance(recorded, int) and recorded else None


def check_numbers(arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse what can only be the remains of a failed training or of a damaged file.

    Raises: WeightsError naming the first array with NaN or infinity, or a negative variance.
    """
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            bad = int(np.size(array) - np.isfinite(array).sum())
            raise WeightsError(
                f"{name} has {bad} values that are NaN or infinite; the training that wrote it "
                f"diverged or the file is damaged; take an earlier checkpoint"
            )
        if name.endswith("running_var") and (array < 0).any():
            raise WeightsError(f"{name} has negative variances; the file is damaged")
