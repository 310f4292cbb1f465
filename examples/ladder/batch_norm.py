"""Batch norm's backward pass from primitives on the tape to one fused kernel, a rung at a time.

    python examples/ladder/batch_norm.py

A convolution is limited by multiplications (convolution.py); batch norm does ten operations per
number, and is limited by memory. So what is counted here is *passes*: how often an array as large
as x is read from memory or written to it. Each rung is checked against the first, then timed on one
core:

    1  graph     nine primitives, recorded by the tape and walked back         33 passes
    2  by_hand   the three terms that they come down to, in NumPy              18
    3  fused     the same in two loops compiled by Numba                        5
    4  library   tinyft's kernel: several rows ahead, and past the caches       5

GB/s are the passes of a rung times the size of x by its time: how well it uses memory. A copy of x
says what to expect. (A copy writes as much as it reads; reading is cheaper, so a rung that reads
more than it writes may exceed it.) Where rungs have the same GB/s, half the passes take half
the time; arithmetic hardly matters.

Letters: N pictures, H W rows and columns, C channels; M = N H W values a channel. A rung makes the
forward pass and returns its `backward`, which takes dout and returns (dx, dweight, dbias), as an
operation of tinyft does. Where the three terms come from: docs/derivations.md, section 2.
"""

import argparse
import os
import statistics
import time

if __name__ == "__main__":  # one core; read when NumPy is imported
    os.environ.update(OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
from numba import njit

import tinyft as ft

EPS = 1e-5
ROWS = 64  # values of a channel that are added up in float32 before they join a float64 sum


def graph(x, weight, bias):
    """Nine primitives. The tape knows each one's derivative, and nothing of the others.

    Its backward's passes, from the last step to the first: + 1 (a sum), * weight 6 (two products, a
    sum of one), * inverse 6, the mean's 1 (spread over all), ** 2 7, the two gradients of `apart`
    added 3, - mean 3, a copy 2 (the gradient of x begins as that of `apart`), the mean's 1, the two
    gradients of x added 3. Every product is written to memory, and read again by the next step.
    """
    x, weight, bias = (ft.Tensor(array, requires_grad=True) for array in (x, weight, bias))
    mean = x.mean((0, 1, 2))
    apart = x - mean
    variance = (apart**2).mean((0, 1, 2))
    inverse = (variance + EPS) ** -0.5
    out = apart * inverse * weight + bias

    def backward(dout):
        out.backward(dout)
        return x.grad, weight.grad, bias.grad

    return backward


def moments(x):
    """A channel's mean and 1 / sqrt(variance + eps), each (C,): what the other rungs keep."""
    mean = x.mean((0, 1, 2), dtype=np.float64)
    variance = x.var((0, 1, 2), dtype=np.float64)
    return mean.astype(np.float32), (1 / np.sqrt(variance + EPS)).astype(np.float32)


def by_hand(x, weight, bias):
    """dx = weight * inverse * (dout - dbias / M - n * dweight / M), and n from x once more.

    Nine derivatives come down to three terms, in which nothing is computed twice. But NumPy runs
    one operation at a time over whole arrays, which are larger than the caches: each line below
    says how many passes it takes.
    """
    mean, inverse = moments(x)
    M = x.size // x.shape[-1]

    def backward(dout):
        dbias = dout.sum((0, 1, 2), dtype=np.float64).astype(np.float32)  # 1
        n = x - mean  # 2
        n *= inverse  # 2
        dweight = (dout * n).sum((0, 1, 2), dtype=np.float64).astype(np.float32)  # 3 + 1
        n *= dweight / M  # 2
        dx = dout - n  # 3
        dx -= dbias / M  # 2
        dx *= weight * inverse  # 2
        return dx, dweight, dbias

    return backward


# "contract": a * b + c rounds once, in one instruction (FMA)
@njit(fastmath={"contract"})
def fused_loops(dout, x, scale, mean, inverse, dx, dweight, dbias):
    """dx, dweight and dbias from dout and x, (M, C) each; scale is weight * inverse, (C,)."""
    M, C = x.shape
    of_dout, of_product = np.empty(C, np.float32), np.empty(C, np.float32)
    for first in range(0, M, ROWS):
        of_dout[:] = 0
        of_product[:] = 0
        for m in range(first, min(first + ROWS, M)):
            dout_row, x_row = dout[m], x[m]
            for c in range(C):
                of_dout[c] += dout_row[c]
                of_product[c] += dout_row[c] * (x_row[c] - mean[c]) * inverse[c]
        for c in range(C):
            dbias[c] += of_dout[c]
            dweight[c] += of_product[c]
    shift, slope = np.empty(C, np.float32), np.empty(C, np.float32)
    for c in range(C):
        shift[c], slope[c] = dbias[c] / M, dweight[c] / M * inverse[c]
    for m in range(M):
        dout_row, x_row, dx_row = dout[m], x[m], dx[m]
        for c in range(C):
            apart = x_row[c] - mean[c]
            dx_row[c] = scale[c] * (dout_row[c] - shift[c] - apart * slope[c])


def fused(x, weight, bias):
    """One loop for both sums, one for dx: what lies between a load and a store is in registers.

    Two loops are needed, as no dx is known before the last value of its channel was added: x and
    dout are read twice and dx is written, 5 passes. No rung can have fewer where x is larger than
    the caches. (A core reads a line of memory before it writes to it: that is a sixth, unless told
    to write past the caches.)
    """
    mean, inverse = moments(x)
    C = x.shape[-1]

    def backward(dout):
        dx, dweight, dbias = np.empty_like(x), np.zeros(C), np.zeros(C)
        flat = (array.reshape(-1, C) for array in (dout, x))
        fused_loops(*flat, weight * inverse, mean, inverse, dx.reshape(-1, C), dweight, dbias)
        return dx, dweight.astype(np.float32), dbias.astype(np.float32)

    return backward


def library(x, weight, bias):
    """tinyft's kernel (tinyft/backends/cpu/memory_bound/batch_norm.py).

    The same 5 passes. It asks for the rows that follow before it needs them, writes results that
    are larger than the caches past them, and takes its arrays from memory that was used before:
    new memory is cleared by the system, page by page, at the first write.
    """
    x, weight, bias = (ft.Tensor(array, requires_grad=True) for array in (x, weight, bias))
    out, _, _ = ft.ops.batch_norm(x, weight, bias, eps=EPS)

    def backward(dout):
        out.backward(dout)
        return x.grad, weight.grad, bias.grad

    return backward


# Each rung, and how often its backward reads or writes an array as large as x.
RUNGS = [(graph, 33), (by_hand, 18), (fused, 5), (library, 5)]
TOLERANCE = 2e-5  # of the largest element of a gradient: float32 sums of up to 200,000 values


def example(N, size, C):
    """Random x and dout (N, size, size, C), weight and bias (C,)."""
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (N, size, size, C)).astype(np.float32)
    dout = rng.normal(0.1, 1, x.shape).astype(np.float32)
    weight, bias = rng.normal(size=(2, C)).astype(np.float32)
    return dout, x, weight, bias


