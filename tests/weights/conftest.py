"""A small network's tensors, for the tests of every format."""

from __future__ import annotations

import numpy as np
import pytest

from tinyft.weights import Preprocess, Weights, expected_shapes

ARCH = "cifar_resnet20"


@pytest.fixture(scope="session")
def arrays() -> dict[str, np.ndarray]:
    """Plausible weights of a CIFAR ResNet-20; variances are positive. Do not write to them."""
    rng = np.random.default_rng(0)
    made = {}
    for name, shape in expected_shapes(ARCH, 10).items():
        values = rng.normal(size=shape).astype(np.float32)
        made[name] = np.abs(values) if name.endswith("running_var") else values
    return made


@pytest.fixture
def weights(arrays) -> Weights:
    classes = ["zèbre", *"abcdefghi"]
    preprocess = Preprocess(resize=36, crop=32, mean=(0.5, 0.25, 0.125))
    return Weights(ARCH, dict(arrays), classes, preprocess, {"licence": "MIT"})
