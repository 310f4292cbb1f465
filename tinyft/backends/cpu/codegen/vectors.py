"""The instructions that kernels call: loads, stores and arithmetic on registers, atomic counters,
prefetches. How such a function is made: simd.py.
"""

from __future__ import annotations

import os

from llvmlite import ir
from numba import types

from tinyft.backends.cpu.codegen.cache import helper
from tinyft.backends.cpu.codegen.simd import (
    ADDRESS,
    FLOAT,
    INT,
    INT32,
    INT64,
    INTEGERS,
    LANES,
    REGISTER,
    VECTOR,
    instruction,
    is_x86,
    write_call,
    write_constant,
    write_fma,
    write_load,
    write_prefetch,
    write_spread,
    write_store,
)

_BYTES = ir.VectorType(ir.IntType(8), LANES)


@instruction(VECTOR, ADDRESS)
def vload(builder, pointer):
    """vload(a, i): the LANES floats a[i : i + LANES]"""
    return write_load(builder, pointer)


@instruction(types.void, ADDRESS, VECTOR)
def vstore(builder, pointer, x):
    """vstore(a, i, x): a[i : i + LANES] = x"""
    write_store(builder, x, pointer)


@instruction(types.void, ADDRESS, VECTOR)
def vstream(builder, pointer, x):
    """vstream(a, i, x): the same, but past the caches; a[i] lies at a multiple of a register's size

    A stored line is otherwise read first, and pushes another one out of the caches, for nothing if
    the array is larger than they are.
    """
    place = builder.bitcast(pointer, REGISTER.as_pointer())
    store = builder.store(x, place)
    store.align = 4 * LANES
    store.set_metadata("nontemporal", builder.module.add_metadata([INT32(1)]))


@instruction(types.void)
def finish_streams(builder):
    """finish_streams(): what was streamed becomes visible before anything that follows"""
    if is_x86():
        write_call(builder, "llvm.x86.sse.sfence", ir.VoidType())


@helper
def vput(a, i, x, large):
    """a[i : i + LANES] = x, past the caches if the array is `large`"""
    if large:
        vstream(a, i, x)
    else:
        vstore(a, i, x)


@instruction(VECTOR, FLOAT)
def vset1(builder, number):
    """vset1(number): the number in every lane"""
    return write_spread(builder, number)


@instruction(VECTOR, VECTOR, VECTOR, VECTOR)
def vfma(builder, x, y, z):
    """vfma(x, y, z): x * y + z, rounded once where the CPU can do so"""
    return write_fma(builder, x, y, z)


@instruction(VECTOR, VECTOR, VECTOR)
def vmax(builder, x, y):
    """vmax(x, y): the larger in each lane, NaN if either is NaN, as np.maximum"""
    larger = builder.select(builder.fcmp_ordered(">", x, y), x, y)  # y where y is NaN
    return builder.select(builder.fcmp_unordered("uno", x, x), x, larger)


@instruction(VECTOR, VECTOR, VECTOR)
def vkeep_positive(builder, x, y):
    """vkeep_positive(x, y): 0 where x <= 0, else y (the gradient of ReLU: NaN lets it pass)"""
    return builder.select(builder.fcmp_ordered("<=", x, write_constant(0)), write_constant(0), y)


@instruction(VECTOR, VECTOR, VECTOR, VECTOR, VECTOR)
def vpick_larger(builder, a, best, x, y):
    """vpick_larger(a, best, x, y): x where a > best or is the first NaN, else y"""
    larger = builder.fcmp_unordered(">", a, best)  # or either is NaN
    number = builder.fcmp_ordered("ord", best, best)
    return builder.select(builder.and_(larger, number), x, y)


@instruction(VECTOR, VECTOR, VECTOR, VECTOR, VECTOR)
def vpick_equal(builder, a, b, x, y):
    """vpick_equal(a, b, x, y): x where a == b, else y"""
    return builder.select(builder.fcmp_ordered("==", a, b), x, y)


