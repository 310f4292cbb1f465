"""Makes golden_ops.npz: outputs and gradients of PyTorch for the ops that have a definition there.

    python tests/golden/make_golden_ops.py          (needs PyTorch; the tests do not)

Everything is stored channels last, (N, H, W, C); PyTorch itself computes channels first. Inputs are
float32 numbers, so the float64 results (".64") are exact answers to the same question, and the
float32 results (".32") show how large PyTorch's own rounding error is.

Made with PyTorch 2.14.1 on a CPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

# name: x (N, H, W, C), filters, kernel (rows, columns), stride, padding
CONVOLUTIONS = {
    "3x3": ((2, 6, 5, 3), 4, (3, 3), 1, 1),
    "3x3s2": ((2, 7, 6, 5), 3, (3, 3), 2, 1),
    "1x1": ((2, 4, 5, 7), 6, (1, 1), 1, 0),
    "1x1s2": ((2, 5, 6, 4), 3, (1, 1), 2, 0),
    "7x7s2": ((1, 13, 11, 3), 5, (7, 7), 2, 3),
    "5x5p2": ((1, 6, 7, 1), 2, (5, 5), 1, 2),
    "2x3s3": ((2, 8, 9, 2), 3, (2, 3), 3, 1),
    "wide": ((1, 9, 10, 24), 20, (3, 3), 1, 1),
}
POOLS = {"3s2p1": (3, 2, 1), "2s2": (2, 2, 0), "3s1p1": (3, 1, 1)}


def first(tensor: torch.Tensor) -> torch.Tensor:
    """Channels last -> channels first."""
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def last(tensor: torch.Tensor) -> torch.Tensor:
    """Channels first -> channels last."""
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor


class Recorder:
    """Runs a function in both precisions and stores inputs, result and gradients."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(20)

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    def record(self, name: str, function, inputs: dict[str, np.ndarray], extra=()) -> None:
        upstream = None
        for bits, dtype in (("64", torch.float64), ("32", torch.float32)):
            leaves = {n: torch.from_numpy(a).to(dtype).requires_grad_() for n, a in inputs.items()}
            result = function(**leaves)
            out, *others = result if isinstance(result, tuple) else (result,)
            if upstream is None:
                upstream = self.normal(*out.shape)
                self.arrays |= {f"{name}/{n}": a for n, a in inputs.items()}
                self.arrays[f"{name}/upstream"] = upstream
            out.backward(torch.from_numpy(np.asarray(upstream)).to(dtype))
            self.arrays[f"{name}/out.{bits}"] = out.detach().contiguous().numpy()
            for other, label in zip(others, extra, strict=True):
                self.arrays[f"{name}/{label}.{bits}"] = other.detach().numpy()
            for n, leaf in leaves.items():
                self.arrays[f"{name}/d{n}.{bits}"] = leaf.grad.contiguous().numpy()


def convolutions(r: Recorder) -> None:
    for name, (x_shape, filters, kernel, stride, padding) in CONVOLUTIONS.items():

        def convolve(x, weight, bias, stride=stride, padding=padding):
            return last(F.conv2d(first(x), weight, bias, stride=stride, padding=padding))

        inputs = {
            "x": r.normal(*x_shape),
            "weight": r.normal(filters, x_shape[3], *kernel),
            "bias": r.normal(filters),
        }
        r.record(f"conv2d {name}", convolve, inputs)


def normalisations(r: Recorder) -> None:
    for name, shape in {"pictures": (4, 2, 2, 5), "rows": (6, 7)}.items():
        C = shape[-1]
        inputs = {
            "x": r.normal(*shape) * np.float32(1.5) + np.float32(0.7),
            "weight": r.rng.uniform(0.5, 2, C).astype(np.float32),
            "bias": r.normal(C),
        }
        start = r.normal(C), r.rng.uniform(0.5, 2, C).astype(np.float32)
        r.arrays |= {f"batch_norm {name}/start_mean": start[0]}
        r.arrays |= {f"batch_norm {name}/start_variance": start[1]}
        for training, label in ((True, "batch_norm"), (False, "batch_norm_eval")):

            def normalise(x, weight, bias, training=training, start=start):
                mean, variance = (torch.from_numpy(s.copy()).to(x.dtype) for s in start)
                out = F.batch_norm(
                    first(x), mean, variance, weight, bias, training=training, momentum=0.1
                )
                return (last(out), mean, variance) if training else last(out)

            extra = ("running_mean", "running_variance") if training else ()
            r.record(f"{label} {name}", normalise, inputs, extra)


def pools(r: Recorder) -> None:
    shape = (2, 6, 7, 3)
    size = int(np.prod(shape))
    single_nan = (r.rng.permutation(size).reshape(shape) / size).astype(np.float32)
    single_nan[0, 3, 3, 1] = np.nan
    pictures = {
        "distinct": (r.rng.permutation(size).reshape(shape) / size - 0.5).astype(np.float32),
        "ties": np.maximum(r.rng.integers(-2, 3, shape), 0).astype(np.float32),
        "constant": np.full(shape, 0.25, np.float32),
        "negative": (-1 - r.rng.permutation(size).reshape(shape) / size).astype(np.float32),
        "nan": single_nan,
    }
    for pool, (kernel, stride, padding) in POOLS.items():
        for name, x in pictures.items():

            def largest(x, kernel=kernel, stride=stride, padding=padding):
                return last(F.max_pool2d(first(x), kernel, stride, padding))

            r.record(f"max_pool2d {pool} {name}", largest, {"x": x})


def losses(r: Recorder) -> None:
    labels = np.array([0, 4, 2, 2, 1])
    weights = r.rng.uniform(0.5, 2, 5).astype(np.float32)
    r.arrays |= {"cross_entropy/labels": labels, "cross_entropy/class_weights": weights}
    for smoothing in (0.0, 0.1):
        for weighted in (False, True):

            def loss(logits, smoothing=smoothing, weighted=weighted):
                given = torch.from_numpy(weights).to(logits.dtype) if weighted else None
                target = torch.from_numpy(labels)
                return F.cross_entropy(logits, target, given, label_smoothing=smoothing)

            name = f"cross_entropy {smoothing} {'weighted' if weighted else 'plain'}"
            r.record(name, loss, {"logits": r.normal(5, 5) * np.float32(3)})
    huge = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], np.float32)
    r.record(
        "cross_entropy huge",
        lambda logits: F.cross_entropy(logits, torch.tensor([1, 2])),
        {"logits": huge},
    )


def main() -> None:
    torch.set_num_threads(1)
    recorder = Recorder()
    for part in (convolutions, normalisations, pools, losses):
        part(recorder)
    recorder.arrays["versions"] = np.array(f"torch {torch.__version__}, numpy {np.__version__}")
    np.savez_compressed(Path(__file__).with_name("golden_ops.npz"), **recorder.arrays)


if __name__ == "__main__":
    main()
