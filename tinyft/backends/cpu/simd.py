"""SIMD vectors for Numba, written in pure Python.

Numba compiles Python functions through LLVM.  Its own auto-vectoriser turns simple loops into vector
code, but it never keeps a *block* of results in registers, which is what a fast matrix product needs.
This module therefore teaches Numba three things:

1. a new value type ``Vec`` -- one CPU register of LANES float32 numbers (16 with AVX-512, 8 with AVX2, else 4);
2. a few functions on it (``vload``, ``vstore``, ``vset1``, ``vfma``, ``vmax`` ...) and the operators + - *;
3. *generators* that emit longer straight-line LLVM code from Python loops:
   ``make_microkernel``  -- the inner loop of a matrix product with an MR x NV block of registers,
   ``make_transform2d``  -- Y = T X T' for a small constant matrix T (all Winograd transforms).

How it works.  ``@intrinsic`` marks a function whose body is not compiled by Numba; it returns a type
signature and a ``codegen`` function instead.  ``codegen`` receives an ``llvmlite.ir.IRBuilder`` and the
LLVM values of the arguments, and appends instructions.  A Python ``for`` loop inside ``codegen`` runs at
compile time, so it *unrolls*: each turn emits its instructions once more.  LLVM then picks registers,
fuses multiply+add into FMA instructions, and schedules them.
"""

import operator

import numpy as np
import llvmlite.binding as llvm
from llvmlite import ir
from numba import types, config, njit
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

# ----------------------------------------------------------------------------------------------
# Which registers does this CPU have?
# ----------------------------------------------------------------------------------------------


def _has(feature):
    """True if code may use `feature`; honours NUMBA_CPU_FEATURES and NUMBA_CPU_NAME like Numba does."""
    if config.CPU_FEATURES is not None:
        return ("+" + feature) in config.CPU_FEATURES.split(",")
    if config.CPU_NAME not in (None, "", llvm.get_host_cpu_name()):
        return config.CPU_NAME in {
            "avx512f": ("skylake-avx512", "znver4", "icelake-server"),
            "avx2": ("haswell", "skylake", "znver3", "znver2"),
        }.get(feature, ())
    try:
        return llvm.get_host_cpu_features().get(feature, False)
    except RuntimeError:
        return False


if _has("avx512f"):
    LANES, MR, NV = 16, 8, 2  # 32 registers of 16 floats
elif _has("avx2"):
    LANES, MR, NV = 8, 6, 2  # 16 registers of 8 floats: 12 accumulators + 2 + 1
else:
    LANES, MR, NV = 4, 8, 2  # NEON has 32 registers of 4 floats; SSE gets by with spills
NR = NV * LANES  # width of a packed column panel

# Two flavours of compiled function.  nogil: other threads run meanwhile.  error_model numpy: no test for division by
# zero before every // and %.  A helper is only called by kernels, so it needs no entry point for Python.
kernel = njit(nogil=True, cache=True, error_model="numpy")
helper = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True)

F32 = ir.FloatType()
I64 = ir.IntType(64)
VEC = ir.VectorType(F32, LANES)
FAST = ("contract",)  # the one licence we give LLVM: a*b+c may become one fused instruction


class VecType(types.Type):
    def __init__(self):
        super().__init__(name=f"f32x{LANES}")


vec = VecType()


@register_model(VecType)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, VEC)


def _binary(op, emit):
    """Give the Python operator `op` a meaning for two Vec values."""

    @infer_global(op)
    class _Typing(ConcreteTemplate):
        cases = [signature(vec, vec, vec)]

    @lower_builtin(op, vec, vec)
    def _lower(context, builder, sig, args):
        return emit(builder, *args)


_binary(operator.add, lambda b, x, y: b.fadd(x, y, flags=FAST))
_binary(operator.sub, lambda b, x, y: b.fsub(x, y, flags=FAST))
_binary(operator.mul, lambda b, x, y: b.fmul(x, y, flags=FAST))


