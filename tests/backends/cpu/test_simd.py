"""Vector functions and the two generators against NumPy."""

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from numba.core.errors import TypingError

from tinyft.backends.cpu import CpuBackend
from tinyft.backends.cpu.codegen.cache import kernel
from tinyft.backends.cpu.codegen.generators import make_register_block, make_two_sided_transform
from tinyft.backends.cpu.codegen.simd import (
    BLOCK_REGISTERS,
    BLOCK_ROWS,
    LANES,
    REST_ROWS,
    blocking,
    flush_denormals,
    has,
    is_arm64,
    is_x86,
)
from tinyft.backends.cpu.codegen.vectors import (
    atomic_announce,
    atomic_load,
    atomic_next,
    finish_streams,
    prefetch,
    vfma,
    vkeep_positive,
    vload,
    vmax,
    vpick_byte,
    vpick_equal,
    vpick_larger,
    vput,
    vset1,
    vstore,
    vstore_bytes,
    vtranspose,
)
from tinyft.backends.cpu.runtime import threads
from tinyft.backends.cpu.runtime.work_stealing import whole_share
from tinyft.backends.cpu.runtime.workspace import aligned_empty

NAN = np.nan
SPECIAL = np.array([NAN, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.5, 3.0e38], np.float32)
LEFT, RIGHT = (np.tile(side, 2)[: 4 * LANES] for side in np.meshgrid(SPECIAL, SPECIAL))
LEFT, RIGHT = (np.resize(side, 8 * LANES).copy() for side in (LEFT, RIGHT))


@kernel
def maxima(x, y, out):
    for i in range(0, x.size, LANES):
        vstore(out, i, vmax(vload(x, i), vload(y, i)))


@kernel
def kept(x, y, out):
    for i in range(0, x.size, LANES):
        vstore(out, i, vkeep_positive(vload(x, i), vload(y, i)))


@kernel
def larger(x, y, out):
    for i in range(0, x.size, LANES):
        a, b = vload(x, i), vload(y, i)
        vstore(out, i, vpick_larger(a, b, vset1(np.float32(1)), vset1(np.float32(0))))


@kernel
def equal(x, y, out):
    for i in range(0, x.size, LANES):
        a, b = vload(x, i), vload(y, i)
        vstore(out, i, vpick_equal(a, b, vset1(np.float32(1)), vset1(np.float32(0))))


@pytest.mark.parametrize(
    "compute, define",
    [
        (maxima, np.maximum),
        (kept, lambda x, y: np.where(x <= 0, np.float32(0), y)),
        (larger, lambda x, y: ((x > y) | (np.isnan(x) & ~np.isnan(y))).astype(np.float32)),
        (equal, lambda x, y: (x == y).astype(np.float32)),
    ],
)
def test_lane_by_lane(compute, define):
    out = np.empty_like(LEFT)
    compute(LEFT, RIGHT, out)
    np.testing.assert_array_equal(out, define(LEFT, RIGHT))


@kernel
def arithmetic(x, y, out):
    for i in range(0, x.size, LANES):
        a, b = vload(x, i), vload(y, i)
        prefetch(x, 10**9)  # beyond the end: harmless
        vstore(out, i, vfma(a, b, vset1(np.float32(2))) - a * b + a)


def test_arithmetic():
    x, y = np.random.default_rng(0).standard_normal((2, 4 * LANES)).astype(np.float32)
    out = np.empty_like(x)
    arithmetic(x, y, out)
    np.testing.assert_allclose(out, 2 + x, atol=1e-5)


@kernel
def where_byte(source, number, out):
    for i in range(0, source.size, LANES):
        one, zero = vset1(np.float32(1)), vset1(np.float32(0))
        vstore(out, i, vpick_byte(source, i, number, one, zero))


@pytest.mark.parametrize("number", [0, 3, 127, 128, 255])
def test_a_byte_is_found(number):
    source = np.arange(256, dtype=np.uint8)
    out = np.zeros(256, np.float32)
    where_byte(source, number, out)
    np.testing.assert_array_equal(out, source == number)


@kernel
def as_bytes(x, out):
    for i in range(0, x.size, LANES):
        vstore_bytes(out, i, vload(x, i))


def test_bytes_are_stored():
    out = np.zeros(256, np.uint8)
    as_bytes(np.arange(256, dtype=np.float32), out)
    np.testing.assert_array_equal(out, np.arange(256))


@kernel
def put(x, out, large):
    for i in range(0, x.size, LANES):
        vput(out, i, vload(x, i), large)
    finish_streams()


@pytest.mark.parametrize("large", [False, True])
def test_what_is_stored_past_the_caches_arrives(large):
    x = aligned_empty(4 * LANES)
    x[:] = np.arange(4 * LANES)
    out = aligned_empty(4 * LANES)
    out.fill(0)
    put(x, out, large)
    np.testing.assert_array_equal(out, x)


