"""On a machine with a GPU: is everything right there, and how fast is it?

    tinyft bench --backend gpu        # the contract, then layers and steps; one JSON file

The contract is the one that every backend keeps (tinyft/testing/contract.py). Layers are the
distinct convolutions of a network, each with both gradients; steps are whole training steps, of
everything and of the last layer alone. PyTorch stands beside both where it is installed, eager and
with its defaults: TF32 for convolutions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tinyft import backends
from tinyft.backends.gpu import GpuBackend
from tinyft.backends.reference import output_size
from tinyft.bench.cases import Case, Side, convolutions, our_side
from tinyft.bench.measure import error_of, installed
from tinyft.seeds import generator
from tinyft.testing.contract import as_float64, check_families, draw, kernel_results, precision
from tinyft.testing.kernel_cases import KERNEL_CASES, KernelCase

CASES = (Case("resnet18", 64, 224), Case("resnet50", 64, 224))
WARM_UPS = 3
# What an error may be, as a part of the largest answer; K products are summed up.
FP32_ERROR = 2e-6  # times sqrt(K / 64 + 1)
TF32_ERROR = 2e-3  # 10 bits of fraction, rounded: 5e-4 for one product


# ---------------------------------------------------------------------------------- is it right?


def contract(device: str) -> dict[str, Any]:
    """Run the whole contract in fp32: how many cases ran and passed, and what the others said."""
    started = time.perf_counter()
    families = list(check_families(device))
    failures = [failure for family in families for failure in family.failures]
    cases = sum(family.cases for family in families)
    seconds = time.perf_counter() - started
    return {"cases": cases, "passed": cases - len(failures), "failures": failures,
            "seconds": seconds}  # fmt: skip


def errors(device: str, name: str) -> dict[str, dict[str, float]]:
    """Find for each kernel in that precision the largest error as a part of the largest answer, and
    as a part of what is allowed, over all cases with a float result.
    """
    by_kernel: dict[str, dict[str, float]] = {}
    with precision(device, name):
        for case in KERNEL_CASES:
            if name == "tf32" and not case.subject.startswith("conv2d"):
                continue
            allowed = TF32_ERROR if name == "tf32" else FP32_ERROR * (case.terms / 64 + 1) ** 0.5
            error = _error(case, device)
            worst = by_kernel.setdefault(case.subject, {"error": 0.0, "of_allowed": 0.0})
            worst["error"] = max(worst["error"], error)
            worst["of_allowed"] = max(worst["of_allowed"], error / allowed)
    return by_kernel


def _error(case: KernelCase, device: str) -> float:
    """The largest error over the results of a case, each as a part of its largest answer."""
    arrays = draw(case)
    exact = kernel_results(case, "reference", as_float64(arrays))
    pairs = zip(kernel_results(case, device, arrays), exact, strict=True)
    return max((error_of(got, true) for got, true in pairs if true.dtype.kind == "f"), default=0.0)


# -------------------------------------------------------------------------------- how fast is it?


def seconds(work: Side, synchronize: Callable[[], None], rounds: int) -> float:
    """The median time of one call, from an idle device to an idle device."""
    times = []
    for number in range(WARM_UPS + rounds):
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        if number >= WARM_UPS:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def layers(case: Case, device: str, rounds: int, torch: bool) -> Iterator[dict[str, Any]]:
    """Time each distinct convolution at the case's batch size: milliseconds of forward, input
    gradient and weight gradient, ours and PyTorch's.
    """
    for (picture, weight_shape, stride, padding), count in convolutions(case).items():
        layer = case.batch_size, picture, weight_shape, stride, padding
        sides = {"tinyft": _our_layer(*layer, device)}
        if torch:
            from tinyft.bench import pytorch

            sides |= pytorch.layer_sides(*layer)
        F, C, R, S = weight_shape
        P = output_size(picture[0], R, stride, padding)
        gflop = 2e-9 * case.batch_size * P * P * F * C * R * S
        yield {
            "layer": {"picture": picture, "weight": weight_shape, "stride": stride},
            "count": count,
            "gflop": gflop,
            "milliseconds": {
                name: [1e3 * seconds(work, synchronize, rounds) for work in passes]
                for name, (passes, synchronize) in sides.items()
            },
        }


def _our_layer(N, picture, weight_shape, stride, padding, device):
    """The three passes of a convolution as functions, and how to wait for them."""
    backend, window = backends.get(device), {"stride": stride, "padding": padding}
    draw = generator(0, "bench").standard_normal
    F, C, R, S = weight_shape
    x = backend.upload(draw((N, *picture), np.float32))
    weight = backend.upload(draw((R, S, C, F), np.float32).transpose(3, 2, 0, 1))
    dout = backend.conv2d(x, weight, **window)
    passes = (
        lambda: backend.conv2d(x, weight, **window),
        lambda: backend.conv2d_input_grad(dout, weight, x.shape, **window),
        lambda: backend.conv2d_weight_grad(dout, x, weight_shape, **window),
    )
    return passes, backend.synchronize


def steps(case: Case, device: str, rounds: int, torch: bool) -> dict[str, Any]:
    """Time a training step, of everything and of the last layer alone, in milliseconds, and find
    the most memory in use, ours and PyTorch's.
    """
    result: dict[str, Any] = {"case": str(case), "milliseconds": {}, "peak_bytes": {}}
    for phase, frozen in (("everything", False), ("frozen", True)):
        backend = backends.get(device)
        with backends.use(device):
            step = our_side(case, "training", device=device, frozen=frozen)
            ours = {"tinyft": 1e3 * seconds(step, backend.synchronize, rounds)}
        result["peak_bytes"].setdefault("tinyft", backend.peak_bytes())
        if torch:
            from tinyft.bench import pytorch

            for name, side, synchronize in pytorch.device_sides(case, frozen):
                ours[name] = 1e3 * seconds(side, synchronize, rounds)
                result["peak_bytes"].setdefault(name, pytorch.peak_bytes())
                del side
        result["milliseconds"][phase] = ours
    return result


def everything(
    cases: tuple[Case, ...], device: str, rounds: int, alone: bool, show: Callable[[str], None]
) -> dict[str, Any]:
    """Measure all of it, and show each result at once."""
    torch = installed("torch") and not alone
    report: dict[str, Any] = {"gpu": backends.get(device).description(), "rounds": rounds}
    show(report["gpu"])
    report["contract"] = contract(device)
    show(
        "contract: {passed} of {cases} cases passed in {seconds:.0f} s".format(**report["contract"])
    )
    backend = backends.get(device)
    assert isinstance(backend, GpuBackend)
    names = ("fp32", "tf32") if backend.gpu.has_tf32 else ("fp32",)
    report["errors"] = {name: errors(device, name) for name in names}
    for name, kernels in report["errors"].items():
        worst = max(kernels, key=lambda kernel: kernels[kernel]["of_allowed"])
        show(f"{name}: the largest error is {kernels[worst]['of_allowed']:.2f} of what is allowed, "
             f"in {worst}")  # fmt: skip
    report["cases"] = []
    for case in cases:
        report["cases"].append({"layers": []})
        for layer in layers(case, device, rounds, torch):
            report["cases"][-1]["layers"].append(layer)
            show(_line(layer))
        measured = steps(case, device, rounds, torch)
        report["cases"][-1] |= measured
        for phase, times in measured["milliseconds"].items():
            show(f"{case}, {phase}: " + ", ".join(f"{n} {t:.2f} ms" for n, t in times.items()))
    return report


def _line(layer: dict[str, Any]) -> str:
    """One convolution: milliseconds, and TFLOP/s in brackets."""
    (H, W, C), (F, _, R, S) = layer["layer"]["picture"], layer["layer"]["weight"]
    sides = []
    for name, times in layer["milliseconds"].items():
        each = " ".join(f"{t:.3f} ({layer['gflop'] / t:.0f})" for t in times)
        sides.append(f"{name} {each}")
    stride = layer["layer"]["stride"]
    return f"  {R}x{S}/{stride} {H}x{W} {C} -> {F}, {layer['count']} times: " + "; ".join(sides)
