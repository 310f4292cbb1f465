"""A 3x3 convolution from loops in Python to Winograd's algorithm, a rung at a time.

    python examples/ladder/convolution.py

Every rung computes the same (N, P, Q, F) numbers from the same arrays. Each is checked against the
first before it is timed, and its speed is what your machine does, on one core:

     1  loops       the definition: seven loops in Python
     2  windows     the sums over a window by NumPy, element by element
     3  taps        nine shifted matrix products                              (BLAS)
     4  im2col      one matrix product of all windows                         (BLAS)
     5  compiled    the loops of rung 1, compiled by Numba
     6  vectors     filters in the innermost loop: 8 or 16 at once
     7  blocked     blocked for the L1 cache, and four products for each load of a sum
     8  registers   GEMM: windows gathered for a strip, a micro-kernel whose sums stay in registers
     9  winograd    F(2,3) along the rows: 12 multiplications instead of 18
    10  library     tinyft's kernel: F(4,3) in both directions, 36 instead of 144

Rungs 3 and 4 borrow a matrix product in which others climbed this ladder; rung 5 begins again from
rung 1 and climbs it itself. The speed of a rung is counted in the multiplications and additions of
the *definition*, 2 N P Q F C R S, whatever the rung does: a rung that needs fewer may exceed the
peak, which is what a core can multiply and add.

Letters: N pictures, H W rows and columns, C channels; F filters of R x S pixels; P Q rows and
columns of the result. Stride 1, and a border of zeros is already around the pictures, so
P = H - 2. What is fast in the library and how it got there: tinyft/backends/cpu/README.md.
"""

import argparse
import math
import os
import statistics
import time

if __name__ == "__main__":  # one core; read when NumPy is imported
    os.environ.update(OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
from numba import njit
from numpy.lib.stride_tricks import sliding_window_view

R = S = 3
ZERO = np.float32(0)
# What the compiler may do to sums. "contract": a * b + c rounds once, in one instruction (FMA).
# "reassoc": a sum may be added up in another order, as 16 sums of every 16th number.
FMA = {"contract"}
ANY_ORDER = {"contract", "reassoc", "nsz"}


# ------------------------------------------------------------------------------- 1  the definition


def loops(x, weight):
    """Seven loops. Python looks up the types of its numbers at every operation, so that a product
    and its sum take some 150 nanoseconds, in which the core could do 8,000 of them.

    Shapes: x (N, H, W, C), weight (F, C, R, S) -> (N, P, Q, F); so in every rung
    """
    N, H, W, C = x.shape
    F, P, Q = len(weight), H - 2, W - 2
    x, weight, out = x.tolist(), weight.tolist(), np.zeros((N, P, Q, F), np.float32)
    for n in range(N):
        for p in range(P):
            for q in range(Q):
                for f in range(F):
                    total = 0.0  # Python's floats have 64 bits: this rung rounds once, at the end
                    for r in range(R):
                        for s in range(S):
                            for c in range(C):
                                total += x[n][p + r][q + s][c] * weight[f][c][r][s]
                    out[n, p, q, f] = total
    return out


# ------------------------------------------------------------------------------ 2, 3, 4  in NumPy


def windows(x, weight):
    """One call of NumPy for all products of a pixel's window with all filters.

    The three inner loops and the one over filters now run compiled. But each product is written to
    memory and read again for its sum: an element-by-element expression makes whole arrays.
    """
    N, H, W, _ = x.shape
    by_filter = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))  # (F, R, S, C)
    out = np.empty((N, H - 2, W - 2, len(weight)), np.float32)
    for n, p, q in np.ndindex(out.shape[:3]):
        out[n, p, q] = (x[n, p : p + R, q : q + S] * by_filter).sum(axis=(1, 2, 3))
    return out


def taps(x, weight):
    """Nine products of matrices. Filter pixel (r, s), a *tap*, meets the whole picture shifted by
    (r, s): (N P Q, C) @ (C, F).

    A matrix product does C multiplications for each number of its result, and BLAS has all that
    rungs 7 and 8 build. What is left: nine times, pictures are copied and sums go to memory and
    come back.
    """
    N, H, W, C = x.shape
    F, P, Q = len(weight), H - 2, W - 2
    out = np.zeros((N * P * Q, F), np.float32)
    for r in range(R):
        for s in range(S):
            out += x[:, r : r + P, s : s + Q].reshape(-1, C) @ weight[:, :, r, s].T
    return out.reshape(N, P, Q, F)