@kernel
def count(counter):
    first = atomic_next(counter, 0)
    atomic_announce(counter, 0)
    return first, atomic_load(counter, 0)


def test_atomics():
    counter = np.array([5], np.int64)
    assert count(counter) == (5, 7)
    assert counter[0] == 7


@kernel
def transpose(source, out):
    vtranspose(source, 3, LANES + 5, out, 1, LANES + 2)


def test_transpose_of_a_square_with_pitches():
    source = np.arange(3 + LANES * (LANES + 5), dtype=np.float32)
    out = np.zeros(1 + LANES * (LANES + 2), np.float32)
    transpose(source, out)
    rows = source[3:].reshape(LANES, LANES + 5)[:, :LANES]
    np.testing.assert_array_equal(out[1:].reshape(LANES, LANES + 2)[:, :LANES], rows.T)


def test_an_address_needs_a_contiguous_array():
    with pytest.raises(TypingError):
        maxima(LEFT[::2], RIGHT[::2], np.empty_like(LEFT))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [BLOCK_ROWS, REST_ROWS, 1])
@pytest.mark.parametrize("registers", [BLOCK_REGISTERS, 1])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("unroll", [1, 4])
def test_register_block(rows, registers, ahead, unroll):
    block = make_register_block(rows, registers, ahead=ahead, unroll=unroll)

    @kernel
    def plain(a, a_row, a_step, b, c, steps, accumulate):
        block(a, 0, a_row, a_step, b, 0, c, 0, registers * LANES, steps, accumulate)

    @kernel
    def fetching(a, a_row, a_step, b, c, steps, accumulate):  # from where nothing may be read
        distances = 1 << 44, 1 << 30, -(1 << 44), 1 << 30
        block(a, 0, a_row, a_step, b, 0, c, 0, registers * LANES, steps, accumulate, *distances)

    product = fetching if ahead else plain

    rng = np.random.default_rng(0)
    for steps in (1, 2, 8, 17):
        a = rng.integers(-4, 5, (rows, steps)).astype(np.float32)  # whole numbers: no rounding
        b = rng.integers(-4, 5, (steps, registers * LANES)).astype(np.float32)
        c = np.full((rows, registers * LANES), NAN, np.float32)
        product(a, steps, 1, b, c, steps, 0)
        np.testing.assert_array_equal(c, a @ b)
        product(np.ascontiguousarray(a.T), 1, rows, b, c, steps, 1)  # transposed, and added
        np.testing.assert_array_equal(c, 2 * (a @ b))


MATRIX = np.array([[1, 0, 2, 0.5], [-1, 0, 2, -0.5], [0, 1, 0, -1]])  # rows 0 and 1 share halves


@kernel
def transform_plain(x, y):
    plain(0, x, 0, 4 * LANES, LANES, y, 0, 3 * LANES, LANES)


@kernel
def transform_epilogue(x, y, bias, residual, low):
    with_epilogue(
        0, x, 0, 4 * LANES, LANES, y, 0, 3 * LANES, LANES,
        bias, 0, residual, 0, 3 * LANES, LANES, low,
    )  # fmt: skip


plain = make_two_sided_transform((MATRIX, MATRIX))
with_epilogue = make_two_sided_transform((MATRIX, MATRIX), epilogue=True)


def test_two_sided_transform():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 4, LANES)).astype(np.float32)
    bias = rng.standard_normal(LANES).astype(np.float32)
    residual = rng.standard_normal((3, 3, LANES)).astype(np.float32)
    y = np.empty_like(residual)
    expected = np.einsum("ij,jkc,lk->ilc", MATRIX, x, MATRIX)
    transform_plain(x, y)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    transform_epilogue(x, y, bias, residual, np.float32(0.25))
    expected = np.maximum(expected + bias + residual, 0.25)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    x[0, 0, 1] = NAN
    transform_epilogue(x, y, bias, residual, np.float32(0.25))
    assert np.isnan(y[0, 0, 1])  # although max(NaN, 0.25) could be either
    assert np.isfinite(y[:, :, 2]).all()


SHORT = np.array([[0.5, 1, 0, 0], [0, 1, -2, 0]])  # fewer rows, and a column that is not read


