"""3x3, stride-1 convolution by Winograd's F(4x4, 3x3): forward, input gradient and weight gradient.

A 4x4 tile of outputs needs a 6x6 tile of inputs.  With three constant matrices

    Y = A' [ (G w G') * (B' d B) ] A          (* elementwise, summed over input channels)

the tile costs 36 multiplications per channel pair instead of 16*9 = 144: a quarter.  The sum over
channels turns each of the 36 positions into an ordinary matrix product (tiles x C) @ (C x K).

The matrices come from evaluating polynomials at the points 0, +-a, +-b, infinity.  The textbook choice is
a=1, b=2; a=sqrt(1/2), b=sqrt(2) needs the same number of operations and halves the rounding error.

Memory: activations are NHWC (channels last, contiguous), weights are [3][3][C][K].  Channels must be
multiples of the register width LANES here; conv.py pads others.
"""

import numpy as np

from tinyft.backends.cpu.implicit_gemm import k_sum_parts
from tinyft.backends.cpu.gemm import gemm, panel_offset
from tinyft.backends.cpu.simd import (
    helper,
    kernel,
    MR,
    NR,
    LANES,
    atomic_next,
    make_transform2d,
    prefetch,
    vload,
    vset1,
    vstore,
    vtranspose,
)
from tinyft.backends.cpu.threads import alloc, pool, run, scratch


def winograd_matrices(a, b, m=4, r=3):
    """A' (m x n), G (n x r), B' (n x n) of F(m, r), n = m+r-1, for the points 0, a, -a, b, -b, infinity."""
    n = m + r - 1
    pts = [0.0, a, -a, b, -b][: n - 1]
    At, G, Bt = np.zeros((m, n)), np.zeros((n, r)), np.zeros((n, n))
    for j, p in enumerate(pts):
        others = [q for q in pts if q != p]
        At[:, j] = [p**i for i in range(m)]
        G[j] = np.array([p**i for i in range(r)]) / np.prod([p - q for q in others])
        Bt[j, : n - 1] = np.poly(others)[::-1]  # coefficients of prod (x - q)
    At[m - 1, n - 1] = G[n - 1, r - 1] = 1
    Bt[n - 1] = np.poly(pts)[::-1]
    tidy = lambda M: np.where(
        abs(M) < 1e-12, 0, np.where(abs(M - np.round(M * 2) / 2) < 1e-12, np.round(M * 2) / 2, M)
    )
    return tidy(At), tidy(G), tidy(Bt)


At, G, Bt = winograd_matrices(0.5**0.5, 2**0.5)
input_transform = make_transform2d(Bt)  # 6x6 pixels  -> 6x6
filter_transform = make_transform2d(G)  # 3x3 weights -> 6x6
output_transform = make_transform2d(At, epilogue=True)  # 6x6 -> 4x4 pixels, + bias + residual, ReLU
grad_transform = make_transform2d(At.T)  # 4x4 output gradients -> 6x6
dweight_transform = make_transform2d(G.T)  # 6x6 -> 3x3 weight gradient


CB = 64  # channels per block of V: V[channel block][36][tile][CB + 16], every block is read as one stream
CP = CB + 16


@helper
def copy_tile(src, n, H, Wd, C, y0, x0, size, dst, do):
    """size x size pixels of image n from (y0, x0) into dst, zeros where outside the image."""
    zero = vset1(np.float32(0))
    for i in range(size):
        y = y0 + i
        for j in range(size):
            x = x0 + j
            o = do + (i * size + j) * C
            if 0 <= y < H and 0 <= x < Wd:
                s = ((n * H + y) * Wd + x) * C
                for c in range(0, C, LANES):
                    vstore(dst, o + c, vload(src, s + c))
            else:
                for c in range(0, C, LANES):
                    vstore(dst, o + c, zero)


@kernel
def k_filter(counter, tid, w, C, K, flip, U, tmp):
    """U[36] = G w G' as packed panels: C x K, or K x C of the rotated filter when flip (for the input gradient)."""
    to = tid * 9 * LANES * LANES
    while True:
        c0 = atomic_next(counter, 0) * LANES
        if c0 >= C:
            break
        for k0 in range(0, K, LANES):
            if flip == 0:
                for i in range(LANES):
                    filter_transform(
                        w,
                        (c0 + i) * K + k0,
                        3 * C * K,
                        C * K,
                        U,
                        panel_offset(c0 + i, k0, C, K),
                        6 * C * K,
                        C * K,
                    )
            else:
                for t in range(9):
                    vtranspose(w, (t * C + c0) * K + k0, K, tmp, to + t * LANES * LANES, LANES)
                for i in range(LANES):
                    filter_transform(
                        tmp,
                        to + 8 * LANES * LANES + i * LANES,
                        -3 * LANES * LANES,
                        -LANES * LANES,
                        U,
                        panel_offset(k0 + i, c0, K, C),
                        6 * C * K,
                        C * K,
                    )