def im2col(x, weight):
    """One product: all windows as the rows of one matrix, (N P Q, R S C) @ (R S C, F).

    Sums are nine times as long and stay inside BLAS. The price is the matrix of windows, nine times
    as large as the pictures: it is written to memory and read back, and nothing is computed
    meanwhile. With 64 channels it hardly pays. With 3, as in a photo, a tap's product has sums of 3
    numbers, for which BLAS was not made, and one product of 27 is 2 to 3.5 times as fast.
    """
    N, H, W, C = x.shape
    F, P, Q = len(weight), H - 2, W - 2
    view = sliding_window_view(x, (R, S), axis=(1, 2))  # (N, P, Q, C, R, S), no copy yet
    matrix = view.transpose(0, 1, 2, 4, 5, 3).reshape(N * P * Q, R * S * C)  # here it is copied
    return (matrix @ weight.transpose(2, 3, 1, 0).reshape(R * S * C, F)).reshape(N, P, Q, F)


# ------------------------------------------------------------------------------------- 5  compiled


@njit
def compiled_loops(x, weight, out):
    N, P, Q, F = out.shape
    C = x.shape[3]
    for n in range(N):
        for p in range(P):
            for q in range(Q):
                for f in range(F):
                    total = ZERO
                    for r in range(R):
                        for s in range(S):
                            for c in range(C):
                                total += x[n, p + r, q + s, c] * weight[f, c, r, s]
                    out[n, p, q, f] = total


def compiled(x, weight):
    """The loops of rung 1 as machine code: types are known before it runs.

    It multiplies one pair at a time, in order. Each addition waits some 4 cycles for the one
    before, because all belong to one sum and a compiler may not change the order of a sum.
    """
    out = result(x, weight)
    compiled_loops(x, weight, out)
    return out


def result(x, weight):
    """An array for the result: the rungs from here on fill one."""
    N, H, W, _ = x.shape
    return aligned((N, H - 2, W - 2, len(weight)))


def aligned(shape, values=None):
    """A new float32 array that begins with a cache line, 64 bytes, filled with `values` if given.

    NumPy's begin at any 16 bytes, and then a vector of 64 lies across two lines. A core can hand on
    what it stores to the next load at once, but not across lines: rung 6 is half as fast there.
    """
    size = math.prod(shape)
    memory = np.empty(size + 16, np.float32)
    first = -memory.ctypes.data % 64 // memory.itemsize
    array = memory[first : first + size].reshape(shape)
    if values is not None:
        array[...] = values
    return array


# -------------------------------------------------------------------------------------- 6  vectors


@njit(fastmath=FMA)
def vector_loops(x, weight, out):
    N, P, Q, F = out.shape
    C = x.shape[3]
    out[:] = 0
    for n in range(N):
        for p in range(P):
            for q in range(Q):
                sums = out[n, p, q]  # (F,)
                for r in range(R):
                    for s in range(S):
                        for c in range(C):
                            pixel, of_filters = x[n, p + r, q + s, c], weight[r, s, c]
                            for f in range(F):
                                sums[f] += pixel * of_filters[f]


def vectors(x, weight):
    """Other loops inside: neighbouring filters, whose weights and sums are neighbours in memory.

    These are F different sums, so no addition waits for another, and the compiler makes one
    instruction of 8 filters (AVX2) or 16 (AVX-512): SIMD. But a multiply-add now needs two loads
    (weights, sums) and a store, and cores do one or two of these in a cycle.
    """
    out = result(x, weight)
    weight = weight.transpose(2, 3, 1, 0)
    vector_loops(x, aligned(weight.shape, weight), out)  # (R, S, C, F)
    return out


# -------------------------------------------------------------------------------------- 7  blocked


@njit(fastmath=FMA)
def blocked_loops(x, weight, out):
    N, P, Q, F = out.shape
    C = x.shape[3]
    out[:] = 0
    for n in range(N):
        for p in range(P):
            for r in range(R):
                for s in range(S):
                    for c in range(0, C, 4):
                        w0, w1 = weight[r, s, c], weight[r, s, c + 1]  # (F,) each
                        w2, w3 = weight[r, s, c + 2], weight[r, s, c + 3]
                        for q in range(Q):  # a whole row of pixels meets these four
                            pixel, sums = x[n, p + r, q + s], out[n, p, q]
                            x0, x1, x2, x3 = pixel[c], pixel[c + 1], pixel[c + 2], pixel[c + 3]
                            for f in range(F):
                                sums[f] += x0 * w0[f] + x1 * w1[f] + x2 * w2[f] + x3 * w3[f]