def check(rung, dout, x, weight, bias):
    """Compare a rung's three gradients with the first's; raise if they differ by more than
    rounding.
    """
    gradients = zip(rung(x, weight, bias)(dout), graph(x, weight, bias)(dout), strict=True)
    for name, (ours, expected) in zip(("dx", "dweight", "dbias"), gradients, strict=True):
        error = np.abs(ours - expected).max() / np.abs(expected).max()
        if not error < TOLERANCE:
            raise ValueError(f"{name} of {rung.__name__} differs from graph's by {error:.1e}")


def cpu_seconds(function, *arguments):
    """Time on a core. What other programs take of it meanwhile does not count."""
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="medians of so many (7)")
    parser.add_argument("--size", type=int, default=112, help="rows and columns (112)")
    args = parser.parse_args(argv)
    from tinyft.backends.cpu.runtime.threads import get_num_threads, set_num_threads

    threads = get_num_threads()
    set_num_threads(1)
    dout, x, weight, bias = example(16, args.size, 64)
    for rung, _ in RUNGS:
        check(rung, dout, x, weight, bias)  # compiles it, too
    target = x.copy()
    copies, times = [], {rung: [] for rung, _ in RUNGS}
    for _ in range(args.rounds):  # in turns, so that a busy moment does not meet one rung alone
        copies.append(cpu_seconds(np.copyto, target, x))
        for rung, _ in RUNGS:
            backward = rung(x, weight, bias)
            times[rung].append(cpu_seconds(backward, dout))
    set_num_threads(threads)
    gigabytes = x.nbytes / 1e9
    peak = 2 * gigabytes / statistics.median(copies)
    print(f"batch norm's backward, x {x.shape}, {x.nbytes / 1e6:.0f} MB; one core, float32,")
    print(f"medians of {args.rounds}; a copy of x: {peak:.1f} GB/s\n")
    print("  rung      passes       ms    GB/s   of copy   gain")
    median = {rung: statistics.median(seconds) for rung, seconds in times.items()}
    for i, (rung, passes) in enumerate(RUNGS):
        ms, speed = 1e3 * median[rung], passes * gigabytes / median[rung]
        before = RUNGS[i - 1][0]
        gain = f"{median[before] / median[rung]:6.1f} x {before.__name__}" if i else ""
        line = (
            f"{i + 1} {rung.__name__:10}{passes:6}{ms:9.1f}{speed:8.1f}{speed / peak:10.0%}{gain}"
        )
        print(line.rstrip())


if __name__ == "__main__":
    main()