@instruction(VECTOR, ADDRESS, INT, VECTOR, VECTOR)
def vpick_byte(builder, pointer, number, x, y):
    """vpick_byte(a, i, number, x, y): x where the bytes a[i : i + LANES] are `number`, else y"""
    bits = write_load(builder, pointer, _BYTES, align=1)
    wanted = write_spread(builder, builder.trunc(number, _BYTES.element), _BYTES)
    return builder.select(builder.icmp_unsigned("==", bits, wanted), x, y)


@instruction(types.void, ADDRESS, VECTOR)
def vstore_bytes(builder, pointer, x):
    """vstore_bytes(a, i, x): stores whole numbers 0 to 255 as bytes a[i : i + LANES]"""
    write_store(builder, builder.trunc(builder.fptosi(x, INTEGERS), _BYTES), pointer, align=1)


@instruction(INT, ADDRESS)
def atomic_next(builder, pointer):
    """atomic_next(a, i): returns a[i] and adds 1 to it, safe when threads compete"""
    return builder.atomic_rmw("add", pointer, INT64(1), "monotonic")


@instruction(INT, ADDRESS)
def atomic_load(builder, pointer):
    """atomic_load(a, i): a[i], really read from memory, and before all that follows"""
    return builder.load_atomic(pointer, "seq_cst", 8)


@instruction(INT, ADDRESS)
def atomic_announce(builder, pointer):
    """atomic_announce(a, i): adds 1 to a[i], visible after all that was stored before"""
    return builder.atomic_rmw("add", pointer, INT64(1), "seq_cst")


@instruction(types.void, ADDRESS)
def prefetch(builder, pointer):
    """prefetch(a, i): asks for the cache line of a[i]; harmless wherever that is"""
    write_prefetch(builder, pointer, level=1)


@instruction(types.void, ADDRESS)
def prefetch_to_write(builder, pointer):
    """prefetch_to_write(a, i): the same for a line that will be written"""
    write_prefetch(builder, pointer, level=1, to_write=True)


@instruction(INT, ADDRESS, ADDRESS)
def offset_between(builder, pointer, other):
    """offset_between(a, i, b, j): how far b[j] lies behind a[i], so that a[i + that] is b[j]: a
    kernel that reads from one of two arrays then chooses between indices.
    """
    here, there = (builder.ptrtoint(place, INT64) for place in (pointer, other))
    return builder.sdiv(builder.sub(there, here), INT64(4), flags=("exact",))


@instruction(types.void)
def cpu_pause(builder):
    """cpu_pause(): tells an x86 core that this is a waiting loop"""
    if is_x86():
        write_call(builder, "llvm.x86.sse2.pause", ir.VoidType())


@instruction(types.void)
def give_way(builder):
    """give_way(): let another thread have this core, if one wants it; nothing on Windows"""
    if os.name == "posix":
        write_call(builder, "sched_yield", ir.IntType(32))


@instruction(types.void, ADDRESS, INT, ADDRESS, INT)
def vtranspose(builder, source, source_row, target, target_row):
    """vtranspose(a, i, row, b, j, to_row): b[j + c * to_row + r] = a[i + r * row + c] for a square
    of LANES x LANES. In log2(LANES) rounds, the off-diagonal quarters of ever larger squares change
    places.
    """

    def row(pointer, pitch, index):
        return builder.gep(pointer, [builder.mul(pitch, INT64(index))])

    rows = [write_load(builder, row(source, source_row, i)) for i in range(LANES)]
    half = 1
    while half < LANES:
        low = [LANES + (i ^ half) if i & half else i for i in range(LANES)]
        high = [LANES + i if i & half else i | half for i in range(LANES)]
        for i in range(LANES):
            if not i & half:
                pair = rows[i], rows[i | half]
                rows[i] = builder.shuffle_vector(*pair, ir.Constant(INTEGERS, low))
                rows[i | half] = builder.shuffle_vector(*pair, ir.Constant(INTEGERS, high))
        half *= 2
    for i in range(LANES):
        write_store(builder, rows[i], row(target, target_row, i))
