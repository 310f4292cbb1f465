"""Every other convolution: any kernel size and stride, as a matrix product on gathered pixels.

A block of T output pixels gathers its input window ("im2col") into a buffer that stays in the L2 cache; the
packed weights do the rest.  Gathering moves each number once for 2*K arithmetic operations, so it is nearly free,
and it takes care of borders, strides and any number of input channels.

The same kernel serves three ways:
 * forward:        taps (r - pad, s - pad), input stride = stride
 * input gradient: for stride s, the pixels split in s*s phases; each phase is a stride-1 convolution of dy with
                   the taps that hit it, written to every s-th pixel
 * 1x1:            one tap
"""

import functools

import numpy as np

from tinyft.backends.cpu.gemm import gemm, panel_offset
from tinyft.backends.cpu.simd import (
    helper,
    kernel,
    MR,
    NR,
    LANES,
    atomic_next,
    vload,
    vmax,
    vset1,
    vstore,
    vtranspose,
)
from tinyft.backends.cpu.threads import pool, run, scratch

KB = 512  # rows of the packed weights used per pass


@helper
def gather(x, n, H, Wd, C, y0, x0, ty, tx, t0, t1, c0, L, dst, do):
    """Runs of L floats (from channel c0) at taps t0..t1 of the window at (y0, x0); zeros outside the image.

    Copies whole registers: the overshoot of one run is overwritten by the next, and buffers have LANES floats slack."""
    zero = vset1(np.float32(0))
    for t in range(t0, t1):
        iy, ix = y0 + ty[t], x0 + tx[t]
        if 0 <= iy < H and 0 <= ix < Wd:
            s = ((n * H + iy) * Wd + ix) * C + c0
            for c in range(0, L, LANES):
                vstore(dst, do + c, vload(x, s + c))
        else:
            for c in range(0, L, LANES):
                vstore(dst, do + c, zero)
        do += L


@kernel
def k_conv(
    counter,
    tid,
    x,
    N,
    H,
    Wd,
    C,
    L,
    ty,
    tx,
    stride,
    B,
    K,
    y,
    OH,
    OW,
    GH,
    GW,
    ostride,
    oa,
    ob,
    bias,
    res,
    has_res,
    low,
    T,
    pitch,
    work,
    worksize,
):
    """y[n, g*ostride + (oa, ob)] = sum over taps of x[n, g*stride + tap] @ B, + bias + res, clamped at low."""
    total = N * GH * GW
    D = ty.size * L
    ao = tid * worksize
    Kp = K + 16
    mo = ao + T * pitch
    lo = vset1(low)
    while True:
        p0 = atomic_next(counter, 0) * T
        if p0 >= total:
            break
        np_ = min(T, total - p0)
        for p in range(np_):
            n, r = divmod(p0 + p, GH * GW)
            gy, gx = divmod(r, GW)
            gather(
                x,
                n,
                H,
                Wd,
                C,
                gy * stride,
                gx * stride,
                ty,
                tx,
                0,
                ty.size,
                0,
                L,
                work,
                ao + p * pitch,
            )
        rows = (np_ + MR - 1) // MR * MR
        for k0 in range(0, D, KB):
            gemm(work, ao + k0, pitch, 1, B, 0, D, k0, work, mo, Kp, rows, K, min(KB, D - k0), k0)
        for p in range(np_):
            n, r = divmod(p0 + p, GH * GW)
            gy, gx = divmod(r, GW)
            o = ((n * OH + gy * ostride + oa) * OW + gx * ostride + ob) * K
            m = mo + p * Kp
            if has_res:
                for k in range(0, K, LANES):
                    vstore(
                        y, o + k, vmax(vload(work, m + k) + vload(bias, k) + vload(res, o + k), lo)
                    )
            else:
                for k in range(0, K, LANES):
                    vstore(y, o + k, vmax(vload(work, m + k) + vload(bias, k), lo))