@helper
def prefetch_block(a, n, H, Wd, C, y0, x0, rows):
    """Ask for `rows` rows of 4 pixels: they arrive while the core multiplies."""
    for i in range(rows):
        o = ((n * H + y0 + i) * Wd + x0) * C
        for q in range(0, 4 * C, 16):
            prefetch(a, o + q)


@kernel
def k_forward(
    counter,
    tid,
    x,
    N,
    H,
    Wd,
    C,
    U,
    K,
    y,
    OH,
    OW,
    pad,
    bias,
    res,
    has_res,
    low,
    T,
    XS,
    MS,
    work,
    worksize,
):
    """One item = T tiles: transform the inputs, 36 small matrix products, transform back, epilogue."""
    TH, TW = (OH + 3) // 4, (OW + 3) // 4
    total = N * TH * TW
    Cp, Kp = C + 16, K + 16
    vo = tid * worksize
    mo = vo + 36 * XS
    eo = mo + 36 * MS  # 36 pixels at an image border
    zo = eo + 36 * max(C, K)  # zeros: the residual when there is none
    ahead = C * K <= 128 * 128  # small layers wait for memory, big ones for arithmetic
    t0 = atomic_next(counter, 0) * T
    while t0 < total:
        nt = min(T, total - t0)
        for t in range(nt):
            n, r = divmod(t0 + t, TH * TW)
            ty, tx = divmod(r, TW)
            y0, x0 = 4 * ty - pad, 4 * tx - pad
            if y0 >= 0 and x0 >= 0 and y0 + 6 <= H and x0 + 6 <= Wd:
                src, so, sr, sc = x, ((n * H + y0) * Wd + x0) * C, Wd * C, C
            else:
                copy_tile(x, n, H, Wd, C, y0, x0, 6, work, eo)
                src, so, sr, sc = work, eo, 6 * C, C
            for c in range(0, C, LANES):
                input_transform(src, so + c, sr, sc, work, vo + t * Cp + c, 6 * XS, XS)
        ntp = (nt + MR - 1) // MR * MR
        now = t0
        t0 = atomic_next(counter, 0) * T  # the next item is known before the products start
        for xi in range(36):
            if ahead:
                for t in range(xi * T // 36, (xi + 1) * T // 36):
                    n, r = divmod(now + t, TH * TW)
                    ty, tx = divmod(r, TW)
                    prefetch_block(y, n, OH, OW, K, 4 * ty, 4 * tx, 4)
                    n, r = divmod(t0 + t, TH * TW)
                    ty, tx = divmod(r, TW)
                    prefetch_block(x, n, H, Wd, C, 4 * ty - pad, 4 * tx + 1 - pad, 6)
            gemm(
                work, vo + xi * XS, Cp, 1, U, xi * C * K, C, 0, work, mo + xi * MS, Kp, ntp, K, C, 0
            )
        for t in range(nt):
            n, r = divmod(now + t, TH * TW)
            ty, tx = divmod(r, TW)
            oy, ox = 4 * ty, 4 * tx
            o = ((n * OH + oy) * OW + ox) * K
            full = oy + 4 <= OH and ox + 4 <= OW
            if full:
                dst, do, dr, dc = y, o, OW * K, K
            else:
                dst, do, dr, dc = work, eo, 4 * K, K
            if has_res and full:
                rsrc, ro, rr, rc = res, o, OW * K, K
            else:
                rsrc, ro, rr, rc = work, zo, 0, 0
            lo = low
            if has_res and not full:  # add the residual below, so do not clamp yet
                lo = np.float32(-np.inf)
            for k in range(0, K, LANES):
                output_transform(
                    work,
                    mo + t * Kp + k,
                    6 * MS,
                    MS,
                    dst,
                    do + k,
                    dr,
                    dc,
                    bias,
                    k,
                    rsrc,
                    ro + k,
                    rr,
                    rc,
                    lo,
                )
            if not full:
                for i in range(min(4, OH - oy)):
                    for j in range(min(4, OW - ox)):
                        p = o + (i * OW + j) * K
                        e = eo + (4 * i + j) * K
                        if has_res:
                            for k in range(K):
                                y[p + k] = max(work[e + k] + res[p + k], low)
                        else:
                            for k in range(K):
                                y[p + k] = work[e + k]


@kernel
def k_input(counter, tid, x, N, H, Wd, C, OH, OW, pad, V, XS, edge):
    """Phase 1 of `forward_fresh`: all input tiles."""
    TH, TW = (OH + 3) // 4, (OW + 3) // 4
    eo = tid * 36 * C
    while True:
        t = atomic_next(counter, 0)
        if t >= N * TH * TW:
            break
        n, r = divmod(t, TH * TW)
        ty, tx = divmod(r, TW)
        copy_tile(x, n, H, Wd, C, 4 * ty - pad, 4 * tx - pad, 6, edge, eo)
        for c in range(0, C, LANES):
            input_transform(
                edge, eo + c, 6 * C, C, V, c // CB * 36 * XS + t * CP + c % CB, 6 * XS, XS
            )


@kernel
def k_fresh(counter, tid, V, XS, N, C, w, flip, K, y, OH, OW, res, has_res, work, worksize, US, MS):
    """Phase 2: an item is NR output channels.  Their filters are transformed right here and used at once, so the
    fourfold larger transformed weights never travel to memory."""
    TH, TW = (OH + 3) // 4, (OW + 3) // 4
    total = N * TH * TW
    uo = tid * worksize
    mo = uo + 36 * US
    to = mo + 36 * MS
    eo = to + 9 * LANES * LANES
    zo = eo + 16 * NR
    zero = vset1(np.float32(0))
    for k in range(0, NR, LANES):
        vstore(work, zo + k, zero)
    while True:
        k0 = atomic_next(counter, 0) * NR
        if k0 >= K:
            break
        nk = min(NR, K - k0)
        rows = (total + MR - 1) // MR * MR
        for cb in range(0, C, CB):  # CB input channels at a time: their U stays in L2
            nc = min(CB, C - cb)
            for kk in range(0, nk, LANES):
                for c in range(0, nc, LANES):
                    if flip == 0:
                        for i in range(LANES):
                            filter_transform(
                                w,
                                (cb + c + i) * K + k0 + kk,
                                3 * C * K,
                                C * K,
                                work,
                                uo + panel_offset(c + i, kk, nc, nk),
                                6 * US,
                                US,
                            )
                    else:  # w is [3][3][K][C] from this function's point of view
                        for t in range(9):
                            vtranspose(
                                w,
                                (t * K + k0 + kk) * C + cb + c,
                                C,
                                work,
                                to + t * LANES * LANES,
                                LANES,
                            )
                        for i in range(LANES):
                            filter_transform(
                                work,
                                to + 8 * LANES * LANES + i * LANES,
                                -3 * LANES * LANES,
                                -LANES * LANES,
                                work,
                                uo + panel_offset(c + i, kk, nc, nk),
                                6 * US,
                                US,
                            )
            for xi in range(36):
                if cb + CB < C:  # meanwhile fetch the next weights, 1/36 of them each time
                    if flip == 0:
                        for q in range(xi * 16, xi * 16 + 16):
                            o = (q // CB * C + cb + CB + q % CB) * K + k0
                            prefetch(w, o)
                            prefetch(w, o + 16)
                    else:
                        for q in range(xi * 9 * NR // 36, (xi + 1) * 9 * NR // 36):
                            o = (q // NR * K + k0 + q % NR) * C + cb + CB
                            for i in range(0, CB, 16):
                                prefetch(w, o + i)
                gemm(
                    V,
                    (cb // CB * 36 + xi) * XS,
                    CP,
                    1,
                    work,
                    uo + xi * US,
                    nc,
                    0,
                    work,
                    mo + xi * MS,
                    NR + 16,
                    rows,
                    nk,
                    nc,
                    cb,
                )
        for t in range(total):
            n, r = divmod(t, TH * TW)
            ty, tx = divmod(r, TW)
            oy, ox = 4 * ty, 4 * tx
            o = ((n * OH + oy) * OW + ox) * K + k0
            for k in range(0, nk, LANES):
                output_transform(
                    work,
                    mo + t * (NR + 16) + k,
                    6 * MS,
                    MS,
                    work,
                    eo + k,
                    4 * NR,
                    NR,
                    work,
                    zo,
                    work,
                    zo,
                    0,
                    0,
                    np.float32(-np.inf),
                )
                for i in range(min(4, OH - oy)):
                    for j in range(min(4, OW - ox)):
                        p = o + (i * OW + j) * K + k
                        v = vload(work, eo + (4 * i + j) * NR + k)
                        if has_res:
                            v = v + vload(res, p)
                        vstore(y, p, v)


@helper
def dw_tile(ti, x, H, Wd, C, dy, K, OH, OW, pad, TH, TW, t, T, V, vo, XS, D, do, DS, edge, eo):
    """Transform input tile and output-gradient tile number `ti` into row t of V[36][T][C] and D[36][panel][T][NR]."""
    n, r = divmod(ti, TH * TW)
    ty, tx = divmod(r, TW)
    y0, x0 = 4 * ty - pad, 4 * tx - pad
    if y0 >= 0 and x0 >= 0 and y0 + 6 <= H and x0 + 6 <= Wd:
        src, so, sr, sc = x, ((n * H + y0) * Wd + x0) * C, Wd * C, C
    else:
        copy_tile(x, n, H, Wd, C, y0, x0, 6, edge, eo)
        src, so, sr, sc = edge, eo, 6 * C, C
    for c in range(0, C, LANES):
        input_transform(
            src, so + c, sr, sc, V, vo + c // CB * 36 * XS + t * CP + c % CB, 6 * XS, XS
        )
    oy, ox = 4 * ty, 4 * tx
    if oy + 4 <= OH and ox + 4 <= OW:
        src, so, sr, sc = dy, ((n * OH + oy) * OW + ox) * K, OW * K, K
    else:
        copy_tile(dy, n, OH, OW, K, oy, ox, 4, edge, eo)
        src, so, sr, sc = edge, eo, 4 * K, K
    for k in range(0, K, LANES):
        grad_transform(src, so + k, sr, sc, D, do + panel_offset(t, k, T, K), 6 * DS, DS)


@kernel
def k_dw_local(
    counter, tid, x, N, H, Wd, C, dy, K, OH, OW, pad, parts, T, XS, DS, acc, work, worksize
):
    """Weight gradient of layers with few channels, acc[part] (36 x C x K): a block of tiles is transformed and
    multiplied while it is still in the core's own cache.  The parts depend on the shape only."""
    TH, TW = (OH + 3) // 4, (OW + 3) // 4
    total = N * TH * TW
    per = (total + parts - 1) // parts
    vo = tid * worksize
    do = vo + (C + CB - 1) // CB * 36 * XS
    eo = do + 36 * DS
    while True:
        part = atomic_next(counter, 0)
        if part >= parts:
            break
        first, last = part * per, min(total, part * per + per)
        for t0 in range(first, last, T):
            cnt = min(T, last - t0)
            for t in range(cnt):
                dw_tile(
                    t0 + t,
                    x,
                    H,
                    Wd,
                    C,
                    dy,
                    K,
                    OH,
                    OW,
                    pad,
                    TH,
                    TW,
                    t,
                    T,
                    work,
                    vo,
                    XS,
                    work,
                    do,
                    DS,
                    work,
                    eo,
                )
            for xi in range(36):
                for t in range(T + xi * T // 36, T + (xi + 1) * T // 36):
                    n, r = divmod(t0 + t, TH * TW)
                    ty, tx = divmod(r, TW)
                    prefetch_block(dy, n, OH, OW, K, 4 * ty, 4 * tx, 4)
                    prefetch_block(x, n, H, Wd, C, 4 * ty - pad, 4 * tx + 1 - pad, 6)
                for c in range(0, C, CB):
                    gemm(
                        work,
                        vo + (c // CB * 36 + xi) * XS,
                        1,
                        CP,
                        work,
                        do + xi * DS,
                        T,
                        0,
                        acc,
                        ((part * 36 + xi) * C + c) * K,
                        K,
                        min(CB, C - c),
                        K,
                        cnt,
                        t0 - first,
                    )


@kernel
def k_dw_transform(
    counter, tid, x, N, H, Wd, C, dy, K, OH, OW, pad, first, count, T, V, XS, D, DS, edge
):
    """Phase 1 of the weight gradient of wider layers: transform `count` tiles for everyone."""
    TH, TW = (OH + 3) // 4, (OW + 3) // 4
    while True:
        t0 = atomic_next(counter, 0) * 4
        if t0 >= count:
            break
        for t in range(t0, min(t0 + 4, count)):
            dw_tile(
                first + t,
                x,
                H,
                Wd,
                C,
                dy,
                K,
                OH,
                OW,
                pad,
                TH,
                TW,
                t,
                T,
                V,
                0,
                XS,
                D,
                0,
                DS,
                edge,
                tid * 36 * max(C, K),
            )


@kernel
def k_dw_block(counter, tid, V, XS, C, D, DS, K, T, count, dw, work, worksize):
    """Phases 2 and 3 at once: a 64 x 64 block of channel pairs at all 36 positions, then back to 3x3."""
    nk = (K + 63) // 64
    wo = tid * worksize
    US = 64 * 80 + 16
    while True:
        item = atomic_next(counter, 0)
        if item >= (C + 63) // 64 * nk:
            break
        c0, k0 = item // nk * 64, item % nk * 64
        mc, mk = min(64, C - c0), min(64, K - k0)
        for xi in range(36):
            gemm(
                V,
                (c0 // CB * 36 + xi) * XS,
                1,
                CP,
                D,
                xi * DS + k0 * T,
                T,
                0,
                work,
                wo + xi * US,
                80,
                mc,
                mk,
                count,
                0,
            )
        for c in range(mc):
            for k in range(0, mk, LANES):
                dweight_transform(
                    work, wo + c * 80 + k, 6 * US, US, dw, (c0 + c) * K + k0 + k, 3 * C * K, C * K
                )


@kernel
def k_dw_gemm(counter, tid, V, XS, C, D, DS, K, T, count, dU, acc):
    """Phase 2: dU[xi] (+)= V[xi]' @ D[xi].  One item = one of the 36 positions and half of the columns."""
    while True:
        item = atomic_next(counter, 0)
        if item >= 36 * 2:
            break
        xi = item // 2
        half = (K // 2 + NR - 1) // NR * NR
        k0 = half * (item % 2)
        k1 = K if item % 2 else half
        if k1 > k0:
            for c in range(0, C, CB):
                gemm(
                    V,
                    (c // CB * 36 + xi) * XS,
                    1,
                    CP,
                    D,
                    xi * DS + k0 * T,
                    T,
                    0,
                    dU,
                    (xi * C + c) * K + k0,
                    K,
                    min(CB, C - c),
                    k1 - k0,
                    count,
                    acc,
                )


@kernel
def k_dw_output(counter, tid, dU, C, K, dw):
    """Phase 3: dw = G' dU G"""
    while True:
        c0 = atomic_next(counter, 0) * 4
        if c0 >= C:
            break
        for c in range(c0, min(C, c0 + 4)):
            for k in range(0, K, LANES):
                dweight_transform(dU, c * K + k, 6 * C * K, C * K, dw, c * K + k, 3 * C * K, C * K)


def odd_lines(n):
    """Round a pitch up to an odd number of 16-float lines: 36 streams then fall into different cache sets."""
    return (n // 16 | 1) * 16 if n % 16 == 0 else ((n // 16 + 1) | 1) * 16


def transform_filter(w, flip, out=None):
    C, K = w.shape[2:]
    U = alloc(36 * C * K) if out is None else out
    run(
        k_filter,
        w.reshape(-1),
        C,
        K,
        int(flip),
        U,
        scratch("wino_tr", pool().n * 9 * LANES * LANES),
    )
    return U


BLOCK = {}  # (C, K) -> tiles per item, to experiment with


def block_tiles(C, K, total):
    if (C, K) in BLOCK:
        return BLOCK[C, K]
    T = 2 * MR if C * K <= 256 * 256 else 4 * MR
    return max(MR, min(T, -(-total // MR) * MR))


def forward(x, U, K, pad, y, bias=None, res=None, relu=False):
    """y = conv3x3(x) + bias + res, ReLU on request.  U from transform_filter."""
    N, H, Wd, C = x.shape
    OH, OW = y.shape[1:3]
    total = N * (-(-OH // 4)) * (-(-OW // 4))
    T = block_tiles(C, K, total)
    XS, MS = odd_lines(T * (C + 16)), odd_lines(T * (K + 16))
    size = -(-(36 * (XS + MS) + 36 * max(C, K) + max(C, K)) // 1024) * 1024
    work = scratch("wino", pool().n * size)
    zo = 36 * (XS + MS) + 36 * max(C, K)
    for t in range(pool().n):
        work[t * size + zo : t * size + zo + max(C, K)] = 0
    if bias is None:
        bias = scratch("zero", 8192)
    run(
        k_forward,
        x.reshape(-1),
        N,
        H,
        Wd,
        C,
        U,
        K,
        y.reshape(-1),
        OH,
        OW,
        pad,
        bias,
        y.reshape(-1) if res is None else res.reshape(-1),
        int(res is not None),
        np.float32(0 if relu else -np.inf),
        T,
        XS,
        MS,
        work,
        size,
    )
    return y


def use_fresh(total, C, K):
    """Few tiles and many weights (the last stage of a ResNet): transform filters on the fly."""
    return total <= 128 and C * K >= 128 * 256


def forward_fresh(x, w, flip, pad, y, res=None):
    """y = conv3x3(x) + res straight from the weights (rotated and transposed when flip), for training."""
    N, H, Wd, C = x.shape
    _, OH, OW, K = y.shape
    total = N * (-(-OH // 4)) * (-(-OW // 4))
    XS = odd_lines((total + MR) * CP)
    V = scratch("wino_V", -(-C // CB) * 36 * XS)
    run(
        k_input,
        x.reshape(-1),
        N,
        H,
        Wd,
        C,
        OH,
        OW,
        pad,
        V,
        XS,
        scratch("wino_edge", pool().n * 36 * max(C, K)),
    )
    US, MS = odd_lines(CB * NR), odd_lines((total + MR) * (NR + 16))
    size = -(-(36 * (US + MS) + 9 * LANES * LANES + 17 * NR) // 1024) * 1024
    run(
        k_fresh,
        V,
        XS,
        N,
        C,
        w.reshape(-1),
        int(flip),
        K,
        y.reshape(-1),
        OH,
        OW,
        (y if res is None else res).reshape(-1),
        int(res is not None),
        scratch("wino_fresh", pool().n * size),
        size,
        US,
        MS,
    )
    return y


def train_forward(x, w, flip, pad, y, res=None, U=None):
    """Forward (flip=False) or input gradient (flip=True) when the weights change at every call."""
    N, OH, OW, K = y.shape
    if use_fresh(N * (-(-OH // 4)) * (-(-OW // 4)), x.shape[3], K):
        return forward_fresh(x, w, flip, pad, y, res)
    U = transform_filter(w, flip, scratch("wino_U", 36 * w.shape[2] * w.shape[3]))
    return forward(x, U, K, pad, y, None, res)


def weight_gradient(x, dy, pad, dw):
    N, H, Wd, C = x.shape
    _, OH, OW, K = dy.shape
    total = N * (-(-OH // 4)) * (-(-OW // 4))
    xf, df, dwf = x.reshape(-1), dy.reshape(-1), dw.reshape(-1)
    if C * K <= 64 * 64:  # all 36 C x K sums fit in L2
        parts = max(1, min(8, total // 16))
        T = 16 if C * K > 32 * 32 else 32
        XS, DS = odd_lines(T * CP), odd_lines(T * K)
        size = -(-(36 * (-(-C // CB) * XS + DS + max(C, K))) // 1024) * 1024
        acc = scratch("wino_acc", parts * 36 * C * K)
        run(
            k_dw_local,
            xf,
            N,
            H,
            Wd,
            C,
            df,
            K,
            OH,
            OW,
            pad,
            parts,
            T,
            XS,
            DS,
            acc,
            scratch("wino_dwl", pool().n * size),
            size,
        )
        dU = scratch("wino_dU", 36 * C * K)
        run(k_sum_parts, acc, parts, 36 * C * K, 36 * C * K, dU)
        run(k_dw_output, dU, C, K, dwf)
        return dw
    # as many tiles per round as keep both transformed operands in the shared cache
    T = max(8, min(total, 5_000_000 // (36 * (C + K))))
    T = -(-total // -(-total // T))
    XS, DS = odd_lines(T * CP), odd_lines(T * K)
    V, D = scratch("wino_V", -(-C // CB) * 36 * XS), scratch("wino_D", 36 * DS)
    edge = scratch("wino_edge", pool().n * 36 * max(C, K))
    for first in range(0, total, T):
        n = min(T, total - first)
        run(k_dw_transform, xf, N, H, Wd, C, df, K, OH, OW, pad, first, n, T, V, XS, D, DS, edge)
        if T == total:
            size = 36 * (64 * 80 + 16) + 1024
            run(
                k_dw_block,
                V,
                XS,
                C,
                D,
                DS,
                K,
                T,
                n,
                dwf,
                scratch("wino_dwb", pool().n * size),
                size,
            )
            return dw
        dU = scratch("wino_dU", 36 * C * K)
        run(k_dw_gemm, V, XS, C, D, DS, K, T, n, dU, int(first > 0))
    run(k_dw_output, dU, C, K, dwf)
    return dw
