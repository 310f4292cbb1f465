"""tinyft's own weights file, version 2: HDF5 that h5py alone can read and h5ls can show.

::

    /                       attributes: format "tinyft-weights", arch, num_classes, licence, ...
    /weights/conv1/weight   float32 (or float16 for convolution and linear weights)
    /weights/bn1/weight     bias, running_mean, running_var beside it
    /preprocess             attributes: resize, crop, mean, std, ... (see preprocess.py)
    /classes                the class names, in the order of the outputs
    /learner                in a saved learner: its JSON
    /beside/known           in a saved learner: float16, the features of its training pictures

A network's predictions depend on facts that its arrays do not show: preprocessing, the order of
the classes, the epsilon of BatchNorm.  The file states each of them, and reading assumes none.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tinyft.errors import WeightsError
from tinyft.nn.resnet import ARCHITECTURES
from tinyft.version import __version__
from tinyft.weights.files import LazyArray
from tinyft.weights.hdf5.arrays import ArrayFile, open_arrays, write_arrays
from tinyft.weights.model import Weights, check_numbers
from tinyft.weights.names import architecture
from tinyft.weights.preprocess import Preprocess

FORMAT = "tinyft-weights"
_WEIGHTS = "weights."
_BESIDE = "beside."
_PREPROCESS = "preprocess."
BATCH_NORM_EPSILON = 1e-5  # torch.nn.BatchNorm2d's default, which all of torchvision uses

# What a file may say about itself beside its architecture, with the default where it may not.
_METADATA: dict[str, object] = {
    "head": "linear",
    "stride_in_1x1": False,
    "bn_eps": BATCH_NORM_EPSILON,
    "created_by": "",
    "source_url": "",
    "source_sha256": "",
    "source_format": "",
    "licence": "",
    "licence_note": "",
    "training": "",
    "parent_sha256": "",
    "metrics": "",
}


@dataclass(frozen=True)
class NativeFile:
    """A weights file whose arrays are not read yet: `weights` has none, `lazy` those that it will
    have.
    """

    weights: Weights
    lazy: dict[str, LazyArray]
    content: ArrayFile

    def read(self) -> Weights:
        """Read the weights as float32, and the arrays beside them as they are.

        Raises: WeightsError if the hash of all is not right
        """
        weights, beside = {}, {}
        for name, array in self.content.read_all().items():
            if name.startswith(_BESIDE):
                beside[name.removeprefix(_BESIDE)] = array
            else:
                weights[name.removeprefix(_WEIGHTS)] = np.asarray(array, np.float32)
        return replace(self.weights, arrays=weights, beside=beside)


@contextlib.contextmanager
def open_native(path: str | os.PathLike[str]) -> Iterator[NativeFile]:
    """Open a weights file; its arrays can be read until the block ends.

    Raises: WeightsError if the file is hostile, damaged, newer, or does not say what it must.
    """
    with open_arrays(path, FORMAT) as content:
        attributes, texts = content.attributes, content.texts
        arch = attributes.get("arch")
        if not isinstance(arch, str) or not arch:
            raise WeightsError("the attribute arch is missing or no text; write the file anew")
        _check_arrays(content.arrays)
        _check_variant(attributes)
        count = _checked_count(attributes, content.arrays)
        classes = texts.get("classes")
        if classes is not None and (not isinstance(classes, list) or len(classes) != count):
            raise WeightsError(f"/classes is no list of {count} names, as num_classes says")
        preprocess = {
            name.removeprefix(_PREPROCESS): value
            for name, value in attributes.items()
            if name.startswith(_PREPROCESS)
        }
        known = (*_METADATA, "num_classes", "content_sha256")  # others are not passed on
        weights = Weights(
            arch=arch,
            arrays={},
            classes=classes,
            preprocess=Preprocess.from_dict(preprocess),
            metadata={name: attributes[name] for name in known if name in attributes},
            extra={name: text for name, text in texts.items() if isinstance(text, str)},
        )
        lazy = {
            name.removeprefix(_WEIGHTS): array
            for name, array in content.arrays.items()
            if name.startswith(_WEIGHTS)
        }
        yield NativeFile(weights, lazy, content)


def _check_arrays(arrays: Mapping[str, LazyArray]) -> None:
    """Refuse arrays outside /weights but float16 matrices in /beside, and half precision of
    weights but for matrices and kernels.
    """
    for name, lazy in arrays.items():
        if name.startswith(_BESIDE) and lazy.dtype == "<f2" and len(lazy.shape) == 2:
            continue
        if not name.startswith(_WEIGHTS):
            raise WeightsError(f"{name} lies outside /weights, where a weights file has no arrays")
        halved = lazy.dtype == "<f2" and len(lazy.shape) > 1
        if lazy.dtype != "<f4" and not halved:
            raise WeightsError(
                f"{name} is stored as {lazy.dtype}; expected <f4, or <f2 for a convolution's or "
                f"linear layer's weight"
            )


def _check_variant(attributes: Mapping[str, object]) -> None:
    """Refuse variants of the same shapes that compute something else than tinyft's networks."""
    if attributes.get("stride_in_1x1", False) is not False:
        raise WeightsError("the file is for bottlenecks with the stride in the 1x1 convolution")
    epsilon = attributes.get("bn_eps", BATCH_NORM_EPSILON)
    if epsilon != BATCH_NORM_EPSILON:
        raise WeightsError(f"the file is for a BatchNorm epsilon of {epsilon}, tinyft has 1e-5")