@kernel
def k_dw(
    counter,
    tid,
    x,
    N,
    H,
    Wd,
    C,
    L,
    ty,
    tx,
    stride,
    dy,
    OH,
    OW,
    K,
    parts,
    TC,
    CL,
    acc,
    accsize,
    T,
    pitch,
    work,
    worksize,
):
    """acc[part] = sum over the part's pixels of window' @ dy.  An item is (part, range of taps, range of channels):
    the split depends on the shape only, never on the number of threads."""
    total = N * OH * OW
    nt = (ty.size + TC - 1) // TC
    nc = (L + CL - 1) // CL
    ao = tid * worksize
    bo = ao + T * pitch
    per = (total + parts - 1) // parts
    while True:
        item = atomic_next(counter, 0)
        if item >= parts * nt * nc:
            break
        part, r = divmod(item, nt * nc)
        a, b = divmod(r, nc)
        t0, t1 = a * TC, min(ty.size, a * TC + TC)
        c0 = b * CL
        l = min(CL, L - c0)
        rows = ((t1 - t0) * l + 1) // 2 * 2
        co = part * accsize + (t0 * L + c0) * K
        first = part * per
        last = min(total, first + per)
        for p0 in range(first, last, T):
            cnt = min(T, last - p0)
            for p in range(cnt):
                n, r = divmod(p0 + p, OH * OW)
                gy, gx = divmod(r, OW)
                gather(
                    x,
                    n,
                    H,
                    Wd,
                    C,
                    gy * stride,
                    gx * stride,
                    ty,
                    tx,
                    t0,
                    t1,
                    c0,
                    l,
                    work,
                    ao + p * pitch,
                )
                s = (p0 + p) * K
                for k in range(0, K, LANES):
                    vstore(work, bo + panel_offset(p, k, T, K), vload(dy, s + k))
            gemm(work, ao, 1, pitch, work, bo, T, 0, acc, co, K, rows, K, cnt, p0 - first)


@kernel
def k_rows(counter, tid, x, H, Wd, C, R, S, stride, B, K, y, N, OH, OW, bias, low):
    """Convolution of an already padded image with few channels, without gathering: along one row of outputs the
    windows of one input row are runs of S*C floats that start stride*C floats apart -- a matrix in place."""
    L = S * C
    lo = vset1(low)
    while True:
        it = atomic_next(counter, 0)
        if it >= N * OH:
            break
        n, oy = divmod(it, OH)
        o = it * OW * K
        for r in range(R):
            gemm(
                x,
                (n * H + oy * stride + r) * Wd * C,
                stride * C,
                1,
                B,
                0,
                R * L,
                r * L,
                y,
                o,
                K,
                OW,
                K,
                L,
                r,
            )
        for p in range(o, o + OW * K, K):
            for k in range(0, K, LANES):
                vstore(y, p + k, vmax(vload(y, p + k) + vload(bias, k), lo))


@kernel
def k_rows_dw(counter, tid, x, H, Wd, C, R, S, stride, dy, N, OH, OW, K, parts, rows, acc, work):
    """Weight gradient for k_rows: acc[part][R][rows >= S*C][K]"""
    per = (N * OH + parts - 1) // parts
    bo = tid * OW * K
    while True:
        part = atomic_next(counter, 0)
        if part >= parts:
            break
        first = part * per
        for it in range(first, min(N * OH, first + per)):
            n, oy = divmod(it, OH)
            for p in range(OW):
                for k in range(0, K, LANES):
                    vstore(work, bo + panel_offset(p, k, OW, K), vload(dy, (it * OW + p) * K + k))
            for r in range(R):
                gemm(
                    x,
                    (n * H + oy * stride + r) * Wd * C,
                    1,
                    stride * C,
                    work,
                    bo,
                    OW,
                    0,
                    acc,
                    (part * R + r) * rows * K,
                    K,
                    rows,
                    K,
                    OW,
                    it - first,
                )


@kernel
def k_sum_parts(counter, tid, acc, parts, accsize, n, out):
    while True:
        i0 = atomic_next(counter, 0) * 4096
        if i0 >= n:
            break
        for i in range(i0, min(n, i0 + 4096), LANES):
            s = vload(acc, i)
            for p in range(1, parts):
                s = s + vload(acc, p * accsize + i)
            vstore(out, i, s)


