"""Every kernel that a ResNet needs, in plain NumPy: the definition that faster backends follow.

A kernel takes and returns arrays, never Tensors, and writes into none of its arguments (the two
optimizer steps, which say so, excepted). Any float dtype works; float64 is what gradients are
checked in. Statistics and plain sums are accumulated in float64, whatever the dtype.

Letters: N pictures, H W rows and columns in, C channels in, P Q rows and columns out, F filters
(channels out), R S rows and columns of the kernel. Activations are (N, H, W, C), convolution
weights (F, C, R, S).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import accumulate, product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy import ndarray as Array

from tinyft.backends.philox import uniform_bits


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Rows (or columns) that come out of a convolution or a pooling."""
    return (size + 2 * padding - kernel) // stride + 1


def pad(x: Array, padding: int, value: float = 0.0) -> Array:
    """(N, H, W, C) -> (N, H + 2 padding, W + 2 padding, C), with `value` around."""
    if padding == 0:
        return x
    N, H, W, C = x.shape
    padded = np.empty((N, H + 2 * padding, W + 2 * padding, C), x.dtype)
    padded[...] = value
    padded[:, padding : padding + H, padding : padding + W] = x
    return padded


def taps(kernel: tuple[int, int], stride: int, out: tuple[int, int]) -> Iterator[tuple]:
    """Yield r, s and the index of the pixels that place (r, s) of a kernel meets, over all windows
    at once: `padded[index]` is (N, P, Q, C). Side by side, these are im2col's matrix.
    """
    for r, s in product(range(kernel[0]), range(kernel[1])):
        rows = slice(r, r + stride * (out[0] - 1) + 1, stride)
        columns = slice(s, s + stride * (out[1] - 1) + 1, stride)
        yield r, s, (slice(None), rows, columns)


Batch = TypeVar("Batch")  # anything with `images`


