"""`tinyft bench`: how fast training and inference are here, and how fast PyTorch is."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyft.cli.failures import RequestError
from tinyft.cli.options import Parser, add_json, device, whole
from tinyft.cli.output import json_result, one_line, percent, result, say
from tinyft.cli.photos import NAMES, show_others

HELP = "measure the speed of training and inference, beside PyTorch if it is installed"
EXAMPLE = "tinyft bench --arch resnet18 --batch-size 16 --size 224"

RIVALS = {
    "pytorch": "PyTorch's better layout",
    "pytorch_folded": "the same with batch norms folded",
    "pytorch_bf16": "PyTorch's better layout in bf16",
    "pytorch_bf16_folded": "the same with batch norms folded",
    "onnxruntime": "ONNX Runtime",
}
TITLES = {
    "training": "training step (forward, loss, backward, SGD with momentum)",
    "inference": "inference (batch norms folded)",
}
ROUNDS, FROZEN_ROUNDS = 7, 3  # a round of --frozen takes minutes
OF_KIND = {"epochs": "frozen", "seeds": "accuracy", "steps": "accuracy"}
CPU_ONLY = ("memory", "cold", "overhead", "frozen", "accuracy", "threads", "all", "weights", "isa")
AVX2 = {  # each is read when its library is first imported or compiles
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+sse4.2,+avx,+avx2,+fma",  # without, Numba takes all that this CPU has
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
FEWEST_ROUNDS = 5  # a median of fewer says little


def add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("--arch", metavar="NAME", help="(resnet18)")
    add("--batch-size", type=whole(2), metavar="N", help="(16; cifar_resnet20: 128)")
    add("--size", type=whole(1), metavar="PIXELS", help="side of the input (the architecture's)")
    add("--all", action="store_true", help="four cases: both ResNets, CIFAR, and 64 pixels")
    add("--threads", type=whole(1), metavar="N", help="of each side (TINYFT_NUM_THREADS, or all)")
    add("--rounds", type=whole(1), metavar="N", help="measured calls of each side (7; --frozen: 3)")
    add("--isa", choices=("avx2",), help="make both sides use these instructions (the CPU's best)")
    add("--alone", action="store_true", help="leave out the others, although they are installed")
    add("--memory", action="store_true", help="measure peak memory instead of time")
    add("--cold", action="store_true", help="measure the time to the first step instead")
    add("--overhead", action="store_true", help="measure the time outside kernels instead")
    add("--frozen", metavar="DIR", help="measure a frozen phase on a folder of photos instead")
    add("--accuracy", metavar="DIR", help="compare errors and losses on a folder of photos instead")
    add("--weights", metavar="FILE|NAME|none", help="for --frozen and --accuracy (the published)")
    add("--epochs", type=whole(1), metavar="N", help="of --frozen (3)")
    add("--seeds", type=whole(1), metavar="N", help="of --accuracy (5)")
    add("--steps", type=whole(1), metavar="N", help="of --accuracy's curves (30)")
    add(
        "--backend", type=device, metavar="NAME",
        help="cpu:bf16: measure our half precision, beside PyTorch's autocast; gpu: check every "
        "kernel on a GPU, then measure layers and steps there",
    )  # fmt: skip
    add("--out", metavar="FILE", help="with --backend gpu: the JSON file (tinyft-bench-gpu.json)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    args.rounds = args.rounds or (FROZEN_ROUNDS if args.frozen else ROUNDS)
    if (args.backend or "cpu").startswith("gpu"):
        return _run_on_gpu(args)
    if args.backend not in (None, "cpu:bf16"):
        raise RequestError(f"--backend is gpu, cpu:bf16 or left out; got {args.backend}")
    if args.out:
        raise RequestError("--out needs --backend gpu; results of the CPU are printed")
    if args.isa and os.environ | AVX2 != os.environ:
        return _run_with_avx2(args.arguments)
    from tinyft import backends
    from tinyft.bench import measure as bench

    _check_request(args)
    backends.get(args.backend or "cpu")  # says what is missing
    from tinyft.backends.cpu.runtime.threads import get_num_threads, set_num_threads
    from tinyft.cli import photos

    show = say if args.json else result
    cases = _cases(args)
    if args.threads:
        set_num_threads(args.threads)
    torch = bench.installed("torch")
    threads, machine, versions = get_num_threads(), bench.load(), bench.versions()
    report: dict[str, Any] = {"threads": threads, "machine": machine, "versions": versions}
    if args.isa:
        report["isa"] = args.isa
        settings = " ".join(f"{name}={value}" for name, value in AVX2.items())
        show(f"instructions: AVX2 at most, on both sides ({settings})")
    _describe(show, report, args, torch)
    args.working = True
    if args.frozen or args.accuracy:
        report |= photos.measure(show, args, torch)
    elif args.overhead:
        report["overhead"] = [_overhead(show, case, args) for case in cases]
    elif args.memory or args.cold:
        alone = args.alone or not torch
        report["processes"] = [_processes(show, case, threads, alone, args) for case in cases]
    else:
        report["rounds"] = args.rounds
        report["cases"] = [_times(show, case, threads, args) for case in cases]
    if args.json:
        json_result(report)
    return 0


def _run_with_avx2(arguments: list[str]) -> int:
    """The same command in a process in which all sides find AVX2 and nothing better.

    Raises: RequestError if this CPU lacks it
    """
    from tinyft.backends.cpu.codegen.simd import host_has

    if not (host_has("avx2") and host_has("fma")):
        raise RequestError("--isa avx2 needs a CPU with AVX2 and FMA, and this one lacks them")
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # imports what we import
    command = [sys.executable, "-P", "-m", "tinyft", *arguments]
    return subprocess.call(command, env=os.environ | AVX2 | path)


def _check_request(args: argparse.Namespace) -> None:
    """Raises: RequestError for options that do not go together"""
    folder = args.frozen or args.accuracy
    kinds = (args.memory or args.cold, args.overhead, args.frozen, args.accuracy)
    if sum(map(bool, kinds)) > 1:
        raise RequestError(
            "only --memory and --cold can be measured together; call --overhead, --frozen and "
            "--accuracy one at a time"
        )
    if args.weights and not folder:
        raise RequestError("--weights is for --frozen and --accuracy; speed depends on no weight")
    for option, kind in OF_KIND.items():
        if getattr(args, option) and not getattr(args, kind):
            raise RequestError(f"--{option} is for --{kind}")
    if args.backend and any(kinds):
        raise RequestError(
            "--backend cpu:bf16 is for the times of steps and inference; leave out what measures "
            "something else"
        )
    if args.all and folder:
        raise RequestError("--all is not for photos; name one network with --arch")
    if folder and not Path(folder).is_dir():
        raise RequestError(f"{folder} is no folder of photos")


def _run_on_gpu(args: argparse.Namespace) -> int:
    """Everything there is to know about the GPU backend here, in one file."""
    from tinyft import backends
    from tinyft.bench import gpu as bench_gpu
    from tinyft.bench import measure as bench

    backends.get(args.backend)  # says what is missing, before anything begins
    for option in (*CPU_ONLY, *OF_KIND):
        if getattr(args, option):
            raise RequestError(f"--{option} is for the CPU, not --backend gpu")
    only = args.arch or args.batch_size or args.size
    cases = _cases(args) if only else bench_gpu.CASES
    path = Path(args.out or "tinyft-bench-gpu.json")
    args.working = True
    show = say if args.json else result
    report = {"machine": bench.load(), "versions": bench.versions()}
    report |= bench_gpu.everything(cases, args.backend, args.rounds, args.alone, show)
    path.write_text(json.dumps(report, indent=1) + "\n")
    say(f"written to {one_line(str(path))}")
    if args.json:
        json_result(report)
    return 1 if report["contract"]["failures"] else 0


def _cases(args: argparse.Namespace) -> tuple:
    """Return what the options ask for, checked before anything is measured."""
    from tinyft.bench.cases import CASES, Case
    from tinyft.nn.resnet import expect_architecture
    from tinyft.weights import Preprocess

    if args.all:
        if args.arch or args.batch_size or args.size:
            raise RequestError("--all has its own networks and sizes; leave out the other options")
        return CASES
    arch = args.arch or CASES[0].arch
    expect_architecture(arch)
    crop = Preprocess.for_architecture(arch).crop
    usual = next((case for case in CASES if case.arch == arch), Case(arch, 16, crop))
    return (Case(arch, args.batch_size or usual.batch_size, args.size or usual.size),)


def _describe(show: Any, report: dict[str, Any], args: argparse.Namespace, torch: bool) -> None:
    """Machine, versions, and what makes the numbers doubtful."""
    machine, versions = report["machine"], dict(report["versions"])
    show(f"processor: {versions.pop('processor')}, {machine['cores']} cores")
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    show(f"threads on each side: {report['threads']}; {packages}")
    if machine["busy"]:
        show(
            f"note: other programs run (load average {machine['load_average']:.1f}); "
            "medians are doubtful, minima less so; better measure again on an idle machine"
        )
    if args.rounds < FEWEST_ROUNDS and not (args.frozen or args.accuracy):
        show(f"note: medians of fewer than {FEWEST_ROUNDS} rounds say little")
    if not torch and not args.alone:
        show("note: to compare with PyTorch, install it beside tinyft: pip install torch")


def _times(show: Any, case: Any, threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """Both modes of one case, each shown as soon as it is measured."""
    from tinyft.bench.cases import MODES, algorithms
    from tinyft.bench.measure import measure_case

    report = asdict(case)
    for mode in MODES:
        say(f"measuring {mode} of {case}")
        report[mode] = measure_case(
            case,
            mode,
            rounds=args.rounds,
            threads=threads,
            alone=args.alone,
            backend=args.backend or "auto",
        )
        show(f"\n{case}: {TITLES[mode]}")
        _show_mode(show, report[mode])
    report["algorithms"] = algorithms(case, "bf16" if args.backend else None)
    show(f"\n{case}: tinyft's convolutions")
    for kernel, counts in report["algorithms"].items():
        names = ", ".join(f"{count} by {name}" for name, count in counts.items())
        show(f"  {kernel:20}{names}")
    return report


def _show_mode(show: Any, mode: dict[str, Any]) -> None:
    """A line for each side, and the ratios below."""
    show(f"  {'':38}{'median':>11}{'minimum':>11}")
    for name, side in mode["sides"].items():
        median, least = 1000 * side["median"], 1000 * side["min"]
        show(f"  {NAMES[name]:38}{median:8.1f} ms{least:8.1f} ms")
    for rival, ratio in mode["ratios"].items():
        by_minima = f"({ratio['min']:.2f} by minima)"
        show(f"  {ratio['median']:.2f} times as fast as {RIVALS[rival]} {by_minima}")
    if any(not difference <= mode["allowed"] for difference in mode["differences"].values()):
        show("  note: the losses differ; batch norms of so few pixels amplify rounding")
    show_others(show, mode["others"])


def _processes(
    show: Any, case: Any, threads: int, alone: bool, args: argparse.Namespace
) -> dict[str, Any]:
    """Peak memory and start of one case."""
    from tinyft.bench import measure as bench

    report = asdict(case)
    if args.memory:
        say(f"measuring the memory of {case}")
        report["memory"] = bench.memory(case, threads, alone=alone)
        show(f"\n{case}: peak memory of {bench.STEPS} training steps")
        for name, peak in report["memory"]["bytes"].items():
            show(f"  {NAMES[name]:32}{peak / 2**20:8.0f} MiB")
        if report["memory"]["ratio"] is not None:
            show(f"  {report['memory']['ratio']:.2f} of PyTorch's smaller one")
    if args.cold:
        say(f"measuring the start of {case}")
        report["start"] = bench.start(case, threads)
        show(f"\n{case}: from the start of the process to the end of the first training step")
        show(f"  {report['start']['cold']:.2f} s with nothing compiled before")
        show(f"  {report['start']['warm']:.2f} s with compiled kernels")
    return report


def _overhead(show: Any, case: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The time outside kernels of one case."""
    from tinyft.bench.measure import outside_kernels

    say(f"measuring the time outside kernels of {case}")
    measured = outside_kernels(case, args.rounds)
    show(f"\n{case}: training step, within kernels and outside")
    times = f"{1000 * measured['step']:.1f} ms, {1000 * measured['kernels']:.1f} ms of it"
    show(f"  {times} in {measured['calls']} calls of kernels")
    show(f"  {percent(measured['outside'])} outside (least {percent(measured['outside_min'])})")
    return asdict(case) | measured