def _checked_count(attributes: Mapping[str, object], arrays: Mapping[str, LazyArray]) -> int:
    """Return the number of classes, which the last layer must have."""
    count = attributes.get("num_classes")
    if type(count) is not int or count < 0:
        raise WeightsError("the attribute num_classes is missing or no count; write the file anew")
    last = arrays.get(_WEIGHTS + "fc.bias") if attributes["arch"] in ARCHITECTURES else None
    if last is not None and last.shape != (count,):
        raise WeightsError(f"num_classes is {count}, but fc.bias has the shape {last.shape}")
    return count


def save_weights(path: str | os.PathLike[str], weights: Weights, *, half: bool = False) -> str:
    """Write a weights file, replacing an old one whole; return its content_sha256.

    `half` stores convolution and linear weights as float16: half the size, a relative error of
    2e-4.  BatchNorm and biases stay float32 always, since variances span 6e-5 to 21 in real files.

    Raises: WeightsError for NaN, infinity, a weight beyond float16's range, unknown metadata, or
    class names that do not fit; OSError if it cannot be written.
    """
    if "learner" not in weights.extra:  # which may have a network of its caller's own
        architecture(weights.arch)
    check_numbers(weights.arrays)
    check_numbers(weights.beside)
    arrays = {
        _BESIDE + name: np.asarray(array, np.float16) for name, array in weights.beside.items()
    }
    arrays |= {
        _WEIGHTS + name: _to_stored(name, array, half) for name, array in weights.arrays.items()
    }
    texts: dict[str, str | list[str]] = dict(weights.extra)
    if weights.classes is not None:
        texts["classes"] = weights.classes
    return write_arrays(path, FORMAT, arrays, _attributes_to_write(weights), texts)


def _to_stored(name: str, array: np.ndarray, half: bool) -> np.ndarray:
    if not half or array.ndim < 2:
        return np.asarray(array, np.float32)
    if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
        raise WeightsError(f"{name} has values beyond float16's range; save it without half")
    return array.astype(np.float16)


def _attributes_to_write(weights: Weights) -> dict[str, object]:
    """Return the root's attributes and those of /preprocess, under dotted names."""
    given = {
        k: v for k, v in weights.metadata.items() if k not in ("num_classes", "content_sha256")
    }
    if unknown := sorted(set(given) - set(_METADATA)):
        raise WeightsError(f"a weights file has no metadata {unknown}; known: {list(_METADATA)}")
    count = weights.num_classes or 0  # of a body alone
    if weights.classes is not None and len(weights.classes) != count:
        raise WeightsError(f"{len(weights.classes)} class names for a last layer of {count}")
    metadata = {**_METADATA, **given, "created_by": f"tinyft {__version__}"}
    _check_variant(metadata)
    preprocess = {_PREPROCESS + name: value for name, value in weights.preprocess.to_dict().items()}
    return {"arch": weights.arch, "num_classes": count, **metadata, **preprocess}
