"""Networks: modules that hold parameters under the names of the published files."""

from tinyft.nn.folding import fold
from tinyft.nn.head import FastaiHead, LinearHead, attach, cut
from tinyft.nn.layer_table import summary
from tinyft.nn.layers import BatchNorm, Conv2d, Dropout, Linear, Sequential, initialise
from tinyft.nn.module import Module
from tinyft.nn.resnet import ARCHITECTURES, ResNet, build

__all__ = [
    "ARCHITECTURES", "BatchNorm", "Conv2d", "Dropout", "FastaiHead", "Linear", "LinearHead",
    "Module", "ResNet", "Sequential", "attach", "build", "cut", "fold", "initialise", "summary",
]  # fmt: skip