class Backend:
    """The kernels. Fast backends inherit from this class and override what they do better.

    `device` is where its arrays are: "cpu" is main memory. `steps_between_reads`: how often a loss
    may be read, where reading means to wait for the device.
    """

    name: str = "reference"
    device: str = "cpu"
    steps_between_reads = 1
    precision: str | None = None  # of convolutions, where there is a choice

    # ---------------------------------------------------------------- memory: here, nothing to do

    def upload(self, x: Array) -> Array:
        """An array of main memory as an array of this backend, in the same order of memory."""
        return x

    def download(self, x: Array) -> Array:
        """An array of this backend as one of main memory, in the same order of memory."""
        return x

    def uploads(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, with `images` where the kernels read them, sent ahead of their use."""
        return batches

    def current(self) -> AbstractContextManager[object]:
        """Within this block, operators on this backend's arrays work."""
        return nullcontext()

    def deferred_updates(self) -> AbstractContextManager:
        """Within this block optimizer steps may be put off to its end, and made in one launch."""
        return nullcontext()

    def synchronize(self) -> None:
        """Wait until everything that was asked for is computed."""

    def peak_bytes(self) -> int | None:
        """The most memory in use so far, in bytes; None where the system does not tell."""
        return peak_bytes_of_process()

    def description(self) -> str:
        """Name what computes, for people to read."""
        return "reference (plain NumPy)"

    # ---------------------------------------------------------------------------------- convolution

    def conv2d(
        self, x: Array, weight: Array, bias: Array | None = None,
        *, stride: int = 1, padding: int = 0, residual: Array | None = None, relu: bool = False,
    ) -> Array:  # fmt: skip
        """Cross-correlation: R x S shifted matrix products.

        x (N, H, W, C), weight (F, C, R, S), bias (F,), residual (N, P, Q, F) -> (N, P, Q, F)

            out[n, p, q, f] = sum over r, s, c of
                padded[n, p * stride + r, q * stride + s, c] * weight[f, c, r, s]
        """
        N, H, W, C = x.shape
        F, _, R, S = weight.shape
        P, Q = output_size(H, R, stride, padding), output_size(W, S, stride, padding)
        padded = pad(x, padding)
        out = np.zeros((N * P * Q, F), x.dtype)
        for r, s, index in taps((R, S), stride, (P, Q)):
            out += padded[index].reshape(-1, C) @ weight[:, :, r, s].T
        out = out.reshape(N, P, Q, F)
        if bias is not None:
            out += bias
        if residual is not None:
            out += residual
        return self.relu(out) if relu else out

    def conv2d_input_grad(
        self, dout: Array, weight: Array, x_shape: tuple[int, ...], *, stride: int, padding: int
    ) -> Array:
        """Send each output's gradient back to the pixels of its window, times the weight there.

        dout (N, P, Q, F), weight (F, C, R, S) -> dx (N, H, W, C)
        """
        N, H, W, C = x_shape
        F, _, R, S = weight.shape
        P, Q = dout.shape[1:3]
        dpadded = np.zeros((N, H + 2 * padding, W + 2 * padding, C), dout.dtype)
        for r, s, index in taps((R, S), stride, (P, Q)):
            # forward was: out += padded[index] @ weight[:, :, r, s].T
            dpadded[index] += (dout.reshape(-1, F) @ weight[:, :, r, s]).reshape(N, P, Q, C)
        return np.ascontiguousarray(dpadded[:, padding : padding + H, padding : padding + W])

    def conv2d_weight_grad(
        self, dout: Array, x: Array, weight_shape: tuple[int, ...], *, stride: int, padding: int
    ) -> Array:
        """Sum, over all windows, the output's gradient times the pixel that the weight met.

        dout (N, P, Q, F), x (N, H, W, C) -> dweight (F, C, R, S)
        """
        F, C, R, S = weight_shape
        padded = pad(x, padding)
        dweight = np.zeros(weight_shape, dout.dtype)
        for r, s, index in taps((R, S), stride, dout.shape[1:3]):
            # forward was: out += padded[index] @ weight[:, :, r, s].T
            dweight[:, :, r, s] = dout.reshape(-1, F).T @ padded[index].reshape(-1, C)
        return dweight

    def matmul(self, a: Array, b: Array) -> Array:
        """(..., M, K) @ (..., K, N) -> (..., M, N)"""
        return a @ b

    # -------------------------------------------------------------------------- batch normalisation

    def batch_norm_train(
        self, x: Array, weight: Array, bias: Array, eps: float,
        *, residual: Array | None = None, relu: bool = False,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """Normalise each channel by its mean and (biased) variance over the batch.

        x (..., C), weight bias (C,), residual like x -> out like x, mean (C,), variance (C,)
        """
        mean = self.mean(x, rows_of(x))
        variance = self.mean(np.square(x - mean), rows_of(x))
        out = self.batch_norm_eval(
            x, weight, bias, mean, variance, eps, residual=residual, relu=relu
        )
        return out, mean, variance

    def batch_norm_eval(
        self, x: Array, weight: Array, bias: Array, mean: Array, variance: Array, eps: float,
        *, residual: Array | None = None, relu: bool = False,
    ) -> Array:  # fmt: skip
        """The same with statistics that are given: relu((x - mean) / sqrt(variance + eps) * weight
        + bias + residual)
        """
        out = (x - mean) / np.sqrt(variance + eps) * weight + bias
        if residual is not None:
            out += residual
        return self.relu(out) if relu else out

    def batch_norm_train_grad(
        self, dout: Array, x: Array, weight: Array, mean: Array, variance: Array, eps: float,
        *, out: Array | None = None, bias: Array | None = None,
    ) -> tuple[Array, Array, Array, Array | None]:  # fmt: skip
        """Compute the gradients of x, weight, bias and residual.

        `out` is given if a ReLU followed, and `bias` too if no residual was added before it: then x
        alone tells what passed the ReLU, and the last gradient, which nobody wants, is None.

        The mean and the variance depend on x, which adds two terms to `batch_norm_eval_grad`'s dx
        (Ioffe and Szegedy 2015, section 3). A channel's result does not change if a constant is
        added to x, nor, but for eps, if x - mean is scaled: so dx has no part along 1, and of its
        part along the normalised x only eps / (variance + eps) is left (0.09 for inputs of
        deviation 0.01 and eps 1e-5).
        """
        dx, dweight, dbias, dresidual = self.batch_norm_eval_grad(
            dout, x, weight, mean, variance, eps, out=out, bias=bias
        )
        count = x.size // x.shape[-1]
        inverse_std = 1 / np.sqrt(variance + eps)
        normalised = (x - mean) * inverse_std
        # forward was: mean = sum(x) / count, variance = sum((x - mean)^2) / count
        dx -= weight * inverse_std * (dbias + normalised * dweight) / count
        return dx, dweight, dbias, dresidual

    def batch_norm_eval_grad(
        self, dout: Array, x: Array, weight: Array, mean: Array, variance: Array, eps: float,
        *, out: Array | None = None, bias: Array | None = None,
    ) -> tuple[Array, Array, Array, Array | None]:  # fmt: skip
        """The same where mean and variance are constants: each channel is only scaled."""
        if out is not None:
            dout = self.relu_grad(dout, out)
        # forward was: out = (x - mean) * inverse_std * weight + bias + residual
        inverse_std = 1 / np.sqrt(variance + eps)
        dbias = self.sum(dout, rows_of(x))
        dweight = self.sum(dout * (x - mean) * inverse_std, rows_of(x))
        return dout * (weight * inverse_std), dweight, dbias, None if bias is not None else dout

    # ----------------------------------------------------------------------- activation and pooling

    def relu(self, x: Array) -> Array:
        """max(x, 0). NaN stays NaN."""
        return np.maximum(x, 0)

    def relu_grad(self, dout: Array, out: Array) -> Array:
        """dout where the output is positive, else 0 (at 0 too). Forward was: out = max(x, 0)."""
        return np.where(out <= 0, np.zeros((), dout.dtype), dout)

    def max_pool2d(
        self, x: Array, *, kernel: int, stride: int, padding: int
    ) -> tuple[Array, Array]:
        """The largest pixel of each window, and where in the window it was.

        x (N, H, W, C) -> out (N, P, Q, C), place (N, P, Q, C) unsigned: r * kernel + s of the first
        maximum in row-major order. Padding never wins. A NaN does.
        """
        N, H, W, C = x.shape
        P, Q = output_size(H, kernel, stride, padding), output_size(W, kernel, stride, padding)
        padded = pad(x, padding)
        inside = pad(np.zeros((1, H, W, 1)), padding, value=1) == 0
        out = np.zeros((N, P, Q, C), x.dtype) - np.inf
        place = np.zeros((N, P, Q, C), np.uint16) + kernel * kernel  # not found yet
        for r, s, index in taps((kernel, kernel), stride, (P, Q)):
            pixel = padded[index]
            larger = (pixel > out) | (place == kernel * kernel) | (np.isnan(pixel) & ~np.isnan(out))
            larger &= inside[index]
            out = np.where(larger, pixel, out)
            place = np.where(larger, np.uint16(r * kernel + s), place)
        return out, place

    def max_pool2d_grad(
        self, dout: Array, place: Array, x_shape: tuple[int, ...],
        *, kernel: int, stride: int, padding: int,
    ) -> Array:  # fmt: skip
        """Send each window's gradient to its maximum; windows overlap, so a pixel may receive
        several.
        """
        N, H, W, C = x_shape
        dpadded = np.zeros((N, H + 2 * padding, W + 2 * padding, C), dout.dtype)
        for r, s, index in taps((kernel, kernel), stride, dout.shape[1:3]):
            # forward was: out = padded[index] where place is r * kernel + s
            dpadded[index] += np.where(place == r * kernel + s, dout, np.zeros((), dout.dtype))
        return np.ascontiguousarray(dpadded[:, padding : padding + H, padding : padding + W])

    def global_average_pool(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, C)"""
        return self.mean(x, (1, 2))

    def global_average_pool_grad(self, dout: Array, x_shape: tuple[int, ...]) -> Array:
        """Give every pixel an equal share: (N, C) -> (N, H, W, C)"""
        N, H, W, C = x_shape
        return self.broadcast(dout.reshape(N, 1, 1, C) / (H * W), x_shape)

    def global_max_pool(self, x: Array) -> tuple[Array, Array]:
        """(N, H, W, C) -> largest (N, C), and its place h * W + w (N, C) int64, the first in
        row-major order
        """
        N, H, W, C = x.shape
        pixels = x.reshape(N, H * W, C)
        place = pixels.argmax(axis=1)
        return pixels[np.arange(N)[:, None], place, np.arange(C)], place

    def global_max_pool_grad(self, dout: Array, place: Array, x_shape: tuple[int, ...]) -> Array:
        """Send the gradient to the pixel that was the maximum: (N, C) -> (N, H, W, C)"""
        N, H, W, C = x_shape
        dx = np.zeros((N, H * W, C), dout.dtype)
        dx[np.arange(N)[:, None], place, np.arange(C)] = dout
        return dx.reshape(x_shape)

    def dropout(self, x: Array, probability: float, seed: int, stream: tuple[int, int]) -> Array:
        """Zero each element with `probability`, divide the others by 1 - probability.

        Element i is kept if word i of Philox4x32-10, keyed by `seed` and `stream` (a step and a
        layer), is at least probability * 2**32. The kernel is its own gradient: given dout, it
        draws the same mask again.
        """
        keep = uniform_bits(x.size, seed, stream) >= np.uint32(probability * 2**32)
        scale = np.asarray(1 / (1 - probability), x.dtype)
        return np.where(keep.reshape(x.shape), x * scale, np.zeros((), x.dtype))

    # ----------------------------------------------------------------------------------------- loss

    def softmax_cross_entropy(
        self, logits: Array, labels: Array, label_smoothing: float, class_weights: Array | None
    ) -> tuple[Array, Array]:
        """Mean cross-entropy between the softmax and the (smoothed, weighted) labels.

        logits (N, C), labels (N,) integers, class_weights (C,) or None
        -> loss (), log_probabilities (N, C)
        Source: PyTorch `cross_entropy`: the mean is over the weights of the labels, not over
        pictures.
        """
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        target, total = self._target(logits, labels, label_smoothing, class_weights)
        # Where the target is 0 nothing is lost, whatever the logit: -inf * 0 must not become NaN.
        terms = np.where(target == 0, target, target * log_probabilities)
        return np.asarray(-terms.sum() / total, logits.dtype), log_probabilities

    def softmax_cross_entropy_grad(
        self, log_probabilities: Array, labels: Array, label_smoothing: float,
        class_weights: Array | None,
    ) -> Array:  # fmt: skip
        """(probabilities * (sum of the row's targets) - target) / total weight -> dlogits (N, C)"""
        # forward was: loss = -sum(target * (logits - log(sum(exp(logits))))) / total
        target, total = self._target(log_probabilities, labels, label_smoothing, class_weights)
        return (np.exp(log_probabilities) * target.sum(axis=1, keepdims=True) - target) / total

    def _target(self, logits: Array, labels: Array, label_smoothing: float, class_weights):
        """Each class's target, 1 - e on the label and e / C everywhere, times its weight; and what
        to divide by.
        """
        N, C = logits.shape
        target = np.zeros((N, C), logits.dtype) + label_smoothing / C
        target[np.arange(N), labels] += 1 - label_smoothing
        if class_weights is None:
            return target, N
        return target * class_weights, class_weights[labels].sum()

    # ----------------------------------------------------------------------------------- optimizers

    def adam_step(
        self, parameter: Array, gradient: Array, average: Array, average_square: Array,
        *, step: int, lr: float, momentum: float, square_momentum: float, eps: float,
        weight_decay: float,
    ) -> None:  # fmt: skip
        """One step of Adam with decoupled weight decay. Writes into parameter, average and
        average_square.

        Source: fastai 2.8.12 `optimizer.py`: decay first, eps outside the root, and both
        corrections use the momentum of this very step although it changes from step to step.
        """
        parameter *= 1 - lr * weight_decay
        average *= momentum
        average += (1 - momentum) * gradient
        average_square *= square_momentum
        average_square += (1 - square_momentum) * np.square(gradient)
        root = np.sqrt(average_square / (1 - square_momentum**step))
        parameter -= lr / (1 - momentum**step) * average / (root + eps)

    def sgd_step(
        self, parameter: Array, gradient: Array, velocity: Array | None,
        *, lr: float, momentum: float, weight_decay: float,
    ) -> None:  # fmt: skip
        """One step of SGD, with momentum where a velocity is given. Writes into parameter and
        velocity.

        Source: fastai 2.8.12 `optimizer.py`: velocity = momentum * velocity + gradient, decoupled
        decay first.
        """
        parameter *= 1 - lr * weight_decay
        if velocity is None:
            parameter -= lr * gradient
            return
        velocity *= momentum
        velocity += gradient
        parameter -= lr * velocity

    # ---------------------------------------------------------------------------------- measurement

    def copy(self, x: Array) -> Array:
        """x as a new array, in the same order of memory."""
        return x.copy(order="K")

    @contextmanager
    def measured(self, parameter: Array, gradient: Array) -> Iterator[list[Array]]:
        """Yield a list that has, at the end of the block, the `update_sums` of the updates that the
        block makes to the parameter: of all of them as one, or of each.
        """
        before = self.copy(parameter)
        sums: list[Array] = []
        yield sums
        sums.append(self.update_sums(before, parameter, gradient))

    def update_sums(self, before: Array, after: Array, gradient: Array) -> Array:
        """Measure what one update did to a parameter: eight sums over its elements, in float64.

        With w before, v after, g the gradient and d = v - w, the sums of w * w, v * v, d * d,
        w * d, g * g, g * d, g * w, and how many elements of d are not 0 (a NaN counts).
        """
        w, v, g = (a.astype(np.float64).reshape(-1) for a in (before, after, gradient))
        d = v - w
        pairs = ((w, w), (v, v), (d, d), (w, d), (g, g), (g, d), (g, w))
        return np.stack([*((a * b).sum() for a, b in pairs), (d != 0).sum().astype(np.float64)])

    # ------------------------------------------------------------------------- input and reductions

    def running_average(self, running: Array, value: Array, keep: float, weight: float) -> Array:
        """keep * running + weight * value, as a new array: how running statistics move."""
        return keep * running + weight * value

    def images(self, pixels: Array, mean: Array, std: Array, dtype: np.dtype) -> Array:
        """uint8 pictures (N, H, W, C) -> (pixels / 255 - mean) / std in `dtype`, mean and std (C,)
        float32.
        """
        x = pixels.astype(dtype) / np.asarray(255, dtype)
        return (x - mean.astype(dtype)) / std.astype(dtype)

    # Two types are ignored: NumPy 2.5 declares `keepdims` as a literal only, older ones as a bool.

    def sum(self, x: Array, axis: tuple[int, ...] | None, keepdims: bool = False) -> Array:
        """Sum over `axis` (None: everything), accumulated in float64."""
        wide = x.sum(axis, dtype=np.float64, keepdims=keepdims)  # type: ignore[call-overload, unused-ignore]
        return wide.astype(x.dtype)

    def mean(self, x: Array, axis: tuple[int, ...] | None, keepdims: bool = False) -> Array:
        """Mean over `axis` (None: everything), accumulated in float64."""
        wide = x.mean(axis, dtype=np.float64, keepdims=keepdims)  # type: ignore[call-overload, unused-ignore]
        return wide.astype(x.dtype)

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        """x repeated to `shape`, as a new array."""
        out = np.empty(shape, x.dtype)
        out[...] = x
        return out

    def elementary(self, function: str, *x: Array) -> Array:
        """NumPy's function of that name, element by element: exp, log, sqrt, tanh, maximum."""
        return np.asarray(getattr(np, function)(*x))

    def add_at(self, shape: tuple[int, ...], at: tuple[Any, ...], values: Array) -> Array:
        """Zeros with values added at `[at]`, as often as a place occurs there."""
        out = np.zeros(shape, values.dtype)
        np.add.at(out, at, values)
        return out

    def constant(self, x: Array) -> Array:
        """x, about which the caller promises that it never changes again."""
        return x

    def add(self, a: Array, b: Array) -> Array:
        """a + b of one shape, as a new array: where the gradients of two uses of a tensor meet."""
        return a + b

    def zeros_like(self, x: Array) -> Array:
        """Zeros of the shape, dtype and memory order of x."""
        zeros = np.empty_like(x)
        zeros[...] = 0
        return zeros

    def concatenate(self, arrays: list[Array], axis: int) -> Array:
        """Arrays side by side."""
        return np.concatenate(arrays, axis)

    def split(self, x: Array, sizes: list[int], axis: int) -> list[Array]:
        """The inverse of `concatenate`, as new arrays."""
        first = x.swapaxes(0, axis)
        spans = zip(sizes, accumulate(sizes), strict=True)
        return [first[end - size : end].swapaxes(0, axis).copy() for size, end in spans]


def rows_of(x: Array) -> tuple[int, ...]:
    """All axes but the last: what a channel's statistics are taken over."""
    return tuple(range(x.ndim - 1))


def peak_bytes_of_process() -> int | None:
    """The most main memory that this process has used so far; None if the system does not tell.

    Linux counts what the parent process held into ru_maxrss, and VmHWM without it.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
