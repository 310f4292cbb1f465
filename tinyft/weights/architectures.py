"""What tensors each ResNet has: the names and shapes that a weights file must match.

Shapes are computed, no network is built: a file from a stranger is compared with this list before
a byte of it becomes an array.  ``tinyft.nn.resnet`` builds the same networks; a test holds the two
together.

Names are torchvision's.  Convolution weights are (F, C, R, S): filters, input channels, kernel rows
and columns.  Linear weights are (outputs, inputs).

Next: tinyft/weights/report.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tinyft.errors import WeightsError

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    """A ResNet in numbers: blocks per stage, channels per stage, and the first convolution."""

    blocks: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: bool = False
    stem_kernel: int = 7
    shortcut_weights: bool = True  # False: "option A", which pads channels with zeros instead

    @property
    def expansion(self) -> int:
        """How many times wider a block's output is than its 3x3 convolution."""
        return 4 if self.bottleneck else 1


def _cifar(blocks_per_stage: int) -> Architecture:
    """He et al. 2015, section 4.2: three stages on 32x32 pictures, 6n + 2 layers, option A."""
    widths = (16, 32, 64)
    return Architecture((blocks_per_stage,) * 3, widths, stem_kernel=3, shortcut_weights=False)


ARCHITECTURES: dict[str, Architecture] = {
    "resnet10s": Architecture((1, 1, 1, 1), (32, 64, 128, 256), stem_kernel=3),
    "resnet18": Architecture((2, 2, 2, 2)),
    "resnet34": Architecture((3, 4, 6, 3)),
    "resnet50": Architecture((3, 4, 6, 3), bottleneck=True),
    "resnet101": Architecture((3, 4, 23, 3), bottleneck=True),
    "resnet152": Architecture((3, 8, 36, 3), bottleneck=True),
    "cifar_resnet20": _cifar(3),
    "cifar_resnet32": _cifar(5),
    "cifar_resnet44": _cifar(7),
    "cifar_resnet56": _cifar(9),
    "cifar_resnet110": _cifar(18),
}


def architecture(arch: str) -> Architecture:
    """The architecture of that name.

    Raises: WeightsError if there is none, listing those there are.
    """
    if arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise WeightsError(f"there is no architecture {arch!r}; choose one of {known}")
    return ARCHITECTURES[arch]


def expected_shapes(arch: str, num_classes: int | None) -> Shapes:
    """Each tensor's name and shape, in the order of the network; no ``fc`` if num_classes is None.

    Raises: WeightsError for an unknown architecture.
    """
    plan = architecture(arch)
    shapes: Shapes = {}
    _add_conv_and_norm(shapes, "conv1", "bn1", (plan.widths[0], 3, plan.stem_kernel))
    channels = plan.widths[0]
    for stage, (count, width) in enumerate(zip(plan.blocks, plan.widths, strict=True), start=1):
        for i in range(count):
            shapes |= _block_shapes(f"layer{stage}.{i}", plan, channels, width)
            channels = width * plan.expansion
    if num_classes is not None:
        shapes |= {"fc.weight": (num_classes, channels), "fc.bias": (num_classes,)}
    return shapes


def _block_shapes(block: str, plan: Architecture, channels: int, width: int) -> Shapes:
    """The tensors of one residual block that gets ``channels`` channels."""
    out = width * plan.expansion
    convolutions = [(width, channels, 3), (width, width, 3)]
    if plan.bottleneck:
        convolutions = [(width, channels, 1), (width, width, 3), (out, width, 1)]
    shapes: Shapes = {}
    for i, shape in enumerate(convolutions, start=1):
        _add_conv_and_norm(shapes, f"{block}.conv{i}", f"{block}.bn{i}", shape)
    if plan.shortcut_weights and channels != out:
        shortcut = f"{block}.downsample"
        _add_conv_and_norm(shapes, f"{shortcut}.0", f"{shortcut}.1", (out, channels, 1))
    return shapes


def _add_conv_and_norm(shapes: Shapes, conv: str, norm: str, size: tuple[int, int, int]) -> None:
    filters, channels, kernel = size
    shapes[f"{conv}.weight"] = (filters, channels, kernel, kernel)
    for name in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{norm}.{name}"] = (filters,)


def infer_architecture(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The architecture whose blocks, widths and first convolution a file's tensors have.

    Raises: WeightsError that says what was found, for relatives that tinyft does not build
    (ResNeXt, wide and "d" variants) and for anything else.
    """
    if "conv1.0.weight" in shapes:
        raise _not_ours("a stem of several convolutions (resnet50d and its relatives)")
    if "conv1.weight" not in shapes or "layer1.0.conv1.weight" not in shapes:
        some = ", ".join(sorted(shapes)[:5]) or "no tensors"
        raise _not_ours(f"no conv1.weight or layer1.0.conv1.weight, but {some}")
    _refuse_groups(shapes)
    found = _describe(shapes)
    for name, plan in ARCHITECTURES.items():
        if found == (plan.blocks, plan.widths, plan.bottleneck, plan.stem_kernel):
            return name
    blocks, widths, bottleneck, stem = found
    kind = "bottleneck" if bottleneck else "basic"
    raise _not_ours(f"{kind} blocks {blocks} of widths {widths} after a {stem}x{stem} stem")


def _describe(
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[tuple[int, ...], tuple[int, ...], bool, int]:
    """Blocks per stage, width per stage, whether blocks are bottlenecks, and the stem's kernel."""
    last_block: dict[int, int] = {}
    for name in shapes:
        if match := re.match(r"layer([1-9])\.([0-9]{1,3})\.", name):
            stage, block = int(match[1]), int(match[2])
            last_block[stage] = max(block, last_block.get(stage, 0))
    blocks = tuple(last_block[stage] + 1 for stage in sorted(last_block))
    firsts = [shapes.get(f"layer{stage}.0.conv1.weight", ()) for stage in sorted(last_block)]
    widths = tuple(shape[0] if shape else 0 for shape in firsts)
    stem = shapes["conv1.weight"]
    bottleneck = "layer1.0.conv3.weight" in shapes
    return blocks, widths, bottleneck, stem[-1] if len(stem) == 4 else 0


def _refuse_groups(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The 3x3 convolution of a block sees every channel, unless it works in groups."""
    middle = shapes.get("layer1.0.conv2.weight", ())
    if len(middle) == 4 and middle[1] < middle[0]:
        raise _not_ours(f"grouped convolutions of {middle[1]} channels each (ResNeXt)")


def _not_ours(found: str) -> WeightsError:
    known = ", ".join(ARCHITECTURES)
    return WeightsError(
        f"the tensors are of no network that tinyft builds: found {found}; known are {known}"
    )
