"""The kernels' half of the contract: for each kernel of `backends/reference.py`, calls to compare.

Sizes are odd and different on every axis where a kernel allows it, so that an exchanged index
cannot hide. Letters as in `backends/reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.reference import Backend, output_size

Generator = np.random.Generator


@dataclass(frozen=True)
class Case:
    """One call of one kernel or op, its `subject`.

    `arrays(rng)` draws its arrays, by the names that the subject has for them; `options` are its
    other arguments. `terms`: how many products or values one result, or one gradient, sums up, from
    which its rounding follows. `compute` stands for the subject where its arguments are others.
    `decisive`: arrays whose exact values decide something (which pixel is the largest), so that
    they may not be varied to measure rounding.
    """

    subject: str
    label: str
    arrays: Callable[[Generator], dict[str, Array]]
    terms: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    compute: Callable[..., Any] | None = None
    decisive: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.subject} {self.label}"


@dataclass(frozen=True)
class KernelCase(Case):
    """One call of one kernel.

    `compute(backend, **arrays, **options)` stands for it where an array is another kernel's result.
    `lent`: inputs that a result may be, uncopied. `written`: inputs that the kernel is there to
    change. `any_order`: the result may be a transposed view (a convolution's weight).
    """

    lent: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    any_order: bool = False

    def call(self, backend: Backend, **arrays: Array) -> Any:
        """Call the kernel: its result, a tuple of several, or the arrays that it has written."""
        if self.compute is not None:
            return self.compute(backend, **arrays, **self.options)
        result = getattr(backend, self.subject)(**arrays, **self.options)
        return tuple(arrays[name] for name in self.written) if self.written else result


def normal(**shapes: tuple[int, ...]) -> Callable[[Generator], dict[str, Array]]:
    """Draw a standard normal array per name."""
    return lambda rng: {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def positive(**shapes: tuple[int, ...]) -> Callable[[Generator], dict[str, Array]]:
    """Draw an array per name between 0.5 and 2, where logarithms and roots are defined."""
    return lambda rng: {name: np.asarray(rng.uniform(0.5, 2, s)) for name, s in shapes.items()}


def distinct(rng: Generator, shape: tuple[int, ...]) -> Array:
    """Values between -1 and 1, all different and none near 0: no ties, no kinks."""
    size = int(np.prod(shape))
    return ((2 * rng.permutation(size) + 1) / max(size, 1) - 1 + 0.3 / max(size, 1)).reshape(shape)


def tied(rng: Generator, shape: tuple[int, ...]) -> Array:
    """Only -1, 0 and 1: most windows of a max-pool have several largest pixels."""
    return rng.integers(-1, 2, shape).astype(float)


def count(shape: tuple[int, ...]) -> int:
    """Count the elements of a sum over `shape`; 1 for none, which rounds as little."""
    return int(np.prod(shape)) or 1


# -------------------------------------------------------------------------- convolution and matmul


class Convolution(NamedTuple):
    """The shapes of one convolution."""

    x: tuple[int, ...]  # (N, H, W, C)
    F: int
    kernel: tuple[int, int]  # (R, S)
    stride: int
    padding: int

    @property
    def weight(self) -> tuple[int, ...]:
        return (self.F, self.x[3], *self.kernel)

    @property
    def window(self) -> dict[str, int]:
        return {"stride": self.stride, "padding": self.padding}

    @property
    def out(self) -> tuple[int, ...]:
        rows_and_columns = zip(self.x[1:3], self.kernel, strict=True)
        return (self.x[0], *(output_size(n, k, **self.window) for n, k in rows_and_columns), self.F)


CONVOLUTIONS = {
    "3x3": Convolution((2, 5, 6, 3), 4, (3, 3), 1, 1),
    "3x3 stride 2": Convolution((2, 7, 5, 3), 5, (3, 3), 2, 1),
    "3x3 10 to 37 channels": Convolution((1, 9, 8, 10), 37, (3, 3), 1, 1),
    "3x3 32 to 48 channels": Convolution((2, 13, 10, 32), 48, (3, 3), 1, 1),
    "3x3 64 channels": Convolution((2, 14, 14, 64), 64, (3, 3), 1, 1),
    "1x1 one pixel, one channel": Convolution((1, 1, 1, 1), 1, (1, 1), 1, 0),
    "1x1 37 to 10 channels, stride 2": Convolution((2, 6, 7, 37), 10, (1, 1), 2, 0),
    "1x1 64 to 32 channels": Convolution((3, 7, 5, 64), 32, (1, 1), 1, 0),
    "3x3 on one pixel": Convolution((3, 1, 1, 10), 3, (3, 3), 1, 1),
    "3x3 on 2x2 pixels, which each result sees": Convolution((5, 2, 2, 10), 37, (3, 3), 1, 1),
    "7x7 stride 2": Convolution((2, 11, 9, 3), 8, (7, 7), 2, 3),
    "5x5 one channel, batch of one": Convolution((1, 6, 4, 1), 3, (5, 5), 1, 2),
    "1x3 no padding": Convolution((2, 5, 7, 3), 4, (1, 3), 1, 0),
    "2x2 stride 3, pixels left over": Convolution((2, 8, 9, 3), 4, (2, 2), 3, 0),
    "empty batch": Convolution((0, 5, 6, 3), 4, (3, 3), 1, 1),
}


def _convolution_cases() -> list[KernelCase]:
    cases = []
    for label, conv in CONVOLUTIONS.items():
        x, weight, out, window = conv.x, conv.weight, conv.out, conv.window
        products, pixels = int(np.prod(weight[1:])), int(np.prod(out[:3]))
        everything = normal(x=x, weight=weight, bias=(conv.F,), residual=out)
        cases += [
            KernelCase("conv2d", label, normal(x=x, weight=weight), products, window),
            KernelCase("conv2d", f"{label}, fused", everything, products + 2,
                       {"relu": True, **window}),
            KernelCase("conv2d_input_grad", label, normal(dout=out, weight=weight),
                       conv.F * products // weight[1], {"x_shape": x, **window}),
            KernelCase("conv2d_weight_grad", label, normal(dout=out, x=x), pixels,
                       {"weight_shape": weight, **window}, any_order=True),
        ]  # fmt: skip
    for label, (a, b) in {
        "5x3 @ 3x7": ((5, 3), (3, 7)),
        "1x1": ((1, 1), (1, 1)),
        "37x512 @ 512x10": ((37, 512), (512, 10)),
        "batched": ((2, 3, 4), (2, 4, 5)),
        "repeated": ((2, 3, 4), (4, 5)),
        "empty": ((0, 3), (3, 7)),
        "sum over nothing": ((2, 0), (0, 3)),
    }.items():
        cases.append(KernelCase("matmul", label, normal(a=a, b=b), a[-1]))
    return cases


# ------------------------------------------------------------------------------ batch normalisation

EPS = 1e-5
NORMALISED = {
    "10 channels": (2, 5, 4, 10),
    "one channel": (3, 4, 2, 1),
    "rows, 37 channels": (8, 37),
    "3 channels, one pixel": (4, 1, 1, 3),
    "64 channels": (2, 9, 7, 64),
}


def _batch_norm_arrays(shape: tuple[int, ...], offset: float, *names: str) -> Callable[..., Any]:
    """Draw what `names` ask for; scales in [0.5, 2], so that a missing one shows."""

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


def _train_grad(b, dout, x, weight, eps, out=None):
    _, mean, variance = b.batch_norm_train(x, weight, weight, eps)
    return b.batch_norm_train_grad(dout, x, weight, mean, variance, eps, out=out)


def _rectified_train_grad(b, dout, x, weight, bias, eps):
    out, mean, variance = b.batch_norm_train(x, weight, bias, eps, relu=True)
    return b.batch_norm_train_grad(dout, x, weight, mean, variance, eps, out=out, bias=bias)[:3]


def _rectified_eval_grad(b, dout, x, weight, bias, mean, variance, eps):
    out = b.batch_norm_eval(x, weight, bias, mean, variance, eps, relu=True)
    return b.batch_norm_eval_grad(dout, x, weight, mean, variance, eps, out=out, bias=bias)[:3]


def _batch_norm_cases() -> list[KernelCase]:
    offsets = {label: (shape, 0.0) for label, shape in NORMALISED.items()}
    offsets["mean 1000"] = ((4, 6, 5, 3), 1000.0)
    plain, fused = {"eps": EPS}, {"eps": EPS, "relu": True}
    cases = []
    for subject, suffix, names, options, compute in (
        ("batch_norm_train", "", "x weight bias", plain, None),
        ("batch_norm_train", ", fused", "x weight bias residual", fused, None),
        ("batch_norm_eval", "", "x weight bias mean variance", plain, None),
        ("batch_norm_eval", ", fused", "x weight bias mean variance residual", fused, None),
        ("batch_norm_train_grad", "", "dout x weight", plain, _train_grad),
        ("batch_norm_train_grad", ", fused", "dout x weight out", plain, _train_grad),
        ("batch_norm_train_grad", ", rectified", "dout x weight bias", plain,
         _rectified_train_grad),
        ("batch_norm_eval_grad", "", "dout x weight mean variance", plain, None),
        ("batch_norm_eval_grad", ", fused", "dout x weight mean variance out", plain, None),
        ("batch_norm_eval_grad", ", rectified", "dout x weight bias mean variance", plain,
         _rectified_eval_grad),
    ):  # fmt: skip
        empty = {"empty batch": ((0, 4, 3, 5), 0.0)} if "eval" in subject else {}
        for label, (shape, offset) in {**offsets, **empty}.items():
            draw = _batch_norm_arrays(shape, offset, *names.split())
            terms = count(shape[:-1])
            cases.append(
                KernelCase(subject, label + suffix, draw, terms, options, compute, lent=("dout",))
            )
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


def _max_pool_grad(b, x, dout, **window):
    return b.max_pool2d_grad(dout, b.max_pool2d(x, **window)[1], x.shape, **window)


def _global_max_grad(b, x, dout):
    return b.global_max_pool_grad(dout, b.global_max_pool(x)[1], x.shape)


def _negative(rng: Generator, shape: tuple[int, ...]) -> Array:
    return distinct(rng, shape) - 2


def _pooling_cases() -> list[KernelCase]:
    cases = []
    decisive = ("x",)
    for label, (x_shape, kernel, stride, padding) in POOLS.items():
        window = {"kernel": kernel, "stride": stride, "padding": padding}
        N, H, W, C = x_shape
        out_shape = (N, output_size(H, **window), output_size(W, **window), C)
        for suffix, values in (("", distinct), (", ties", tied), (", all negative", _negative)):

            def draw_x(rng, values=values, x_shape=x_shape):
                return {"x": values(rng, x_shape)}

            def draw(rng, draw_x=draw_x, out_shape=out_shape):
                return {**draw_x(rng), "dout": rng.standard_normal(out_shape)}

            name, terms = label + suffix, kernel * kernel
            cases += [
                KernelCase("max_pool2d", name, draw_x, terms, window, decisive=decisive),
                KernelCase("max_pool2d_grad", name, draw, terms, window, _max_pool_grad, decisive),
            ]
    for label, x_shape in {
        "7x7, 37 channels": (2, 7, 7, 37),
        "3x5, batch of one": (1, 3, 5, 10),
        "one pixel": (3, 1, 1, 1),
        "empty batch": (0, 3, 2, 4),
    }.items():
        x, dout = normal(x=x_shape), (x_shape[0], x_shape[3])
        cases += [
            KernelCase("global_average_pool", label, x, x_shape[1] * x_shape[2]),
            KernelCase("global_average_pool_grad", label, normal(dout=dout),
                       options={"x_shape": x_shape}),
            KernelCase("global_max_pool", label, x, decisive=decisive),
            KernelCase("global_max_pool_grad", label, normal(x=x_shape, dout=dout),
                       compute=_global_max_grad, decisive=decisive),
        ]  # fmt: skip
    return cases


def _elementwise_cases() -> list[KernelCase]:
    cases = []
    some = {"probability": 0.3, "seed": 7, "stream": (2, 5)}
    none = {"probability": 0.0, "seed": 2**40 + 1, "stream": (0, 2**33)}
    for shape in ((2, 5, 4, 3), (7, 37), (1,), (3, 14, 14, 64), (0, 4)):
        label, x = str(shape), normal(x=shape)

        def draw_out(rng, shape=shape):
            return {"dout": rng.standard_normal(shape), "out": np.maximum(tied(rng, shape), 0)}

        cases += [
            KernelCase("relu", label, x),
            KernelCase("relu_grad", label, draw_out),
            KernelCase("add", label, normal(a=shape, b=shape)),
            KernelCase("dropout", label, x, options=some),
            KernelCase("dropout", f"{label}, none dropped", x, options=none),
        ]
    return cases


# ------------------------------------------------------------------------------ loss and optimizers


def _loss_grad(b, logits, labels, label_smoothing, class_weights):
    given = label_smoothing, class_weights
    _, log_probabilities = b.softmax_cross_entropy(logits, labels, *given)
    return b.softmax_cross_entropy_grad(log_probabilities, labels, *given)


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

        def draw(rng, N=N, C=C, scale=scale, weighted=weighted):
            drawn = {"logits": scale * rng.standard_normal((N, C)), "labels": rng.integers(0, C, N)}
            return {**drawn, "class_weights": rng.uniform(0.5, 2, C)} if weighted else drawn

        options = {"label_smoothing": smoothing, **({} if weighted else {"class_weights": None})}
        cases += [
            KernelCase("softmax_cross_entropy", label, draw, N * C, options),
            KernelCase("softmax_cross_entropy_grad", label, draw, C, options, _loss_grad),
        ]
    return cases


def _optimizer_cases() -> list[KernelCase]:
    cases = []
    adam = {"step": 3, "lr": 1e-3, "momentum": 0.9, "square_momentum": 0.99, "eps": 1e-5,
            "weight_decay": 0.01}  # fmt: skip
    sgd = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.01}
    for shape in ((37,), (5, 3, 3, 3), (1,), (0,), (1000,)):

        def draw(rng, shape=shape):
            arrays = normal(parameter=shape, gradient=shape, average=shape)(rng)
            return {**arrays, "average_square": rng.uniform(0, 1, shape)}

        pair = {"parameter": shape, "gradient": shape}
        for subject, suffix, arrays, terms, options, written in (
            ("adam_step", "", draw, 4, adam, ("parameter", "average", "average_square")),
            ("sgd_step", "", normal(**pair), 2, {**sgd, "velocity": None}, ("parameter",)),
            ("sgd_step", ", momentum", normal(**pair, velocity=shape), 3, sgd,
             ("parameter", "velocity")),
        ):  # fmt: skip
            label = f"{shape}{suffix}"
            cases.append(
                KernelCase(subject, label, arrays, terms, options, lent=written, written=written)
            )
    return cases


# ------------------------------------------------------------------- measurement, input, reductions


def _update_sums(b: Backend, before, after, gradient):
    return b.update_sums(before, after, gradient).astype(before.dtype)


def _images(b: Backend, pixels, mean, std):
    return b.images(pixels, mean.astype(np.float32), std.astype(np.float32), mean.dtype)


def _measurement_and_input_cases() -> list[KernelCase]:
    cases = []
    for shape in ((37,), (5, 3, 3, 3), (1,), (0,), (), (300, 257)):
        arrays = normal(before=shape, after=shape, gradient=shape)
        cases += [
            KernelCase("update_sums", str(shape), arrays, count(shape), compute=_update_sums),
            KernelCase("copy", str(shape), normal(x=shape), any_order=True),
        ]
    for shape in ((2, 5, 4, 3), (1, 1, 1, 1), (0, 4, 4, 3)):

        def draw(rng, shape=shape):
            C = shape[-1]
            return {
                "pixels": rng.integers(0, 256, shape, dtype=np.uint8),
                "mean": rng.uniform(0.3, 0.6, C),
                "std": rng.uniform(0.2, 0.3, C),
            }

        cases.append(KernelCase("images", str(shape), draw, 3, compute=_images))
    shares = {"keep": 0.9, "weight": 0.1}
    for C in (1, 37, 0):
        arrays = normal(running=(C,), value=(C,))
        cases.append(KernelCase("running_average", f"({C},)", arrays, 2, shares))
    return cases


def _reduction_cases() -> list[KernelCase]:
    cases = []
    for shape, axes in (
        ((2, 5, 4, 3), (0, 1, 2)), ((6, 37), (0,)), ((3, 4), None), ((2, 3, 4), (1,)), ((5,), (0,)),
        ((0, 3), (0,)), ((16, 32, 32, 10), (0, 1, 2)),
    ):  # fmt: skip
        summed = range(len(shape)) if axes is None else axes
        terms = count(tuple(shape[a] for a in summed))
        for subject in ("sum", "mean") if 0 not in shape else ("sum",):
            for keep in (False, True):
                label = f"{shape} over {axes}{', kept' if keep else ''}"
                options = {"axis": axes, "keepdims": keep}
                cases.append(KernelCase(subject, label, normal(x=shape), terms, options))
    three, row = normal(a=(2, 1, 3), b=(2, 4, 3), c=(2, 0, 3)), normal(x=(1, 3))
    return [
        *cases,
        KernelCase("broadcast", "(1, 3) to (4, 3)", row, options={"shape": (4, 3)}),
        KernelCase("broadcast", "to nothing", row, options={"shape": (0, 3)}),
        KernelCase("concatenate", "axis 1", three,
                   compute=lambda backend, a, b, c: backend.concatenate([a, b, c], 1)),
        KernelCase("split", "axis 1", normal(x=(2, 5, 3)),
                   compute=lambda b, x: tuple(b.split(x, [1, 4, 0], 1))),
        KernelCase("zeros_like", "(2, 3)", normal(x=(2, 3))),
        *(KernelCase("elementary", name, positive(x=(3, 37)), 4, {"function": name},
                     compute=lambda backend, x, function: backend.elementary(function, x))
          for name in ("exp", "log", "sqrt", "tanh")),
        KernelCase("elementary", "maximum", normal(a=(3, 7), b=(7,)),
                   compute=lambda backend, a, b: backend.elementary("maximum", a, b)),
        KernelCase("add_at", "a row twice", normal(values=(3, 2)), 2,
                   compute=lambda backend, values: backend.add_at((4, 2), ([0, 3, 0],), values)),
    ]  # fmt: skip


KERNEL_CASES: list[KernelCase] = [
    *_convolution_cases(),
    *_batch_norm_cases(),
    *_elementwise_cases(),
    *_pooling_cases(),
    *_loss_cases(),
    *_optimizer_cases(),
    *_measurement_and_input_cases(),
    *_reduction_cases(),
]
