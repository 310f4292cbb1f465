"""The ops' half of the contract: calls of every op, and calls that every op must refuse.

Letters as in `backends/reference.py`. Inputs stay away from kinks: no zeros for a ReLU, no ties for
a max-pool, or there would be no derivative to compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray as Array

from tinyft import ops
from tinyft.engine.tensor import Tensor
from tinyft.errors import ShapeError
from tinyft.testing.kernel_cases import (
    CONVOLUTIONS,
    NORMALISED,
    POOLS,
    Case,
    count,
    distinct,
    normal,
    positive,
)


@dataclass(frozen=True)
class OpCase(Case):
    """One call of one op.

    Arrays are handed over as Tensors, but those in `constants` and integers as they are.
    `compute(**arguments)` stands for the op where its arguments have no names. `any_order`: arrays
    whose gradient may be a transposed view.
    """

    constants: tuple[str, ...] = ()
    any_order: tuple[str, ...] = ()

    def call(self, **arguments: Any) -> Any:
        """Call the op: a Tensor, or a tuple that begins with one."""
        return (self.compute or getattr(ops, self.subject))(**arguments, **self.options)


@dataclass(frozen=True)
class Refusal:
    """A call that must raise `error`, with each of `words` in the message."""

    subject: str
    label: str
    call: Callable[[], Any]
    words: tuple[str, ...]
    error: type[Exception] = ShapeError

    def __str__(self) -> str:
        return f"{self.subject} refuses {self.label}"


# -------------------------------------------------------------------------------------- arithmetic

PAIRS = [
    ((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1), (2, 3)), ((), (2, 3)), ((2, 3), ()),
    ((1, 1, 3), (2, 3)), ((0, 3), (1, 3)), ((1,), (4, 1)), ((5,), (5,)),
]  # fmt: skip


def _arithmetic_cases() -> list[OpCase]:
    cases = []
    for subject in ("add", "sub", "mul", "div"):
        for a, b in PAIRS:

            def draw(rng, a=a, b=b):
                sign = np.where(rng.random(b) < 0.5, -1, 1)
                return {"a": np.asarray(rng.standard_normal(a)), "b": sign * rng.uniform(0.5, 2, b)}

            # a gradient is summed over what broadcasting repeated: at most 6 elements here
            cases.append(OpCase(subject, f"{a} and {b}", draw, 6))
    for label, (a, b) in {
        "plain": ((5, 3), (3, 7)),
        "batched": ((2, 3, 4), (2, 4, 5)),
        "repeated": ((2, 3, 4), (4, 5)),
        "one": ((1, 1), (1, 1)),
        "empty": ((0, 3), (3, 4)),
    }.items():
        cases.append(OpCase("matmul", label, normal(a=a, b=b), 30))
    for a, b in PAIRS[:3]:
        cases.append(OpCase("maximum", f"{a} and {b}", normal(a=a, b=b), 6))
    for subject in ("exp", "log", "sqrt", "tanh"):
        for shape in ((2, 3), (), (0, 3)):
            cases.append(OpCase(subject, str(shape), positive(x=shape), 4))
    for exponent in (2, -0.5, 3):
        options = {"exponent": exponent}
        cases.append(OpCase("power", f"to the {exponent}", positive(a=(2, 3)), 4, options))
    return [*cases, OpCase("neg", "(2, 3)", normal(a=(2, 3)))]


INDICES = {
    "a row": 1, "a place": (1, -1, 0), "every second": (slice(None, None, 2), slice(1)),
    "the last": (..., -1), "a new axis": (None, 2), "rows, one twice": [0, 3, 0],
    "places, one twice": ([0, 1, 0], [2, 1, 2]), "a mask": np.arange(4) % 2 == 0,
}  # fmt: skip


def _reduction_cases() -> list[OpCase]:
    cases = []
    for shape, axis, keep in (
        ((2, 3, 4), None, False), ((2, 3, 4), (0, 2), False), ((2, 3, 4), 1, True),
        ((2, 3, 4), -1, False), ((5,), 0, False), ((0, 3), 1, False), ((2, 3), (), False),
    ):  # fmt: skip
        for subject in ("sum", "mean"):
            label = f"{shape} over {axis}{', kept' if keep else ''}"
            options = {"axis": axis, "keepdims": keep}
            cases.append(OpCase(subject, label, normal(x=shape), 24, options))
    three = normal(a=(2, 1, 3), b=(2, 4, 3), c=(2, 2, 3))
    return [
        *cases,
        OpCase("reshape", "(2, 6) to (3, -1)", normal(x=(2, 6)), options={"shape": (3, -1)}),
        OpCase("reshape", "empty", normal(x=(0, 6)), options={"shape": (2, 0)}),
        *(OpCase("transpose", str(axes), normal(x=(2, 3, 4)), options={"axes": axes})
          for axes in (None, (0, 2, 1), (-1, 0, 1))),
        *(OpCase("index", label, normal(x=(4, 3, 2)), 3, options={"at": at})
          for label, at in INDICES.items()),
        OpCase("concatenate", "axis 1", three,
               compute=lambda a, b, c: ops.concatenate(a, b, c, axis=1)),
        OpCase("concatenate", "one", normal(x=(2, 3)), compute=lambda x: ops.concatenate(x)),
    ]  # fmt: skip


# -------------------------------------------------------------------------------------- the network


def _convolution_cases() -> list[OpCase]:
    cases = []
    for label, conv in CONVOLUTIONS.items():
        C, R, S = conv.weight[1:]
        # the longest sum of forward, dx and dweight
        terms = max(C * R * S, conv.F * R * S, int(np.prod(conv.out[:3])))
        shapes = {"x": conv.x, "weight": conv.weight, "bias": (conv.F,)}
        draw, order = normal(**shapes), ("weight",)
        cases.append(OpCase("conv2d", label, draw, terms, conv.window, any_order=order))
        if np.prod(conv.out) < 2000:  # beyond, some unit's sign would hang on a rounding
            draw, fused = normal(**shapes, residual=conv.out), {"relu": True, **conv.window}
            cases.append(OpCase("conv2d", f"{label}, fused", draw, terms, fused, any_order=order))
    for label, (N, C, F) in {"4x10": (4, 10, 3), "one": (1, 1, 1), "empty": (0, 5, 2)}.items():
        draw = normal(x=(N, C), weight=(F, C), bias=(F,))
        cases.append(OpCase("linear", label, draw, 10))
    cases.append(OpCase("linear", "no bias", normal(x=(5, 37), weight=(10, 37)), 37))
    return cases


def _batch_norm_cases() -> list[OpCase]:
    cases = []
    for given, subject in ((False, "batch_norm"), (True, "batch_norm_eval")):
        constants = ("mean", "variance") if given else ()
        shapes = NORMALISED | ({"empty batch": (0, 3, 4, 5)} if given else {})
        for label, shape in shapes.items():
            for suffix, residual, relu in (
                ("", False, False), (", relu", False, True), (", residual", True, False),
                (", residual, relu", True, True),
            ):  # fmt: skip

                def draw(rng, shape=shape, given=given, residual=residual):
                    C = shape[-1]
                    arrays = {
                        "x": rng.standard_normal(shape) * 1.5 + 0.7,
                        "weight": rng.uniform(0.5, 2, C),
                        "bias": rng.standard_normal(C),
                    }
                    if given:
                        arrays["mean"] = rng.standard_normal(C)
                        arrays["variance"] = rng.uniform(0.5, 2, C)
                    return arrays | ({"residual": rng.standard_normal(shape)} if residual else {})

                options = {"relu": relu}
                terms = count(shape[:-1])
                cases.append(
                    OpCase(subject, label + suffix, draw, terms, options, constants=constants)
                )
    return cases


def _distinct_x(shape: tuple[int, ...]) -> Callable[..., Any]:
    return lambda rng: {"x": distinct(rng, shape)}


def _pooling_and_elementwise_cases() -> list[OpCase]:
    cases = []
    shape: tuple[int, ...]
    for label, (shape, kernel, stride, padding) in POOLS.items():
        window = {"kernel": kernel, "stride": stride, "padding": padding}
        draw = _distinct_x(shape)
        cases.append(OpCase("max_pool2d", label, draw, kernel * kernel, window, decisive=("x",)))
    for shape in ((2, 4, 3, 10), (1, 1, 1, 1), (3, 5, 2, 37), (0, 3, 2, 4)):
        label, draw = str(shape), _distinct_x(shape)
        cases.append(OpCase("global_average_pool", label, draw, 20))
        cases.append(OpCase("global_max_pool", label, draw, decisive=("x",)))
    drop = {"probability": 0.4, "seed": 3, "stream": (1, 2)}
    for shape in ((2, 5, 4, 3), (7, 37), (1, 1), (0, 4)):
        cases.append(OpCase("relu", str(shape), _distinct_x(shape)))
        # the only element of (1, 1) is dropped, and then nothing is left to check
        if shape != (1, 1):
            cases.append(OpCase("dropout", str(shape), _distinct_x(shape), options=drop))
    return cases


def _loss_cases() -> list[OpCase]:
    cases = []
    for label, (N, C, smoothing, weighted) in {
        "10 classes": (5, 10, 0.0, False),
        "two classes, batch of one": (1, 2, 0.1, False),
        "37 classes, smoothed": (4, 37, 0.1, False),
        "weighted": (6, 3, 0.0, True),
        "smoothed and weighted": (7, 5, 0.2, True),
    }.items():

        def draw(rng, N=N, C=C, weighted=weighted):
            arrays = {"logits": rng.standard_normal((N, C)), "labels": rng.integers(0, C, N)}
            return arrays | ({"class_weights": rng.uniform(0.5, 2, C)} if weighted else {})

        options, constants = {"label_smoothing": smoothing}, ("labels", "class_weights")
        cases.append(OpCase("cross_entropy", label, draw, N * C, options, constants=constants))
    return cases


OP_CASES: list[OpCase] = [
    *_arithmetic_cases(),
    *_reduction_cases(),
    *_convolution_cases(),
    *_batch_norm_cases(),
    *_pooling_and_elementwise_cases(),
    *_loss_cases(),
]


# ----------------------------------------------------------------------------------------- refusals


def _zeros(*shape: int, dtype: str = "float32") -> Tensor:
    return Tensor(np.zeros(shape, dtype))


def _conv2d(x: tuple, weight: tuple, **options: Any) -> Callable[[], Any]:
    return lambda: ops.conv2d(_zeros(*x), _zeros(*weight), **options)


def _pool(*x: int, kernel: int = 3, stride: int = 2, padding: int = 0) -> Callable[[], Any]:
    return lambda: ops.max_pool2d(_zeros(*x), kernel=kernel, stride=stride, padding=padding)


def _normalise(x: tuple, weight: tuple, bias: tuple, **options: Any) -> Callable[[], Any]:
    return lambda: ops.batch_norm(_zeros(*x), _zeros(*weight), _zeros(*bias), **options)


def _normalise_eval(mean: Array, variance: Array) -> Callable[[], Any]:
    x, weight = _zeros(2, 4, 4, 3), _zeros(3)
    return lambda: ops.batch_norm_eval(x, weight, weight, mean, variance)


def _loss(logits: tuple, labels: list, weights: int | None = None) -> Callable[[], Any]:
    class_weights = None if weights is None else np.ones(weights, np.float32)
    whole = np.array(labels) if labels else np.zeros(0, int)
    return lambda: ops.cross_entropy(_zeros(*logits), whole, class_weights=class_weights)


PICTURE, FILTERS = (2, 8, 8, 3), (4, 3, 3, 3)

REFUSALS: list[Refusal] = [
    Refusal("power", "a tensor",
            lambda: ops.power(_zeros(2), _zeros(2)),  # type: ignore[arg-type]  # what it refuses
            ("exp(b * log(a))",), TypeError),
    Refusal("maximum", "other shapes", lambda: ops.maximum(_zeros(2), _zeros(3)),
            ("(2,)", "(3,)", "do not broadcast")),
    Refusal("transpose", "an axis too few", lambda: ops.transpose(_zeros(2, 3), (0,)),
            ("each axis of (2, 3) once",)),
    Refusal("conv2d", "rows", _conv2d((2, 3), FILTERS), ("x should be (N, H, W, C)", "(2, 3)")),
    Refusal("conv2d", "channels first", _conv2d((2, 3, 8, 8), FILTERS),
            ("weight should be (F, 8, R, S)", "(4, 3, 3, 3)", "channels come last")),
    Refusal("conv2d", "a wrong bias", _conv2d(PICTURE, FILTERS, bias=_zeros(3)),
            ("bias should be (4,)", "is (3,)")),
    Refusal("conv2d", "a wrong residual", _conv2d(PICTURE, FILTERS, residual=_zeros(*PICTURE)),
            ("residual should be (2, 6, 6, 4)", "(2, 8, 8, 3)")),
    Refusal("conv2d", "a kernel that is too large", _conv2d((2, 2, 8, 3), FILTERS),
            ("kernel of 3 rows", "2 rows", "padding 0")),
    Refusal("conv2d", "stride 0", _conv2d(PICTURE, FILTERS, stride=0), ("stride 0",)),
    Refusal("conv2d", "negative padding", _conv2d(PICTURE, FILTERS, padding=-1), ("padding -1",)),
    Refusal("conv2d", "mixed dtypes",
            lambda: ops.conv2d(_zeros(*PICTURE), _zeros(*FILTERS, dtype="float64")),
            ("x is float32", "weight is float64"), TypeError),
    Refusal("linear", "pictures", lambda: ops.linear(_zeros(*PICTURE), _zeros(4, 3)),
            ("x should be (N, C)", "(2, 8, 8, 3)")),
    Refusal("linear", "a wrong weight", lambda: ops.linear(_zeros(2, 5), _zeros(4, 3)),
            ("weight should be (F, 5)", "(4, 3)")),
    Refusal("linear", "a wrong bias", lambda: ops.linear(_zeros(2, 3), _zeros(4, 3), _zeros(3)),
            ("bias should be (4,)", "(3,)")),
    Refusal("batch_norm", "a vector", _normalise((3,), (3,), (3,)), ("x should be (N, C)", "(3,)")),
    Refusal("batch_norm", "a wrong weight", _normalise(PICTURE, (8,), (3,)),
            ("weight should be (3,)", "(8,)", "channels come last")),
    Refusal("batch_norm", "a wrong bias", _normalise(PICTURE, (3,), (1,)),
            ("bias should be (3,)", "(1,)")),
    Refusal("batch_norm", "a wrong residual", _normalise(PICTURE, (3,), (3,), residual=_zeros(3)),
            ("residual should be (2, 8, 8, 3)", "(3,)")),
    Refusal("batch_norm", "one value per channel", _normalise((1, 3), (3,), (3,)),
            ("(1, 3)", "one value per channel")),
    Refusal("batch_norm", "one pixel of one picture", _normalise((1, 1, 1, 3), (3,), (3,)),
            ("(1, 1, 1, 3)", "one value per channel")),
    Refusal("batch_norm_eval", "a wrong mean",
            _normalise_eval(np.zeros(1, np.float32), np.ones(3, np.float32)),
            ("mean should be (3,)", "(1,)")),
    Refusal("batch_norm_eval", "a wrong variance",
            _normalise_eval(np.zeros(3, np.float32), np.ones((3, 1), np.float32)),
            ("variance should be (3,)", "(3, 1)")),
    Refusal("batch_norm_eval", "mixed dtypes", _normalise_eval(np.zeros(3), np.ones(3)),
            ("x is float32", "mean is float64"), TypeError),
    Refusal("max_pool2d", "rows", _pool(2, 3), ("x should be (N, H, W, C)", "(2, 3)")),
    Refusal("max_pool2d", "a window that is too large", _pool(2, 2, 8, 3), ("kernel of 3 rows",)),
    Refusal("max_pool2d", "too much padding", _pool(*PICTURE, padding=2),
            ("padding 2", "kernel 3")),
    Refusal("max_pool2d", "places beyond 16 bits", _pool(1, 300, 300, 1, kernel=256),
            ("at most 255", "got 256")),
    Refusal("max_pool2d", "stride 0", _pool(*PICTURE, stride=0), ("stride 0",)),
    Refusal("global_average_pool", "rows", lambda: ops.global_average_pool(_zeros(2, 3)),
            ("x should be (N, H, W, C)", "(2, 3)")),
    Refusal("global_average_pool", "no pixels",
            lambda: ops.global_average_pool(_zeros(2, 0, 4, 3)),
            ("(2, 0, 4, 3)", "without pixels")),
    Refusal("global_max_pool", "no pixels", lambda: ops.global_max_pool(_zeros(2, 4, 0, 3)),
            ("(2, 4, 0, 3)", "without pixels")),
    Refusal("cross_entropy", "pictures", _loss(PICTURE, [0, 1]), ("logits should be (N, C)",)),
    Refusal("cross_entropy", "an empty batch", _loss((0, 3), []), ("batch is empty",)),
    Refusal("cross_entropy", "too few labels", _loss((2, 3), [0]), ("(2,)", "(1,)")),
    Refusal("cross_entropy", "float labels", _loss((2, 3), [0.0, 1.0]), ("integers", "float64"),
            TypeError),
    Refusal("cross_entropy", "label -1", _loss((2, 3), [-1, 0]), ("from -1 to 0", "3 classes")),
    Refusal("cross_entropy", "label C", _loss((2, 3), [0, 3]), ("from 0 to 3", "3 classes")),
    Refusal("cross_entropy", "wrong class weights", _loss((2, 3), [0, 1], 2),
            ("class_weights should be (3,)", "(2,)")),
    Refusal("matmul", "sizes that differ", lambda: ops.matmul(_zeros(2, 3), _zeros(4, 5)),
            ("(..., M, K) @ (..., K, N)", "(2, 3)", "(4, 5)")),
    Refusal("matmul", "vectors", lambda: ops.matmul(_zeros(3), _zeros(3)), ("(3,)",)),
    Refusal("add", "shapes that do not broadcast", lambda: ops.add(_zeros(2, 3), _zeros(2)),
            ("(2, 3)", "(2,)")),
    Refusal("add", "mixed dtypes", lambda: ops.add(_zeros(2), _zeros(2, dtype="float64")),
            ("float32", "float64"), TypeError),
    Refusal("sum", "an axis that is not there", lambda: ops.sum(_zeros(2, 3), axis=2),
            ("axis 2", "(2, 3)")),
    Refusal("sum", "an axis twice", lambda: ops.sum(_zeros(2, 3), axis=(0, -2)),
            ("axis (0, -2)", "(2, 3)")),
    Refusal("mean", "no elements", lambda: ops.mean(_zeros(0, 3), axis=0),
            ("no elements", "(0, 3)")),
    Refusal("reshape", "another size", lambda: ops.reshape(_zeros(2, 3), (4,)), ("(2, 3)", "(4,)")),
    Refusal("concatenate", "other shapes",
            lambda: ops.concatenate(_zeros(2, 3), _zeros(3, 3), axis=1), ("axis 1", "(3, 3)")),
    Refusal("concatenate", "other numbers of axes",
            lambda: ops.concatenate(_zeros(2, 3, 4), _zeros(2, 3), axis=2), ("axis 2", "(2, 3)")),
    Refusal("concatenate", "mixed dtypes",
            lambda: ops.concatenate(_zeros(2, 3), _zeros(2, 3, dtype="float64")),
            ("float32", "float64"), TypeError),
    Refusal("concatenate", "nothing",
            lambda: ops.concatenate(),  # type: ignore[call-arg]  # what it refuses
            ("at least one",)),
    Refusal("dropout", "probability 1",
            lambda: ops.dropout(_zeros(2), 1.0, seed=0, stream=(0, 0)), ("1.0",), ValueError),
]  # fmt: skip
