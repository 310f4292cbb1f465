"""The differentiable operations: each one function, forward and backward on one screen."""

from tinyft.engine.primitives import (
    add,
    concatenate,
    div,
    matmul,
    mean,
    mul,
    neg,
    reshape,
    sub,
    sum,
)  # fmt: skip
from tinyft.ops.convolution import conv2d, linear
from tinyft.ops.elementwise import dropout, relu
from tinyft.ops.loss import cross_entropy
from tinyft.ops.normalisation import batch_norm, batch_norm_eval, unfused
from tinyft.ops.pooling import global_average_pool, global_max_pool, max_pool2d

__all__ = [
    "add", "batch_norm", "batch_norm_eval", "concatenate", "conv2d", "cross_entropy", "div",
    "dropout", "global_average_pool", "global_max_pool", "linear", "matmul", "max_pool2d", "mean",
    "mul", "neg", "relu", "reshape", "sub", "sum", "unfused",
]  # fmt: skip
