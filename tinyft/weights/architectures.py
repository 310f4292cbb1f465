"""What tensors each ResNet has, and which ResNet a file's tensors belong to.

A file from a stranger is compared with these names and shapes before a byte of it becomes an array.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tinyft.errors import WeightsError
from tinyft.nn.resnet import ARCHITECTURES, Architecture, Bottleneck, ResNet

Shapes = dict[str, tuple[int, ...]]


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

    Convolutions are (F, C, R, S), linear weights (outputs, inputs), as in torchvision's files.

    Raises: WeightsError for an unknown architecture.
    """
    network = ResNet(architecture(arch), num_classes or 1)  # of zeros, which take no memory yet
    shapes = {name: array.shape for name, array in network.state_dict().items()}
    if num_classes is None:
        del shapes["fc.weight"], shapes["fc.bias"]
    return shapes


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
        if found == (plan.depths, plan.widths, plan.block is Bottleneck, plan.stem[0]):
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
