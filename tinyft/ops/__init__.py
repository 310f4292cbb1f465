"""The differentiable operations: each one function, forward and backward on one screen."""

from tinyft.engine.primitives import (
    add,
    concatenate,
    div,
    exp,
    index,
    log,
    matmul,
    maximum,
    mean,
    mul,
    neg,
    power,
    reshape,
    sqrt,
    sub,
    sum,
    tanh,
    transpose,
)  # fmt: skip
from tinyft.ops.convolution import conv2d, linear
from tinyft.ops.elementwise import dropout, relu
from tinyft.ops.loss import cross_entropy
from tinyft.ops.normalisation import batch_norm, batch_norm_eval, unfused
from tinyft.ops.pooling import global_average_pool, global_max_pool, max_pool2d

__all__ = [
    "add", "batch_norm", "batch_norm_eval", "concatenate", "conv2d", "cross_entropy", "div",
    "dropout", "exp", "global_average_pool", "global_max_pool", "index", "linear", "log", "matmul",
    "max_pool2d", "maximum", "mean", "mul", "neg", "power", "relu", "reshape", "sqrt", "sub", "sum",
    "tanh", "transpose", "unfused",
]  # fmt: skip