def _address(context, builder, array_type, array, offset):
    """LLVM pointer to element `offset` of a flat array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset])


def _vload_ptr(builder, ptr, count=LANES):
    v = builder.load(builder.bitcast(ptr, ir.VectorType(F32, count).as_pointer()))
    v.align = 4  # only float alignment is promised
    return v


def _vstore_ptr(builder, value, ptr):
    s = builder.store(value, builder.bitcast(ptr, value.type.as_pointer()))
    s.align = 4


def _splat(builder, scalar, count=LANES):
    """A vector with `scalar` in every lane."""
    vt = ir.VectorType(F32, count)
    v = builder.insert_element(
        ir.Constant(vt, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0)
    )
    mask = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
    return builder.shuffle_vector(v, v, mask)


def _const(x):
    return ir.Constant(VEC, [float(np.float32(x))] * LANES)


@intrinsic
def vload(typingctx, a, i):
    """LANES consecutive floats a[i : i+LANES]"""

    def codegen(context, builder, sig, args):
        return _vload_ptr(builder, _address(context, builder, sig.args[0], args[0], args[1]))

    return vec(a, types.int64), codegen


@intrinsic
def vstore(typingctx, a, i, v):
    def codegen(context, builder, sig, args):
        _vstore_ptr(builder, args[2], _address(context, builder, sig.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.void(a, types.int64, vec), codegen


@intrinsic
def vset1(typingctx, x):
    def codegen(context, builder, sig, args):
        return _splat(builder, args[0])

    return vec(types.float32), codegen


@intrinsic
def vmax(typingctx, x, y):
    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[0], args[1])

    return vec(vec, vec), codegen


@intrinsic
def vkeep_positive(typingctx, cond, x):
    """lane by lane: x where cond > 0, else 0 (the gradient of ReLU)"""

    def codegen(context, builder, sig, args):
        zero = _const(0.0)
        return builder.select(builder.fcmp_ordered(">", args[0], zero), args[1], zero)

    return vec(vec, vec), codegen


def _fma(builder, a, b, c):
    name = f"llvm.fma.v{a.type.count}f32"
    fn = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(fn, [a, b, c])


@intrinsic
def vfma(typingctx, a, b, c):
    """a*b + c with one rounding"""

    def codegen(context, builder, sig, args):
        return _fma(builder, *args)

    return vec(vec, vec, vec), codegen


_BYTES = ir.VectorType(ir.IntType(8), LANES)


@intrinsic
def vstore_bytes(typingctx, a, i, v):
    """store the LANES whole numbers 0..255 held in v as bytes a[i : i+LANES]"""

    def codegen(context, builder, sig, args):
        b = builder.trunc(builder.fptosi(args[2], ir.VectorType(ir.IntType(32), LANES)), _BYTES)
        ptr = _address(context, builder, sig.args[0], args[0], args[1])
        builder.store(b, builder.bitcast(ptr, _BYTES.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(a, types.int64, vec), codegen


@intrinsic
def vload_bytes(typingctx, a, i):
    def codegen(context, builder, sig, args):
        ptr = _address(context, builder, sig.args[0], args[0], args[1])
        b = builder.load(builder.bitcast(ptr, _BYTES.as_pointer()))
        b.align = 1
        return builder.sitofp(builder.zext(b, ir.VectorType(ir.IntType(32), LANES)), VEC)

    return vec(a, types.int64), codegen


@intrinsic
def vpick(typingctx, a, b, x, y):
    """lane by lane: x where a > b, else y"""

    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[2], args[3])

    return vec(vec, vec, vec, vec), codegen


@intrinsic
def vpick_equal(typingctx, a, b, x, y):
    """lane by lane: x where a == b, else y"""

    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered("==", args[0], args[1]), args[2], args[3])

    return vec(vec, vec, vec, vec), codegen


@intrinsic
def prefetch(typingctx, a, i):
    """ask for the cache line of a[i]; never faults, even out of bounds"""

    def codegen(context, builder, sig, args):
        ptr = builder.bitcast(
            _address(context, builder, sig.args[0], args[0], args[1]), ir.IntType(8).as_pointer()
        )
        i32 = ir.IntType(32)
        fn = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [ptr.type, i32, i32, i32]),
            "llvm.prefetch.p0i8" if not ptr.type.is_opaque else "llvm.prefetch.p0",
        )
        builder.call(fn, [ptr, i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(a, types.int64), codegen


@intrinsic
def atomic_next(typingctx, a, i):
    """old = a[i]; a[i] += 1; return old -- safe when several threads do it at once"""

    def codegen(context, builder, sig, args):
        ptr = _address(context, builder, sig.args[0], args[0], args[1])
        return builder.atomic_rmw("add", ptr, ir.Constant(I64, 1), "monotonic")

    return types.int64(a, types.int64), codegen


@intrinsic
def atomic_load(typingctx, a, i):
    """read a[i], really from memory and not earlier than the code says"""

    def codegen(context, builder, sig, args):
        ptr = _address(context, builder, sig.args[0], args[0], args[1])
        return builder.load_atomic(ptr, "acquire", 8)

    return types.int64(a, types.int64), codegen


@intrinsic
def cpu_pause(typingctx):
    """tell the core that this is a waiting loop (x86; nothing elsewhere)"""

    def codegen(context, builder, sig, args):
        if context.codegen().target_data is not None and llvm.get_process_triple().startswith(
            "x86"
        ):
            fn = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"
            )
            builder.call(fn, [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def vtranspose(typingctx, src, so, srow, dst, do, drow):
    """dst[j*drow + i] = src[i*srow + j] for a LANES x LANES block, by log2(LANES) rounds of shuffles."""

    def codegen(context, builder, sig, args):
        ts, _, _, td, _, _ = sig.args
        src, so, srow, dst, do, drow = args
        rows = [
            _vload_ptr(
                builder,
                _address(
                    context,
                    builder,
                    ts,
                    src,
                    builder.add(so, builder.mul(srow, ir.Constant(I64, i))),
                ),
            )
            for i in range(LANES)
        ]
        d = 1
        while d < LANES:  # exchange the off-diagonal d x d blocks of every 2d x 2d block
            lo = [j if not j & d else LANES + (j ^ d) for j in range(LANES)]
            hi = [(j | d) if not j & d else LANES + j for j in range(LANES)]
            mk = lambda m: ir.Constant(ir.VectorType(ir.IntType(32), LANES), m)
            new = list(rows)
            for i in range(LANES):
                if not i & d:
                    new[i] = builder.shuffle_vector(rows[i], rows[i | d], mk(lo))
                    new[i | d] = builder.shuffle_vector(rows[i], rows[i | d], mk(hi))
            rows = new
            d *= 2
        for j in range(LANES):
            _vstore_ptr(
                builder,
                rows[j],
                _address(
                    context,
                    builder,
                    td,
                    dst,
                    builder.add(do, builder.mul(drow, ir.Constant(I64, j))),
                ),
            )
        return context.get_dummy_value()

    i = types.int64
    return types.void(src, i, i, dst, i, i), codegen


# ----------------------------------------------------------------------------------------------
# Matrix product: an MR x (NV*LANES) block of C stays in registers while k runs
# ----------------------------------------------------------------------------------------------


def make_microkernel(MR, NV):
    """C[MR, NV*LANES] (+)= A[MR, K] @ B[K, NV*LANES].

    A element (i, k) is at ao + i*ars + k*aks: any two strides, so A may also be a transposed matrix.
    B is packed: row k is the NV*LANES consecutive floats at bo + k*NV*LANES.  C row i is at co + i*crs.
    acc != 0 adds to C, acc == 0 overwrites it.  K >= 1.
    """

    @intrinsic
    def micro(typingctx, A, ao, ars, aks, B, bo, C, co, crs, K, acc):
        def codegen(context, builder, sig, args):
            tA, tB, tC = sig.args[0], sig.args[4], sig.args[6]
            A, ao, ars, aks, B, bo, C, co, crs, K, acc = args
            pa0 = _address(context, builder, tA, A, ao)
            pb0 = _address(context, builder, tB, B, bo)
            pc0 = _address(context, builder, tC, C, co)
            one, zero = ir.Constant(I64, 1), ir.Constant(I64, 0)
            aoff = [builder.mul(ars, ir.Constant(I64, i)) for i in range(MR)]
            cptr = [
                [
                    builder.gep(
                        pc0,
                        [
                            builder.add(
                                builder.mul(crs, ir.Constant(I64, i)), ir.Constant(I64, j * LANES)
                            )
                        ],
                    )
                    for j in range(NV)
                ]
                for i in range(MR)
            ]
            b_zero = builder.append_basic_block("start_zero")
            b_load = builder.append_basic_block("start_load")
            b_loop = builder.append_basic_block("k_loop")
            b_done = builder.append_basic_block("done")
            builder.cbranch(builder.icmp_signed("==", acc, zero), b_zero, b_load)
            builder.position_at_end(b_zero)
            builder.branch(b_loop)
            builder.position_at_end(b_load)
            start = [[_vload_ptr(builder, p) for p in row] for row in cptr]
            builder.branch(b_loop)

            # A phi node is a variable of the loop: it takes one value on entry and another from the previous turn.
            builder.position_at_end(b_loop)
            k, pa, pb = builder.phi(I64), builder.phi(pa0.type), builder.phi(pb0.type)
            cc = [[builder.phi(VEC) for _ in range(NV)] for _ in range(MR)]
            bs = [
                _vload_ptr(builder, builder.gep(pb, [ir.Constant(I64, j * LANES)]))
                for j in range(NV)
            ]
            new = []
            for i in range(MR):
                a = _splat(builder, builder.load(builder.gep(pa, [aoff[i]])))
                new.append([_fma(builder, a, bs[j], cc[i][j]) for j in range(NV)])
            k1 = builder.add(k, one)
            pa1 = builder.gep(pa, [aks])
            pb1 = builder.gep(pb, [ir.Constant(I64, NV * LANES)])
            for phi, first, later in ((k, zero, k1), (pa, pa0, pa1), (pb, pb0, pb1)):
                phi.add_incoming(first, b_zero)
                phi.add_incoming(first, b_load)
                phi.add_incoming(later, b_loop)
            for i in range(MR):
                for j in range(NV):
                    cc[i][j].add_incoming(_const(0.0), b_zero)
                    cc[i][j].add_incoming(start[i][j], b_load)
                    cc[i][j].add_incoming(new[i][j], b_loop)
            builder.cbranch(builder.icmp_signed("<", k1, K), b_loop, b_done)
            builder.position_at_end(b_done)
            for i in range(MR):
                for j in range(NV):
                    _vstore_ptr(builder, new[i][j], cptr[i][j])
            return context.get_dummy_value()

        i = types.int64
        return types.void(A, i, i, i, B, i, C, i, i, i, i), codegen

    return micro


# ----------------------------------------------------------------------------------------------
# Small constant matrices applied to both sides of a block of vectors
# ----------------------------------------------------------------------------------------------


def _combine(builder, coeffs, xs):
    """sum_i coeffs[i] * xs[i] with as few instructions as possible (None when all are zero)."""
    terms = [(float(c), x) for c, x in zip(coeffs, xs) if c != 0 and x is not None]
    if not terms:
        return None
    terms.sort(key=lambda t: (abs(t[0]) != 1, t[0] < 0))  # start from a +1 term if there is one
    c, x = terms[0]
    acc = x if c == 1 else builder.fmul(_const(c), x, flags=FAST)
    for c, x in terms[1:]:
        if c == 1:
            acc = builder.fadd(acc, x, flags=FAST)
        elif c == -1:
            acc = builder.fsub(acc, x, flags=FAST)
        else:
            acc = _fma(builder, _const(c), x, acc)
    return acc


def _apply_matrix(builder, T, xs):
    """[sum_j T[i][j]*xs[j] for i].  Rows that come in pairs p+q, p-q (points +a and -a) share p and q."""
    n = len(T)
    out = [None] * n
    done = set()
    for i in range(n):
        if i in done:
            continue
        partner = None
        for j in range(i + 1, n):
            even, odd = (T[i] + T[j]) / 2, (T[i] - T[j]) / 2
            if (
                j not in done
                and even.any()
                and odd.any()
                and not ((even != 0) & (odd != 0)).any()
                and ((even != 0).sum() + (odd != 0).sum()) >= 3
            ):
                partner = j
                break
        if partner is None:
            out[i] = _combine(builder, T[i], xs)
        else:
            p, q = _combine(builder, even, xs), _combine(builder, odd, xs)
            out[i] = builder.fadd(p, q, flags=FAST)
            out[partner] = builder.fsub(p, q, flags=FAST)
            done.add(partner)
    return out


def make_transform2d(T, epilogue=False):
    """Emit Y = T X T' where every element of X and Y is a Vec of LANES channels.

    X[i][j] is read at so + i*srow + j*scol and Y[i][j] written at do + i*drow + j*dcol.
    With epilogue, Y[i][j] = max(Y[i][j] + bias + R[i][j], low), R read at ro + i*rrow + j*rcol.
    """
    T = np.asarray(T, np.float64)
    m, n = T.shape

    def body(context, builder, sig, args):
        src, so, srow, scol, dst, do, drow, dcol = args[:8]
        ts, td = sig.args[0], sig.args[4]

        def grid(t, a, o, row, col, rows, cols):
            base = _address(context, builder, t, a, o)
            out = []
            for i in range(rows):
                r = builder.mul(row, ir.Constant(I64, i))
                out.append(
                    [
                        builder.gep(base, [builder.add(r, builder.mul(col, ir.Constant(I64, j)))])
                        for j in range(cols)
                    ]
                )
            return out

        sp = grid(ts, src, so, srow, scol, n, n)
        dp = grid(td, dst, do, drow, dcol, m, m)
        # columns first: Z = T X  (each column of X needs n loads), then rows: Y = Z T'
        Z = [None] * n
        for j in range(n):
            Z[j] = _apply_matrix(builder, T, [_vload_ptr(builder, sp[i][j]) for i in range(n)])
        if epilogue:
            bias, bo, res, ro, rrow, rcol, low = args[8:]
            bv = _vload_ptr(builder, _address(context, builder, sig.args[8], bias, bo))
            lv = _splat(builder, low)
            rp = grid(sig.args[10], res, ro, rrow, rcol, m, m)
        for i in range(m):
            Y = _apply_matrix(builder, T, [Z[j][i] for j in range(n)])
            for j in range(m):
                y = Y[j]
                if epilogue:
                    y = builder.fadd(y, bv, flags=FAST)
                    y = builder.fadd(y, _vload_ptr(builder, rp[i][j]), flags=FAST)
                    y = builder.select(builder.fcmp_ordered(">", y, lv), y, lv)
                _vstore_ptr(builder, y, dp[i][j])
        return context.get_dummy_value()

    i = types.int64
    if epilogue:

        @intrinsic
        def transform(
            typingctx, src, so, srow, scol, dst, do, drow, dcol, bias, bo, res, ro, rrow, rcol, low
        ):
            return types.void(
                src, i, i, i, dst, i, i, i, bias, i, res, i, i, i, types.float32
            ), body
    else:

        @intrinsic
        def transform(typingctx, src, so, srow, scol, dst, do, drow, dcol):
            return types.void(src, i, i, i, dst, i, i, i), body

    return transform