def test_in_loops_a_row_of_zeros_is_written():
    left = np.array([[0, 0, 0, 0], [1, 2, 0, 0.5]])
    transform = make_two_sided_transform((left, MATRIX), loops=True)

    @kernel
    def compute(x, y):
        transform(0, x, 0, 4 * LANES, LANES, y, 0, 3 * LANES, LANES)

    x = np.random.default_rng(0).standard_normal((4, 4, LANES)).astype(np.float32)
    y = np.full((2, 3, LANES), np.nan, np.float32)
    compute(x, y)
    np.testing.assert_allclose(
        y, np.einsum("ij,jkc,lk->ilc", left, x, MATRIX), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("epilogue", [False, True])
def test_two_sided_transform_of_several_pairs(loops, epilogue):
    """Written out and in loops, with lines of different lengths."""
    pairs = (SHORT, MATRIX), (MATRIX, MATRIX), (MATRIX, SHORT), (SHORT, SHORT)
    transform = make_two_sided_transform(*pairs, epilogue=epilogue, loops=loops)
    rows, columns = 4 * LANES, 3 * LANES

    @kernel
    def without(number, x, y, bias, residual):
        transform(number, x, 0, rows, LANES, y, 0, columns, LANES)

    @kernel
    def with_one(number, x, y, bias, residual):
        low = np.float32(-0.5)
        transform(
            number, x, 0, rows, LANES, y, 0, columns, LANES,
            bias, 0, residual, 0, columns, LANES, low,
        )  # fmt: skip

    rng = np.random.default_rng(0)
    x, residual = (rng.standard_normal((n, n, LANES)).astype(np.float32) for n in (4, 3))
    bias = rng.standard_normal(LANES).astype(np.float32)
    for number, (left, right) in enumerate(pairs):
        y = np.full((3, 3, LANES), 7, np.float32)
        (with_one if epilogue else without)(number, x, y, bias, residual)
        expected = np.einsum("ij,jkc,lk->ilc", left, x, right)
        written = y[: len(left), : len(right)]
        if epilogue:
            added = residual[: len(left), : len(right)]
            expected = np.maximum(expected + bias + added, -0.5)
        np.testing.assert_allclose(written, expected, rtol=1e-5, atol=1e-5)
        written[...] = 7
        assert (y == 7).all()  # and nothing else


def test_a_64_bit_arm_has_neon_where_llvm_calls_it_generic(monkeypatch):
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", dict)
    monkeypatch.setattr("numba.config.CPU_NAME", None)
    monkeypatch.setattr("numba.config.CPU_FEATURES", None)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert has("neon") and blocking() == (4, 12, 2, 4)
    monkeypatch.setattr("numba.config.CPU_FEATURES", "-neon")
    assert not has("neon")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("numba.config.CPU_FEATURES", None)
    assert not has("neon") and blocking() == (4, 6, 2, 4)


@pytest.mark.parametrize("name, lanes", [("haswell", 8), ("znver3", 8), ("skylake-avx512", 16)])
def test_a_named_cpu_gets_the_registers_that_it_has(monkeypatch, name, lanes):
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_name", lambda: "another")
    monkeypatch.setattr("numba.config.CPU_NAME", name)
    monkeypatch.setattr("numba.config.CPU_FEATURES", None)
    assert blocking().lanes == lanes


# --------------------------------------------------------------------------------------- denormals

TINY = np.full(300_000, 1e-40, np.float32)


@kernel
def double_or_fail(share, x, out):
    for i in range(x.size):
        out[i] = x[i] + x[i]
    if x[0] > 1 or share[0] < 0:
        raise ValueError("too large")


def numpy_keeps_denormals():
    return (TINY[:1000] + TINY[:1000] > 0).all()


@pytest.mark.skipif(not (is_x86() or is_arm64()), reason="denormals are computed with here")
def test_kernels_count_denormals_as_zero_and_numpy_does_not():
    """In the calling thread and in those of the pool, also after a kernel that raised."""
    before = threads.get_num_threads()
    try:
        for count in 1, 2, 3:
            threads.set_num_threads(count)
            assert (CpuBackend().add(TINY, TINY) == 0).all()
            kept = []
            threads.run(lambda share, kept=kept: kept.append(numpy_keeps_denormals()))
            assert kept == [True] * count
    finally:
        threads.set_num_threads(before)
    out = np.ones(4, np.float32)
    double_or_fail(whole_share(), TINY[:4], out)
    assert (out == 0).all()
    with pytest.raises(ValueError, match="too large"):
        double_or_fail(whole_share(), np.full(4, 2, np.float32), out)
    assert numpy_keeps_denormals()


@pytest.mark.parametrize(
    "triple, setting",
    [("x86_64-unknown-linux-gnu", "ldmxcsr"), ("aarch64-unknown-linux-gnu", "msr\tFPCR")],
)
def test_a_function_that_flushes_denormals_puts_back_what_was_set(triple, setting):
    """On every way out of it: once at the beginning, and once for each of two returns."""
    module = ir.Module()
    module.triple = triple
    number = ir.FloatType()
    function = ir.Function(module, ir.FunctionType(number, [number, number]), "larger")
    builder = ir.IRBuilder(function.append_basic_block())
    x, y = function.args
    with builder.if_then(builder.fcmp_ordered(">", x, y)):
        builder.ret(builder.fadd(x, x))
    builder.ret(y)
    flush_denormals(function, triple)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        machine = llvm.Target.from_triple(triple).create_target_machine(opt=0)
    except RuntimeError:
        pytest.skip(f"this LLVM compiles nothing for {triple}")
    assembly = machine.emit_assembly(llvm.parse_assembly(str(module)))
    lines = [line for line in assembly.splitlines() if setting in line]
    assert len(lines) == 3, assembly