def blocked(x, weight):
    """Four channels at a time, for a row of pixels: what is loaded is used several times.

    The weights of four channels (1 KiB of 144) and a row of sums (14 KiB) stay in the L1 cache, and
    a sum is loaded and stored once for four products instead of one. Blocking alone, without the
    four products, gains nothing here: all the weights fit L2, and rung 6 waits for its loads and
    stores, not for the cache. (C is a multiple of 4.)
    """
    expect(weight.shape[1] % 4 == 0, "C should be a multiple of 4")
    out = result(x, weight)
    weight = weight.transpose(2, 3, 1, 0)
    blocked_loops(x, aligned(weight.shape, weight), out)
    return out


def expect(condition, message):
    """Compiled loops do not look where they write: what they need is checked before."""
    if not condition:
        raise ValueError(message)


# ------------------------------------------------------------------------------------ 8  registers


@njit(fastmath=ANY_ORDER)
def product(a, start, pitch, b, c):
    """c = a @ b.T, c (M, F), b (F, K); M a multiple of 2, F of 4. Row i of a is the K numbers from
    a[start + i * pitch] on, so that it may be a part of a larger array.

    The *micro-kernel* is the loop over k: 2 rows of a meet 4 rows of b, and their 8 sums are
    variables, which a compiler keeps in registers; each is a vector of 8 or 16 partial sums. 6
    loads serve 8 multiply-adds, and nothing is stored before k ends. With AVX-512, which has 32
    registers, 4 x 4 would be 3 % faster; with AVX2, which has 16, half as fast: sums go to memory.
    (BLIS's micro-kernels keep vectors of neighbouring results instead, from panels packed for that.
    Summing along k needs no packing, as filters and windows are rows already, and at the end one
    sum over each vector.)
    """
    M, F = c.shape
    K = b.shape[1]
    for j in range(0, F, 4):  # 4 rows of b stay in L1 while all of a passes by
        b0, b1, b2, b3 = b[j], b[j + 1], b[j + 2], b[j + 3]
        for i in range(0, M, 2):
            at = start + i * pitch
            a0, a1 = a[at : at + K], a[at + pitch : at + pitch + K]
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = ZERO
            for k in range(K):
                x0, x1 = a0[k], a1[k]
                y0, y1, y2, y3 = b0[k], b1[k], b2[k], b3[k]
                s00, s01, s02, s03 = s00 + x0 * y0, s01 + x0 * y1, s02 + x0 * y2, s03 + x0 * y3
                s10, s11, s12, s13 = s10 + x1 * y0, s11 + x1 * y1, s12 + x1 * y2, s13 + x1 * y3
            c[i, j], c[i, j + 1], c[i, j + 2], c[i, j + 3] = s00, s01, s02, s03
            c[i + 1, j], c[i + 1, j + 1], c[i + 1, j + 2], c[i + 1, j + 3] = s10, s11, s12, s13


@njit(fastmath=ANY_ORDER)
def register_loops(x, weight, gathered, sums, out):
    N, P, Q, F = out.shape
    C = x.shape[3]
    for n in range(N):
        for p in range(P):
            for q in range(Q):
                for r in range(R):
                    window = x[n, p + r, q : q + S].reshape(S * C)  # one run in memory
                    to = gathered[q, r * S * C : (r + 1) * S * C]
                    for i in range(S * C):
                        to[i] = window[i]
            product(gathered.reshape(-1), 0, R * S * C, weight, sums)
            for q in range(Q):
                for f in range(F):
                    out[n, p, q, f] = sums[q, f]


def registers(x, weight):
    """GEMM as in GotoBLAS and BLIS: im2col, but for one row of the result at a time, and a block of
    sums in registers.

    The windows of 56 pixels are 126 KiB, and stay in L2 from gathering to use: the matrix of rung 4
    never exists (*implicit GEMM*). Nothing is stored in the innermost loop, so that it keeps the
    multipliers busy: the product alone reaches 0.85 of the peak. (F is a multiple of 4.)
    """
    (F, C), Q = weight.shape[:2], x.shape[2] - 2
    expect(F % 4 == 0, "F should be a multiple of 4")
    gathered = aligned((even(Q), R * S * C), 0)
    out, sums = result(x, weight), aligned((even(Q), F))
    by_filter = aligned((F, R * S * C), weight.transpose(0, 2, 3, 1).reshape(F, R * S * C))
    register_loops(x, by_filter, gathered, sums, out)
    return out


