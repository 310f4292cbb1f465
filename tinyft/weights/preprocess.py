"""Says how a picture becomes the values that a network was trained on.

Weights without this are half a model: a wrong mean or a wrong channel order raises no error, it
only predicts worse.  So each weights file carries its Preprocess, and prediction takes no default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tinyft.errors import WeightsError
from tinyft.nn.resnet import ARCHITECTURES

# As torchvision 0.29.1 (transforms/_presets.py), and as akamaster/pytorch_resnet_cifar10.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_CHOICES = {
    "interpolation": ("bilinear", "bicubic"),
    "channel_order": ("RGB",),
    "alpha": ("white",),
}
_SWITCHES = ("antialias", "whole_square", "exif_transpose", "assumed")
_LARGEST_SIDE = 4096  # pixels; far above any published ResNet, far below a decompression bomb


@dataclass(frozen=True)
class Preprocess:
    """The steps from a decoded picture to a network's input, in order.

    Turn it upright (`exif_transpose`), put transparent pixels on `alpha`, resize the shorter
    side to `resize`, cut the middle `crop x crop`, divide by 255, subtract `mean`, divide by
    `std`.  With `whole_square` nothing is cut off at the margin: the middle square, `resize`
    on each side, is resampled to `crop`, as training's augmentation does.  `assumed` says that
    the file held none of this and the architecture's values stand.

    Units: resize and crop in pixels; mean and std of values in [0, 1], one per channel.
    Raises: WeightsError for a value outside its range.
    """

    resize: int
    crop: int
    interpolation: str = "bilinear"
    antialias: bool = True
    whole_square: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    channel_order: str = "RGB"
    exif_transpose: bool = True
    alpha: str = "white"
    assumed: bool = False

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, _three_numbers(name, getattr(self, name)))
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= _LARGEST_SIDE:
                raise _wrong(name, value, f"a whole number from 1 to {_LARGEST_SIDE}")
        if self.crop > self.resize:
            raise _wrong("crop", self.crop, f"at most resize, which is {self.resize}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise _wrong(name, getattr(self, name), "one of " + ", ".join(choices))
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, getattr(self, name), "true or false")
        if min(self.std) <= 0:
            raise _wrong("std", self.std, "three numbers above 0")

    @classmethod
    def for_architecture(cls, arch: str) -> Preprocess:
        """Return the usual preprocessing of an architecture, marked as assumed.

        Source: torchvision 0.29.1's V1 weights; akamaster/pytorch_resnet_cifar10 for CIFAR.
        """
        # differs from fastai: only a file that says nothing gets ImageNet's mean and deviation
        side = ARCHITECTURES[arch].side if arch in ARCHITECTURES else 224
        return cls(resize=256 if side == 224 else side, crop=side, assumed=True)

    def scaled(self, size: int) -> Preprocess:
        """Scale it to another crop; the resize keeps its proportion (256 to 224).

        Raises: WeightsError for a size whose resize is beyond the largest
        """
        resize = round(self.resize * size / self.crop)
        if size <= _LARGEST_SIDE < resize:
            largest = _LARGEST_SIDE * self.crop // self.resize
            raise WeightsError(f"the size can be at most {largest} pixels here; got {size}")
        return replace(self, crop=size, resize=resize)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values: numbers, text, booleans, lists; `whole_square` only if it is
        true, as other files do not know it.
        """
        values = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        if not self.whole_square:
            del values["whole_square"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Preprocess:
        """Invert to_dict.

        Raises: WeightsError if a key is missing, unknown or has a wrong value; nothing is
        filled in, except that `assumed` and `whole_square` are false where it does not say.
        """
        known = {field.name for field in fields(cls)}
        given: dict[str, Any] = {"assumed": False, "whole_square": False, **values}
        if set(given) != known:
            missing, unknown = sorted(known - set(given)), sorted(set(given) - known)
            raise WeightsError(f"preprocess: missing {missing}, unknown {unknown}; write it anew")
        return cls(**given)  # which looks at each


def _three_numbers(name: str, values: object) -> tuple[float, ...]:
    """Return three finite floats; refuse anything else."""
    if isinstance(values, (list, tuple)) and len(values) == 3:
        numbers = [value for value in values if type(value) in (int, float)]
        if len(numbers) == 3 and all(math.isfinite(number) for number in numbers):
            return tuple(float(number) for number in numbers)
    raise _wrong(name, values, "three finite numbers")


def _wrong(name: str, value: object, expected: str) -> WeightsError:
    return WeightsError(f"preprocess: {name} is {value!r}, expected {expected}")
