"""The kernels' half of the contract: for each kernel of `backends/reference.py`, calls to compare.

Sizes are odd and different on every axis where a kernel allows it, so that an exchanged index
cannot hide. Letters as in `backends/reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.reference import Backend, output_size

Generator = np.random.Generator


@dataclass(frozen=True)
class KernelCase:
    """One call of one kernel.

    `arrays(rng)` draws its arrays, by name; `call(backend, **arrays)` returns an array or several.
    `terms`: how many products or values one result sums up, from which its rounding follows.
    `decisive`: arrays whose exact values decide something (which pixel is the largest), so that
    they may not be varied to measure rounding. `lent`: inputs that a result may be, uncopied.
    `written`: inputs that the kernel is there to change. `any_order`: the result may be a
    transposed view (a convolution's weight).
    """

    subject: str
    label: str
    arrays: Callable[[Generator], dict[str, Array]]
    call: Callable[..., Any]
    terms: int = 1
    decisive: tuple[str, ...] = ()
    lent: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    any_order: bool = False

    def __str__(self) -> str:
        return f"{self.subject} {self.label}"


def normal(**shapes: tuple[int, ...]) -> Callable[[Generator], dict[str, Array]]:
    """Draws a standard normal array per name."""
    return lambda rng: {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def distinct(rng: Generator, shape: tuple[int, ...]) -> Array:
    """Values between -1 and 1, all different and none near 0: no ties, no kinks."""
    size = int(np.prod(shape))
    return ((2 * rng.permutation(size) + 1) / max(size, 1) - 1 + 0.3 / max(size, 1)).reshape(shape)


def tied(rng: Generator, shape: tuple[int, ...]) -> Array:
    """Only -1, 0 and 1: most windows of a max-pool have several largest pixels."""
    return rng.integers(-1, 2, shape).astype(float)


# -------------------------------------------------------------------------------------- convolution

# (N, H, W, C), F, (R, S), stride, padding
CONVOLUTIONS = {
    "3x3": ((2, 5, 6, 3), 4, (3, 3), 1, 1),
    "3x3 stride 2": ((2, 7, 5, 3), 5, (3, 3), 2, 1),
    "3x3 10 to 37 channels": ((1, 9, 8, 10), 37, (3, 3), 1, 1),
    "3x3 32 to 48 channels": ((2, 13, 10, 32), 48, (3, 3), 1, 1),
    "3x3 64 channels": ((2, 14, 14, 64), 64, (3, 3), 1, 1),
    "1x1 one pixel, one channel": ((1, 1, 1, 1), 1, (1, 1), 1, 0),
    "1x1 37 to 10 channels, stride 2": ((2, 6, 7, 37), 10, (1, 1), 2, 0),
    "1x1 64 to 32 channels": ((3, 7, 5, 64), 32, (1, 1), 1, 0),
    "3x3 on one pixel": ((3, 1, 1, 10), 3, (3, 3), 1, 1),
    "3x3 on 2x2 pixels, which each result sees": ((5, 2, 2, 10), 37, (3, 3), 1, 1),
    "7x7 stride 2": ((2, 11, 9, 3), 8, (7, 7), 2, 3),
    "5x5 one channel, batch of one": ((1, 6, 4, 1), 3, (5, 5), 1, 2),
    "1x3 no padding": ((2, 5, 7, 3), 4, (1, 3), 1, 0),
    "2x2 stride 3, pixels left over": ((2, 8, 9, 3), 4, (2, 2), 3, 0),
    "empty batch": ((0, 5, 6, 3), 4, (3, 3), 1, 1),
}


def _convolution_cases() -> list[KernelCase]:
    cases = []
    for label, (x_shape, F, kernel, stride, padding) in CONVOLUTIONS.items():
        N, H, W, C = x_shape
        w_shape = (F, C, *kernel)
        P, Q = (output_size(n, k, stride, padding) for n, k in zip((H, W), kernel, strict=True))
        out_shape, window = (N, P, Q, F), {"stride": stride, "padding": padding}
        products = C * kernel[0] * kernel[1]

        def forward(b, x, weight, bias=None, residual=None, relu=False, window=window):
            return b.conv2d(x, weight, bias, residual=residual, relu=relu, **window)

        def input_grad(b, dout, weight, x_shape=x_shape, window=window):
            return b.conv2d_input_grad(dout, weight, x_shape, **window)

        def weight_grad(b, dout, x, w_shape=w_shape, window=window):
            return b.conv2d_weight_grad(dout, x, w_shape, **window)

        def fused(b, forward=forward, **arrays):
            return forward(b, relu=True, **arrays)

        plain = normal(x=x_shape, weight=w_shape)
        everything = normal(x=x_shape, weight=w_shape, bias=(F,), residual=out_shape)
        both = normal(dout=out_shape, weight=w_shape)
        cases += [
            KernelCase("conv2d", label, plain, forward, products),
            KernelCase("conv2d", f"{label}, fused", everything, fused, products + 2),
            KernelCase("conv2d_input_grad", label, both, input_grad, F * kernel[0] * kernel[1]),
            KernelCase(
                "conv2d_weight_grad", label, normal(dout=out_shape, x=x_shape), weight_grad,
                N * P * Q, any_order=True,
            ),
        ]  # fmt: skip
    return cases


def _matmul_cases() -> list[KernelCase]:
    shapes = {
        "5x3 @ 3x7": ((5, 3), (3, 7)),
        "1x1": ((1, 1), (1, 1)),
        "37x512 @ 512x10": ((37, 512), (512, 10)),
        "batched": ((2, 3, 4), (2, 4, 5)),
        "repeated": ((2, 3, 4), (4, 5)),
        "empty": ((0, 3), (3, 7)),
        "sum over nothing": ((2, 0), (0, 3)),
    }
    return [
        KernelCase("matmul", label, normal(a=a, b=b), lambda backend, a, b: backend.matmul(a, b),
                   a[-1])
        for label, (a, b) in shapes.items()
    ]  # fmt: skip


# ------------------------------------------------------------------------------ batch normalisation

EPS = 1e-5
NORMALISED = {
    "10 channels": (2, 5, 4, 10),
    "one channel": (3, 4, 2, 1),
    "rows, 37 channels": (8, 37),
    "3 channels, one pixel": (4, 1, 1, 3),
    "64 channels": (2, 9, 7, 64),
}


def _batch_norm_arrays(shape: tuple[int, ...], offset: float, *names: str) -> Callable:
    """Draws what `names` ask for; scales in [0.5, 2], so that a missing one shows."""

    def draw(rng: Generator) -> dict[str, Array]:
        C = shape[-1]
        every = {
            "x": rng.standard_normal(shape) * 1.5 + offset,
            "weight": rng.uniform(0.5, 2, C),
            "bias": rng.standard_normal(C),
            "mean": offset + 0.3 * rng.standard_normal(C),
            "variance": rng.uniform(0.5, 2, C),
            "residual": rng.standard_normal(shape),
            "dout": rng.standard_normal(shape),
            "out": np.maximum(rng.standard_normal(shape), 0),
        }
        return {name: every[name] for name in names}

    return draw


def _train(b, x, weight, bias, residual=None):
    relu = residual is not None
    return b.batch_norm_train(x, weight, bias, EPS, residual=residual, relu=relu)


def _eval(b, x, weight, bias, mean, variance, residual=None):
    relu = residual is not None
    return b.batch_norm_eval(x, weight, bias, mean, variance, EPS, residual=residual, relu=relu)


def _train_grad(b, dout, x, weight, out=None):
    _, mean, variance = b.batch_norm_train(x, weight, weight, EPS)
    return b.batch_norm_train_grad(dout, x, weight, mean, variance, EPS, out=out)


def _eval_grad(b, dout, x, weight, mean, variance, out=None):
    return b.batch_norm_eval_grad(dout, x, weight, mean, variance, EPS, out=out)


def _rectified_train_grad(b, dout, x, weight, bias):
    out, mean, variance = b.batch_norm_train(x, weight, bias, EPS, relu=True)
    given = dout, x, weight, mean, variance, EPS
    return b.batch_norm_train_grad(*given, out=out, bias=bias)[:3]


def _rectified_eval_grad(b, dout, x, weight, bias, mean, variance):
    out = b.batch_norm_eval(x, weight, bias, mean, variance, EPS, relu=True)
    given = dout, x, weight, mean, variance, EPS
    return b.batch_norm_eval_grad(*given, out=out, bias=bias)[:3]


def _batch_norm_cases() -> list[KernelCase]:
    offsets = {label: (shape, 0.0) for label, shape in NORMALISED.items()}
    offsets["mean 1000"] = ((4, 6, 5, 3), 1000.0)
    statistics = "mean", "variance"
    kernels = [
        ("batch_norm_train", "", _train, ("x", "weight", "bias")),
        ("batch_norm_train", ", fused", _train, ("x", "weight", "bias", "residual")),
        ("batch_norm_eval", "", _eval, ("x", "weight", "bias", *statistics)),
        ("batch_norm_eval", ", fused", _eval, ("x", "weight", "bias", *statistics, "residual")),
        ("batch_norm_train_grad", "", _train_grad, ("dout", "x", "weight")),
        ("batch_norm_train_grad", ", fused", _train_grad, ("dout", "x", "weight", "out")),
        ("batch_norm_train_grad", ", rectified", _rectified_train_grad,
         ("dout", "x", "weight", "bias")),
        ("batch_norm_eval_grad", "", _eval_grad, ("dout", "x", "weight", *statistics)),
        ("batch_norm_eval_grad", ", fused", _eval_grad,
         ("dout", "x", "weight", *statistics, "out")),
        ("batch_norm_eval_grad", ", rectified", _rectified_eval_grad,
         ("dout", "x", "weight", "bias", *statistics)),
    ]  # fmt: skip
    cases = []
    for subject, suffix, call, names in kernels:
        empty = {"empty batch": ((0, 4, 3, 5), 0.0)} if "eval" in subject else {}
        for label, (shape, offset) in {**offsets, **empty}.items():
            terms = int(np.prod(shape[:-1])) or 1
            draw = _batch_norm_arrays(shape, offset, *names)
            cases.append(KernelCase(subject, label + suffix, draw, call, terms, lent=("dout",)))
    return cases


# --------------------------------------------------------------------------- activation and pooling

# (N, H, W, C), kernel, stride, padding
POOLS = {
    "3x3 stride 2": ((2, 7, 6, 3), 3, 2, 1),
    "2x2 10 channels": ((1, 5, 4, 10), 2, 2, 0),
    "3x3 stride 1, 37 channels": ((2, 4, 5, 37), 3, 1, 1),
    "one pixel": ((1, 1, 1, 1), 1, 1, 0),
    "3x3 64 channels": ((2, 12, 14, 64), 3, 2, 1),
    "empty batch": ((0, 6, 6, 3), 3, 2, 1),
}


def _max_pool_cases() -> list[KernelCase]:
    cases = []
    for label, (x_shape, kernel, stride, padding) in POOLS.items():
        window = {"kernel": kernel, "stride": stride, "padding": padding}
        N, H, W, C = x_shape
        P, Q = (output_size(n, kernel, stride, padding) for n in (H, W))

        def forward(b, x, window=window):
            return b.max_pool2d(x, **window)

        def backward(b, x, dout, x_shape=x_shape, window=window):
            return b.max_pool2d_grad(dout, b.max_pool2d(x, **window)[1], x_shape, **window)

        for suffix, values in (("", distinct), (", ties", tied), (", all negative", _negative)):

            def draw(rng, values=values, x_shape=x_shape, out_shape=(N, P, Q, C)):
                return {"x": values(rng, x_shape), "dout": rng.standard_normal(out_shape)}

            def draw_x(rng, draw=draw):
                return {"x": draw(rng)["x"]}

            several = {"decisive": ("x",), "terms": kernel * kernel}
            cases.append(KernelCase("max_pool2d", label + suffix, draw_x, forward, **several))
            cases.append(KernelCase("max_pool2d_grad", label + suffix, draw, backward, **several))
    return cases


def _negative(rng: Generator, shape: tuple[int, ...]) -> Array:
    return distinct(rng, shape) - 2


def _global_pool_cases() -> list[KernelCase]:
    cases = []
    for label, x_shape in {
        "7x7, 37 channels": (2, 7, 7, 37),
        "3x5, batch of one": (1, 3, 5, 10),
        "one pixel": (3, 1, 1, 1),
        "empty batch": (0, 3, 2, 4),
    }.items():
        pixels, dout = x_shape[1] * x_shape[2], (x_shape[0], x_shape[3])

        def average_grad(b, dout, x_shape=x_shape):
            return b.global_average_pool_grad(dout, x_shape)

        def max_grad(b, x, dout, x_shape=x_shape):
            return b.global_max_pool_grad(dout, b.global_max_pool(x)[1], x_shape)

        exact = {"decisive": ("x",)}
        cases += [
            KernelCase("global_average_pool", label, normal(x=x_shape),
                       lambda b, x: b.global_average_pool(x), pixels),
            KernelCase("global_average_pool_grad", label, normal(dout=dout), average_grad),
            KernelCase("global_max_pool", label, normal(x=x_shape),
                       lambda b, x: b.global_max_pool(x), **exact),
            KernelCase("global_max_pool_grad", label, normal(x=x_shape, dout=dout), max_grad,
                       **exact),
        ]  # fmt: skip
    return cases


def _elementwise_cases() -> list[KernelCase]:
    cases = []
    for shape in ((2, 5, 4, 3), (7, 37), (1,), (3, 14, 14, 64), (0, 4)):
        label = str(shape)

        def draw_out(rng, shape=shape):
            return {"dout": rng.standard_normal(shape), "out": np.maximum(tied(rng, shape), 0)}

        cases += [
            KernelCase("relu", label, normal(x=shape), lambda b, x: b.relu(x)),
            KernelCase("relu_grad", label, draw_out, lambda b, dout, out: b.relu_grad(dout, out)),
            KernelCase("add", label, normal(a=shape, b=shape),
                       lambda backend, a, b: backend.add(a, b)),
            KernelCase("dropout", label, normal(x=shape),
                       lambda b, x: b.dropout(x, 0.3, 7, (2, 5))),
            KernelCase("dropout", f"{label}, none dropped", normal(x=shape),
                       lambda b, x: b.dropout(x, 0.0, 2**40 + 1, (0, 2**33))),
        ]  # fmt: skip
    return cases


# ------------------------------------------------------------------------------ loss and optimizers


def _loss_arrays(N: int, C: int, scale: float, weighted: bool) -> Callable:
    def draw(rng: Generator) -> dict[str, Array]:
        arrays = {"logits": scale * rng.standard_normal((N, C)), "labels": rng.integers(0, C, N)}
        return {**arrays, "class_weights": rng.uniform(0.5, 2, C)} if weighted else arrays

    return draw


def _loss_cases() -> list[KernelCase]:
    cases = []
    for label, (N, C, scale, smoothing, weighted) in {
        "10 classes": (5, 10, 1.0, 0.0, False),
        "two classes, batch of one": (1, 2, 1.0, 0.1, False),
        "37 classes, smoothed": (4, 37, 3.0, 0.1, False),
        "3 classes, weighted": (6, 3, 1.0, 0.0, True),
        "smoothed and weighted": (7, 5, 1.0, 0.2, True),
        "logits of 1e4": (3, 10, 1e4, 0.1, False),
        "one class": (3, 1, 1.0, 0.0, False),
    }.items():

        def loss(b, logits, labels, class_weights=None, smoothing=smoothing):
            return b.softmax_cross_entropy(logits, labels, smoothing, class_weights)

        def grad(b, logits, labels, class_weights=None, smoothing=smoothing, loss=loss):
            _, kept = loss(b, logits, labels, class_weights)
            return b.softmax_cross_entropy_grad(kept, labels, smoothing, class_weights)

        draw = _loss_arrays(N, C, scale, weighted)
        cases.append(KernelCase("softmax_cross_entropy", label, draw, loss, N * C))
        cases.append(KernelCase("softmax_cross_entropy_grad", label, draw, grad, C))
    return cases


def _adam(b, parameter, gradient, average, average_square):
    b.adam_step(
        parameter, gradient, average, average_square,
        step=3, lr=1e-3, momentum=0.9, square_momentum=0.99, eps=1e-5, weight_decay=0.01,
    )  # fmt: skip
    return parameter, average, average_square


def _sgd(b, parameter, gradient, velocity=None):
    b.sgd_step(parameter, gradient, velocity, lr=1e-2, momentum=0.9, weight_decay=0.01)
    return (parameter,) if velocity is None else (parameter, velocity)


def _optimizer_cases() -> list[KernelCase]:
    cases = []
    for shape in ((37,), (5, 3, 3, 3), (1,), (0,), (1000,)):
        label, written = str(shape), ("parameter", "average", "average_square", "velocity")

        def draw(rng, shape=shape):
            arrays = normal(parameter=shape, gradient=shape, average=shape)(rng)
            return {**arrays, "average_square": rng.uniform(0, 1, shape)}

        options = {"written": written, "lent": written}
        pair = {"parameter": shape, "gradient": shape}
        cases += [
            KernelCase("adam_step", label, draw, _adam, 4, **options),
            KernelCase("sgd_step", label, normal(**pair), _sgd, 2, **options),
            KernelCase("sgd_step", f"{label}, momentum", normal(**pair, velocity=shape), _sgd, 3,
                       **options),
        ]  # fmt: skip
    return cases


# ------------------------------------------------------------------------------------- measurement


def _update_sums(b: Backend, before, after, gradient):
    return b.update_sums(before, after, gradient).astype(before.dtype)


def _measurement_cases() -> list[KernelCase]:
    cases = []
    for shape in ((37,), (5, 3, 3, 3), (1,), (0,), (), (300, 257)):
        arrays = normal(before=shape, after=shape, gradient=shape)
        terms = int(np.prod(shape)) or 1
        cases += [
            KernelCase("update_sums", str(shape), arrays, _update_sums, terms),
            KernelCase("copy", str(shape), normal(x=shape), lambda b, x: b.copy(x), any_order=True),
        ]
    return cases


# -------------------------------------------------------------------------------- input, reductions


def _pictures(b: Backend, pixels, mean, std):
    return b.images(pixels, mean.astype(np.float32), std.astype(np.float32), mean.dtype)


def _input_cases() -> list[KernelCase]:
    cases = []
    for shape in ((2, 5, 4, 3), (1, 1, 1, 1), (0, 4, 4, 3)):

        def draw(rng, shape=shape):
            C = shape[-1]
            return {
                "pixels": rng.integers(0, 256, shape, dtype=np.uint8),
                "mean": rng.uniform(0.3, 0.6, C),
                "std": rng.uniform(0.2, 0.3, C),
            }

        cases.append(KernelCase("images", str(shape), draw, _pictures, 3))
    for C in (1, 37, 0):
        draw = normal(running=(C,), value=(C,))
        cases.append(KernelCase("running_average", f"({C},)", draw, _running_average, 2))
    return cases


def _running_average(b: Backend, running, value):
    return b.running_average(running, value, 0.9, 0.1)


def _reduction_cases() -> list[KernelCase]:
    cases = []
    for shape, axes in (
        ((2, 5, 4, 3), (0, 1, 2)), ((6, 37), (0,)), ((3, 4), None), ((2, 3, 4), (1,)), ((5,), (0,)),
        ((0, 3), (0,)), ((16, 32, 32, 10), (0, 1, 2)),
    ):  # fmt: skip
        summed = range(len(shape)) if axes is None else axes
        terms = int(np.prod([shape[a] for a in summed])) or 1
        for subject in ("sum", "mean") if 0 not in shape else ("sum",):
            for keep in (False, True):

                def call(b, x, subject=subject, axes=axes, keep=keep):
                    return getattr(b, subject)(x, axes, keep)

                label = f"{shape} over {axes}{', kept' if keep else ''}"
                cases.append(KernelCase(subject, label, normal(x=shape), call, terms))
    three = normal(a=(2, 1, 3), b=(2, 4, 3), c=(2, 0, 3))
    cases += [
        KernelCase("broadcast", "(1, 3) to (4, 3)", normal(x=(1, 3)),
                   lambda b, x: b.broadcast(x, (4, 3))),
        KernelCase("broadcast", "to nothing", normal(x=(1, 3)),
                   lambda b, x: b.broadcast(x, (0, 3))),
        KernelCase("concatenate", "axis 1", three,
                   lambda backend, a, b, c: backend.concatenate([a, b, c], 1)),
        KernelCase("split", "axis 1", normal(x=(2, 5, 3)),
                   lambda b, x: tuple(b.split(x, [1, 4, 0], 1))),
        KernelCase("zeros_like", "(2, 3)", normal(x=(2, 3)), lambda b, x: b.zeros_like(x)),
    ]  # fmt: skip
    return cases


KERNEL_CASES: list[KernelCase] = [
    *_convolution_cases(),
    *_matmul_cases(),
    *_batch_norm_cases(),
    *_elementwise_cases(),
    *_max_pool_cases(),
    *_global_pool_cases(),
    *_loss_cases(),
    *_optimizer_cases(),
    *_measurement_cases(),
    *_input_cases(),
    *_reduction_cases(),
]