def even(rows):
    """The next even number: the micro-kernel takes two rows at once."""
    return rows + rows % 2


# ------------------------------------------------------------------------------------- 9  winograd


@njit(fastmath=ANY_ORDER)
def winograd_loops(x, weight, values, products, out):
    N, P, Q, F = out.shape
    C = x.shape[3]
    tiles = values.shape[1]
    pitch = 4 * C  # the values of two rows of results come from four rows of pixels
    for n in range(N):
        for p in range(0, P, 2):
            for r in range(4):
                row = x[n, p + r]
                for t in range(Q // 2):
                    d0, d1, d2, d3 = row[2 * t], row[2 * t + 1], row[2 * t + 2], row[2 * t + 3]
                    v0, v1 = values[0, t, r], values[1, t, r]
                    v2, v3 = values[2, t, r], values[3, t, r]
                    for c in range(C):
                        v0[c], v1[c] = d0[c] - d2[c], d1[c] + d2[c]
                        v2[c], v3[c] = d2[c] - d1[c], d3[c] - d1[c]
            for down in range(2):  # a tile's pixels from row p + down on are R * C numbers in a row
                for v in range(4):
                    start = (v * tiles * 4 + down) * C
                    product(values.reshape(-1), start, pitch, weight[v], products[v])
                for t in range(Q // 2):
                    m0, m1, m2, m3 = products[0, t], products[1, t], products[2, t], products[3, t]
                    y0, y1 = out[n, p + down, 2 * t], out[n, p + down, 2 * t + 1]
                    for f in range(F):
                        y0[f], y1[f] = m0[f] + m1[f] + m2[f], m1[f] - m2[f] + m3[f]


def winograd(x, weight):
    """Fewer multiplications: F(2,3), two results of three taps from 4 products instead of 6
    (docs/derivations.md, section 5), along each row; down the columns as in rung 8.

    Four values of a tile meet four of a filter, so it is four matrix products with sums of R C
    numbers instead of one with R S C: 12 for 18. Of these 1.5 some are lost: pixels are transformed
    before and results after, and a third as long sums leave the registers three times as often. (P
    and Q are even, F a multiple of 4.)
    """
    (F, C), (P, Q) = weight.shape[:2], (x.shape[1] - 2, x.shape[2] - 2)
    expect(F % 4 == 0 and P % 2 == 0 and Q % 2 == 0, "F should be a multiple of 4, P and Q even")
    g0, g1, g2 = (weight[:, :, :, s].transpose(0, 2, 1) for s in range(S))  # (F, R, C) each
    values_of_filters = np.stack([g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2])
    of_filters = aligned((4, F, R * C), values_of_filters.reshape(4, F, R * C))
    values, products = aligned((4, even(Q // 2), 4, C), 0), aligned((4, even(Q // 2), F))
    out = result(x, weight)
    winograd_loops(x, of_filters, values, products, out)
    return out


# ------------------------------------------------------------------------------------- 10  library


def library(x, weight):
    """tinyft's kernel (tinyft/backends/cpu/conv/winograd/forward.py): tiles of 4x4 results.

    The transform runs in both directions and over larger tiles: a quarter of the multiplications.
    Its micro-kernel is written for the machine's registers (12 x 2 vectors with AVX-512), as are
    its transforms, whose sums share what they have in common.
    """
    from tinyft.backends import registry

    return registry.get("cpu").conv2d(x, weight)


# ------------------------------------------------------------------------------------------- timed

# Each rung, the one that it improves on, and the pictures that it is timed with: (N, P and Q).
RUNGS = [
    (loops, None, (1, 4)),
    (windows, loops, (1, 8)),
    (taps, windows, (4, 56)),
    (im2col, taps, (4, 56)),
    (compiled, loops, (1, 28)),
    (vectors, compiled, (1, 56)),
    (blocked, vectors, (4, 56)),
    (registers, blocked, (4, 56)),
    (winograd, registers, (4, 56)),
    (library, winograd, (4, 56)),
]
TOLERANCE = 1e-5  # results are about 1; the sums of 576 products round by some 1e-6


def example(N, size, C, F):
    """Random pictures with a border of zeros, and filters that make results of about 1."""
    rng = np.random.default_rng(0)
    x = aligned((N, size + 2, size + 2, C), 0)
    x[:, 1:-1, 1:-1] = rng.normal(size=(N, size, size, C))
    weight = rng.normal(size=(F, C, R, S)) / np.sqrt(C * R * S)
    return x, weight.astype(np.float32)


def check(rung, x, weight):
    """Compare a rung's result with rung 1's, on the last 2 x 2 pixels of all that it is timed with
    and on a small picture as a whole; raise if they differ by more than rounding.
    """
    for pictures, filters, corner in [(x, weight, x[-1:, -4:, -4:]), (*example(2, 8, 8, 4), None)]:
        expected = loops(pictures if corner is None else corner, filters)
        out = rung(pictures, filters)
        out = out if corner is None else out[-1:, -2:, -2:]
        error = np.abs(out - expected).max()
        if not error < TOLERANCE:
            raise ValueError(f"{rung.__name__} differs from loops by {error:.1e}")


@njit(fastmath=ANY_ORDER)
def multiply_add(numbers, factors, rounds):
    """Nothing but multiply-adds: 8 sums in registers, one load for 8 of them."""
    f0, f1, f2, f3, f4, f5, f6, f7 = factors
    total = ZERO
    for _ in range(rounds):
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = ZERO
        for i in range(numbers.size):
            x = numbers[i]
            s0, s1, s2, s3 = s0 + x * f0, s1 + x * f1, s2 + x * f2, s3 + x * f3
            s4, s5, s6, s7 = s4 + x * f4, s5 + x * f5, s6 + x * f6, s7 + x * f7
        f0 += s7  # so that no round is like the one before, and none can be left out
        total += s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7
    return total


def peak():
    """GFLOP/s of a core that does nothing but multiply and add."""
    numbers, factors, rounds = np.ones(2048, np.float32), (ZERO,) * 8, 2000
    seconds = cpu_seconds(multiply_add, numbers, factors, rounds)
    return 2 * 8 * len(numbers) * rounds / seconds / 1e9


def cpu_seconds(function, *arguments):
    """Time on a core. What other programs take of it meanwhile does not count."""
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def gflops(rung, x, weight, seconds=cpu_seconds):
    results = x.shape[0] * (x.shape[1] - 2) * (x.shape[2] - 2)  # N P Q
    return 2 * results * weight.size / seconds(rung, x, weight) / 1e9


def wall_seconds(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="medians of so many (7)")
    rounds = parser.parse_args(argv).rounds
    from tinyft.backends.cpu.runtime.threads import get_num_threads, set_num_threads

    threads = get_num_threads()
    set_num_threads(1)
    arrays = {shape: example(*shape, 64, 64) for _, _, shape in RUNGS}
    for rung, _, shape in RUNGS:
        check(rung, *arrays[shape])  # compiles it, too
    peak()
    speeds = {rung: [] for rung, _, _ in RUNGS}
    peaks = []
    for _ in range(rounds):  # in turns, so that a busy moment does not meet one rung alone
        peaks.append(peak())
        for rung, _, shape in RUNGS:
            speeds[rung].append(gflops(rung, *arrays[shape]))
    most = statistics.median(peaks)
    print("3x3 convolution, 64 channels, 64 filters; one core, float32, medians of", rounds)
    print(f"peak (multiply-adds in registers): {most:.0f} GFLOP/s\n")
    print("    rung         pictures   GFLOP/s   of peak   gain")
    median = {rung: statistics.median(measured) for rung, measured in speeds.items()}
    for i, (rung, before, (N, size)) in enumerate(RUNGS, 1):
        speed, name = median[rung], rung.__name__
        gain = f"{speed / median[before]:7.1f} x {before.__name__}" if before else ""
        line = f"{i:4} {name:11} {N} of {size:2}x{size:2} {speed:9.3g} {speed / most:9.2%} {gain}"
        print(line.rstrip())
    photos = example(4, 56, 3, 64)
    by_taps, by_im2col = (
        statistics.median(gflops(rung, *photos) for _ in range(rounds)) for rung in (taps, im2col)
    )
    print(f"\nwith 3 channels: taps {by_taps:.3g}, im2col {by_im2col:.3g} GFLOP/s")
    set_num_threads(threads)
    x, weight = example(16, 56, 64, 64)
    library(x, weight)
    both = statistics.median(gflops(library, x, weight, wall_seconds) for _ in range(rounds))
    print(f"rung 10 on {threads} threads, 16 pictures, by the clock: {both:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
