"""Batch normalisation, with the statistics of the batch or with given ones.

A residual network adds and rectifies right after it, so both ops do all three in one pass over
memory; `with unfused():` runs them one after the other, for whoever wants to see each value.

Source: Ioffe and Szegedy, Batch normalization (2015), section 3.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator

from numpy import ndarray as Array

from tinyft.engine.checks import data_of, expect_floats, expect_same_dtype, expect_shape
from tinyft.engine.tape import Backward, Made
from tinyft.engine.tensor import Tensor, op
from tinyft.errors import ShapeError
from tinyft.ops import elementwise


class _Here(threading.local):
    fused = True  # one op does all three, in this thread


_here = _Here()


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Make normalising, adding and rectifying three ops within this block, in this thread."""
    before, _here.fused = _here.fused, False
    try:
        yield
    finally:
        _here.fused = before


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each channel by the batch's own mean and variance: relu(normalised * weight + bias
    + residual).

    Shapes:
        x (N, H, W, C) or (N, C), weight bias (C,), residual like x
        -> out like x, mean (C,), variance (C,)
    Raises: ShapeError, also for one value per channel, which has no variance; TypeError for mixed
    dtypes or integers
    Keeps: x, mean, variance, weight; the result if rectified, and then the bias if there is no
    residual
    """
    if _here.fused:
        fused = batch_norm_train(x, weight, bias, eps=eps, residual=residual, relu=relu)
        out, mean, variance = fused
        return out, mean, variance
    out, mean, variance = batch_norm_train(x, weight, bias, eps=eps)
    return _add_and_rectify(out, residual, relu), mean, variance


def batch_norm_eval(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Array,
    variance: Array,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Normalise by a given mean and variance, arrays (C,) and constants: in evaluation (the running
    statistics), and in a frozen layer.

    Shapes, Raises, Keeps: as `batch_norm`; one value per channel is allowed
    """
    if _here.fused:
        return batch_norm_fixed(
            x, weight, bias, mean, variance, eps=eps, residual=residual, relu=relu
        )
    out = batch_norm_fixed(x, weight, bias, mean, variance, eps=eps)
    return _add_and_rectify(out, residual, relu)


def _add_and_rectify(out: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    if residual is not None:
        out = out + residual
    return elementwise.relu(out) if relu else out


@op
def batch_norm_train(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[tuple[Array, ...], Backward]:
    """relu((x - mean) / sqrt(variance + eps) * weight + bias + residual), mean and variance of the
    batch: the recorded op behind `batch_norm`.
    """
    _check("batch_norm", x, weight, bias, residual)
    if x.size <= x.shape[-1]:
        raise ShapeError(
            f"batch_norm: x is {x.shape}: one value per channel has no variance; "
            "use a batch of at least two, or evaluation mode"
        )
    backend = x.backend
    out, mean, variance = backend.batch_norm_train(
        x.data, weight.data, bias.data, eps, residual=data_of(residual), relu=relu
    )
    kept = _kept(x, weight, bias, residual, relu, out, mean, variance, eps)

    # forward was: out = relu(n * weight + bias + residual) with n = (x - mean) / std, both of the M
    # values per channel; so, with dout = 0 where out is 0: dbias = sum(dout),
    # dweight = sum(dout * n), dx = weight / std * (dout - dbias / M - n * dweight / M),
    # dresidual = dout
    def backward(dout):
        return _gradients(backend.batch_norm_train_grad, dout, kept)

    return (out, mean, variance), backward


@op
def batch_norm_fixed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Array,
    variance: Array,
    *,
    eps: float,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Made:
    """relu((x - mean) / sqrt(variance + eps) * weight + bias + residual), mean and variance given:
    the recorded op behind `batch_norm_eval`.
    """
    _check("batch_norm_eval", x, weight, bias, residual)
    expect_shape("batch_norm_eval", "mean", mean.shape, (x.shape[-1],))
    expect_shape("batch_norm_eval", "variance", variance.shape, (x.shape[-1],))
    expect_same_dtype("batch_norm_eval", x=x, mean=mean, variance=variance)
    backend = x.backend
    out = backend.batch_norm_eval(
        x.data, weight.data, bias.data, mean, variance, eps,
        residual=data_of(residual), relu=relu,
    )  # fmt: skip
    kept = _kept(x, weight, bias, residual, relu, out, mean, variance, eps)

    # forward was: out = relu(n * weight + bias + residual) with n = (x - mean) / std of constants;
    # so, with dout = 0 where out is 0: dx = dout * weight / std, dbias = sum(dout),
    # dweight = sum(dout * n), dresidual = dout
    def backward(dout):
        return _gradients(backend.batch_norm_eval_grad, dout, kept)

    return out, backward


def _check(name, x, weight, bias, residual):
    residual_shape = None if residual is None else residual.shape
    _check_shapes(name, x.shape, weight.shape, bias.shape, residual_shape)
    expect_same_dtype(name, x=x, weight=weight, bias=bias, residual=residual)
    expect_floats(name, x=x)


@functools.lru_cache(maxsize=1024)  # each step asks for the same ones
def _check_shapes(name, x, weight, bias, residual):
    if len(x) < 2:
        raise ShapeError(f"{name}: x should be (N, C) or (N, H, W, C) but is {x}")
    expect_shape(name, "weight", weight, (x[-1],), f" (x is {x}: channels come last)")
    expect_shape(name, "bias", bias, (x[-1],))
    expect_shape(name, "residual", residual, x)


def _kept(x, weight, bias, residual, relu, out, mean, variance, eps):
    """Return what backward keeps, as `_gradients` takes it."""
    needs = [t.requires_grad for t in (x, weight, bias, residual) if t is not None]
    kept_bias = bias.data if relu and residual is None else None
    return x.data, weight.data, mean, variance, eps, out if relu else None, kept_bias, needs


def _gradients(kernel, dout, kept):
    """One gradient per tensor argument (no residual, no argument), None where it is not needed."""
    *arguments, out, bias, needs = kept
    gradients = kernel(dout, *arguments, out=out, bias=bias)
    return tuple([g if need else None for g, need in zip(gradients, needs, strict=False)])