@kernel
def k_pack(counter, tid, w, taps, C, K, flip, B):
    """Packed weights: rows (tap, c) x K, or rows (tap, k) x C when flip.  taps = indices into the R*S positions."""
    while True:
        t = atomic_next(counter, 0)
        if t >= taps.size:
            break
        wo = taps[t] * C * K
        if flip == 0:
            for c in range(C):
                for k in range(0, K, LANES):
                    vstore(
                        B, panel_offset(t * C + c, k, taps.size * C, K), vload(w, wo + c * K + k)
                    )
        else:
            for k in range(0, K, LANES):
                for c in range(0, C, LANES):
                    panel = NR if c // NR * NR + NR <= C else LANES
                    vtranspose(
                        w, wo + c * K + k, K, B, panel_offset(t * K + k, c, taps.size * K, C), panel
                    )


def taps_forward(R, S, pad):
    return (np.repeat(np.arange(R) - pad, S), np.tile(np.arange(S) - pad, R))


def pack(w, taps=None, flip=False, out=None):
    R, S, C, K = w.shape
    taps = np.arange(R * S) if taps is None else taps
    B = np.empty(taps.size * C * K, np.float32) if out is None else out
    run(k_pack, w.reshape(-1), taps, C, K, int(flip), B)
    return B


def _call(x, C, L, ty, tx, stride, B, K, y, GH, GW, ostride, oa, ob, bias, res, relu):
    N, H, Wd = x.shape[:3]
    OH, OW = y.shape[1:3]
    D = ty.size * L
    pitch = -(-D // 16) * 16 + 16
    T = 64 if D <= 1024 else 48
    size = -(-(T * (pitch + K + 16) + 64) // 1024) * 1024
    work = scratch("direct", pool().n * size)
    run(
        k_conv,
        x.reshape(-1),
        N,
        H,
        Wd,
        C,
        L,
        ty,
        tx,
        stride,
        B,
        K,
        y.reshape(-1),
        OH,
        OW,
        GH,
        GW,
        ostride,
        oa,
        ob,
        scratch("zero", 8192) if bias is None else bias,
        (y if res is None else res).reshape(-1),
        int(res is not None),
        np.float32(0 if relu else -np.inf),
        T,
        pitch,
        work,
        size,
    )


@kernel
def k_prepad(counter, tid, x, N, H, row, pad, edge, buf):
    Hp, rowp = H + 2 * pad, row + 2 * edge
    while True:
        it = atomic_next(counter, 0)
        if it >= N * Hp:
            break
        n, h = divmod(it, Hp)
        o = it * rowp
        # three plain loops: slice assignments would read better, but Numba takes 2.3 s to compile them
        for i in range(edge):
            buf[o + i] = np.float32(0)
            buf[o + rowp - 1 - i] = np.float32(0)
        if pad <= h < pad + H:
            s = (n * H + h - pad) * row
            tail = row - row % LANES
            for i in range(0, tail, LANES):
                vstore(buf, o + edge + i, vload(x, s + i))
            for i in range(tail, row):
                buf[o + edge + i] = x[s + i]
        else:
            for i in range(row):
                buf[o + edge + i] = np.float32(0)


def prepad(x, pad):
    """Zero border for inputs whose channels do not fill registers (the RGB stem): a window row is then one run."""
    N, H, Wd, C = x.shape
    Hp, Wp = H + 2 * pad, Wd + 2 * pad
    buf = scratch("prepad%d" % C, N * Hp * Wp * C + 64 + 2 * C * MR)
    run(k_prepad, x.reshape(-1), N, H, Wd * C, pad, pad * C, buf)
    return buf[: N * Hp * Wp * C].reshape(N, Hp, Wp, C)


def forward(x, B, R, S, stride, pad, y, bias=None, res=None, relu=False):
    C, K = x.shape[3], y.shape[3]
    if C % LANES:
        x = prepad(x, pad)
        N, OH, OW, _ = y.shape
        if res is None and OW % 2 == 0 and OW >= 2 * MR:
            run(
                k_rows,
                x.reshape(-1),
                x.shape[1],
                x.shape[2],
                C,
                R,
                S,
                stride,
                B,
                K,
                y.reshape(-1),
                N,
                OH,
                OW,
                scratch("zero", 8192) if bias is None else bias,
                np.float32(0 if relu else -np.inf),
            )
            return y
        ty, tx = np.arange(R), np.zeros(R, np.int64)
        L = S * C
    else:
        (ty, tx), L = taps_forward(R, S, pad), C
    _call(x, C, L, ty, tx, stride, B, K, y, y.shape[1], y.shape[2], 1, 0, 0, bias, res, relu)
    return y


@functools.lru_cache(maxsize=256)
def phases(R, S, stride, pad):
    """For each output phase (a, b) of the input gradient: the taps of w it uses and their offsets in dy."""
    out = []
    for a in range(stride):
        for b in range(stride):
            taps = [
                (r, s)
                for r in range(R)
                for s in range(S)
                if (a + pad - r) % stride == 0 and (b + pad - s) % stride == 0
            ]
            out.append(
                (
                    a,
                    b,
                    np.array([r * S + s for r, s in taps], np.int64),
                    np.array([(a + pad - r) // stride for r, s in taps], np.int64),
                    np.array([(b + pad - s) // stride for r, s in taps], np.int64),
                )
            )
    return out


def pack_input_gradient(w, stride, pad, name="pack_dx"):
    """Packed weights of every phase, in reused buffers: valid until the next call with the same name."""
    R, S, C, K = w.shape
    return [
        pack(w, p[2], True, scratch((name, i), p[2].size * C * K)) if p[2].size else None
        for i, p in enumerate(phases(R, S, stride, pad))
    ]


def input_gradient(dy, packed, R, S, stride, pad, dx, res=None):
    N, H, Wd, C = dx.shape
    K = dy.shape[3]
    if any(B is None for B in packed):
        if res is None:
            dx[...] = 0
        elif res is not dx:
            np.copyto(dx, res)
    for (a, b, taps, ty, tx), B in zip(phases(R, S, stride, pad), packed):
        if B is not None and H > a and Wd > b:
            _call(
                dy,
                K,
                K,
                ty,
                tx,
                1,
                B,
                C,
                dx,
                -(-(H - a) // stride),
                -(-(Wd - b) // stride),
                stride,
                a,
                b,
                None,
                res,
                False,
            )
    return dx


def weight_gradient(x, dy, R, S, stride, pad, dw):
    C, K = x.shape[3], dy.shape[3]
    OH, OW = dy.shape[1:3]
    if C % LANES:
        x = prepad(x, pad)
        N, L = x.shape[0], S * C
        rows = -(-L // MR) * MR
        if rows - L < 16 and OW >= 2 * MR:
            parts = max(1, min(16, N * OH // 16))
            acc = scratch("dw_acc", parts * R * rows * K)
            run(
                k_rows_dw,
                x.reshape(-1),
                x.shape[1],
                x.shape[2],
                C,
                R,
                S,
                stride,
                dy.reshape(-1),
                N,
                OH,
                OW,
                K,
                parts,
                rows,
                acc,
                scratch("direct_dw", pool().n * OW * K),
            )
            total = scratch("dw_rows", R * rows * K)
            run(k_sum_parts, acc, parts, R * rows * K, R * rows * K, total)
            dw.reshape(R, L, K)[...] = total[: R * rows * K].reshape(R, rows, K)[:, :L]
            return dw
        ty, tx = np.arange(R), np.zeros(R, np.int64)
        L = S * C
    else:
        (ty, tx), L = taps_forward(R, S, pad), C
    N, H, Wd = x.shape[:3]
    D = ty.size * L
    total = N * OH * OW
    if D * K <= 100_000 or L % LANES:
        parts, TC, CL = max(1, min(8, total // 256)), ty.size, L
    else:
        parts, TC, CL = max(1, min(2, total // 256)), 1, min(L, 128)
    T = 128
    pitch = -(-(TC * CL) // 16) * 16 + 16
    accsize = -(-D // 2) * 2 * K
    direct_out = parts == 1 and accsize == D * K
    acc = dw.reshape(-1) if direct_out else scratch("dw_acc", parts * accsize)
    size = -(-(T * (pitch + K) + 64) // 1024) * 1024
    work = scratch("direct_dw", pool().n * size)
    run(
        k_dw,
        x.reshape(-1),
        N,
        H,
        Wd,
        C,
        L,
        ty,
        tx,
        stride,
        dy.reshape(-1),
        OH,
        OW,
        K,
        parts,
        TC,
        CL,
        acc,
        accsize,
        T,
        pitch,
        work,
        size,
    )
    if not direct_out:
        run(k_sum_parts, acc, parts, accsize, D * K, dw.reshape(-1))
    return dw
