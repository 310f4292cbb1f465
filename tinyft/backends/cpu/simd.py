"""Vector registers for Numba, and how to write LLVM code from Python.

**The problem.** A matrix product does one multiplication and one addition per pair of numbers. A
core of today does 32 of these pairs per cycle, but loads only two registers per cycle from its
cache. So a loop that loads, multiplies, adds and stores waits for memory nearly all the time. The
remedy is *register blocking*: keep a block of the result, say 12 rows of 32 columns, in 24
registers while k runs. For each k, load 2 registers of B and 12 single numbers of A, and use each
of them many times: 24 multiply-adds for 14 loads.

    registers:     sum[0][0]  sum[0][1]         for each k:
                   sum[1][0]  sum[1][1]             b0, b1 = B[k, 0:16], B[k, 16:32]
                   ...                              for i in 0..11:   (written out, not a loop)
                   sum[11][0] sum[11][1]                sum[i][0] += A[i, k] * b0
                                                        sum[i][1] += A[i, k] * b1

**Why Numba cannot do it by itself.** Numba turns Python into LLVM's intermediate language, and LLVM
into machine code. LLVM vectorises simple loops, but it does not keep an array of 24 vectors in
registers over a loop: an array lives in memory. Registers need separate names, 24 variables that
each hold a vector, and Python code has neither vectors nor a way to write 24 variables in a loop.

**What LLVM code is.** A list of instructions on values that have a type and are assigned once:
`%sum = fadd <16 x float> %x, %y` adds two vectors of 16 floats. The instructions stand in *blocks*
that end in a jump. A value that changes from turn to turn of a loop is a *phi*: it takes one value
when the block is entered from outside and another when it is entered from the end of the last turn.
How many values there are does not matter: LLVM finds registers for them.

**How to write it from Python.** Numba's `@intrinsic` marks a function that is not compiled: it is
called while a kernel that uses it is compiled, with a `builder`, whose methods append one
instruction each (`builder.fadd(x, y)`) and return the value. A Python loop around such calls runs
at that time, so it writes the instruction once per turn. That is all that is needed:

1. here, a type `Vector` (one register of LANES floats) and functions on it, so that ordinary
   kernels can say `vstore(y, i, vmax(vload(x, i) * scale, zero))`;
2. in generators.py, two functions that write longer pieces: the loop above, and a small constant
   matrix applied to both sides of a square of vectors (all of Winograd's transforms).

Addresses are not checked here: whoever calls a kernel has checked shapes (conv2d.py).

Next: tinyft/backends/cpu/generators.py
"""

from __future__ import annotations

import inspect
import operator
import os

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from tinyft.backends.cpu.compile_cache import helper, kernel
from tinyft.backends.cpu.cpu_features import blocking

LANES, BLOCK_ROWS, BLOCK_REGISTERS, REST_ROWS = blocking()
PANEL = BLOCK_REGISTERS * LANES  # columns of a block, and of a packed panel

INT = types.int64
FLOAT = types.float32
ADDRESS = "address"  # two arguments in a kernel, an array and a flat index, are one pointer here

_FLOAT = ir.FloatType()
_INT32 = ir.IntType(32)
INT64 = ir.IntType(64)
REGISTER = ir.VectorType(_FLOAT, LANES)
_INTEGERS = ir.VectorType(_INT32, LANES)
_BYTES = ir.VectorType(ir.IntType(8), LANES)
FUSE = ("contract",)  # the one freedom we give LLVM: a * b + c may become one fused instruction


# ----------------------------------------------------------------------------------------- the type


class VectorType(types.Type):
    """What Numba sees: a value of this type is one register."""

    def __init__(self):
        super().__init__(name=f"float32x{LANES}")


VECTOR = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    """What LLVM sees: <LANES x float>."""

    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, REGISTER)


def _define_operator(python_operator, method: str) -> None:
    """Give + - * a meaning between two Vectors."""

    @infer_global(python_operator)
    class _Typing(ConcreteTemplate):
        cases = (signature(VECTOR, VECTOR, VECTOR),)

    @lower_builtin(python_operator, VECTOR, VECTOR)
    def _write(context, builder, call, arguments):
        return getattr(builder, method)(*arguments, flags=FUSE)


_define_operator(operator.add, "fadd")
_define_operator(operator.sub, "fsub")
_define_operator(operator.mul, "fmul")


def _count(parameters) -> int:
    """Arguments that a kernel passes."""
    return len(parameters) + parameters.count(ADDRESS)


def instruction(result, *parameters):
    """Turns `write(builder, *values)`, which appends instructions, into a function for kernels.

    `parameters` are Numba types. Where one is ADDRESS, the kernel passes a C-contiguous array (of
    any number of dimensions) and a flat index, and `write` gets a pointer.
    """

    def decorate(write):
        def declare(typing_context, *given):
            declared = []
            for parameter in parameters:
                if parameter is ADDRESS:
                    array = given[len(declared)]
                    if not (isinstance(array, types.Array) and array.layout == "C"):
                        return None  # Numba then reports that no signature fits
                    declared += [array, INT]
                else:
                    declared.append(parameter)

            def generate(context, builder, call, arguments):
                values = []
                for parameter in parameters:
                    if parameter is ADDRESS:
                        kind, array, index = (
                            call.args[len(call.args) - len(arguments)],
                            *arguments[:2],
                        )
                        data = context.make_array(kind)(context, builder, array).data
                        values.append(builder.gep(data, [index]))
                        arguments = arguments[2:]
                    else:
                        values.append(arguments[0])
                        arguments = arguments[1:]
                value = write(builder, *values)
                return context.get_dummy_value() if value is None else value

            return result(*declared), generate

        names = ["typing_context", *(f"argument_{i}" for i in range(_count(parameters)))]
        declare.__signature__ = inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        )
        declare.__name__, declare.__doc__ = write.__name__, write.__doc__
        return intrinsic(declare)

    return decorate


# --------------------------------------------------------------- pieces that `write` functions use


def write_load(builder, pointer, kind=REGISTER, align=4):
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = align  # what is promised: by default, that a float starts there
    return value


def write_store(builder, value, pointer, align=4):
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = align


def write_constant(number: float):
    return ir.Constant(REGISTER, [float(np.float32(number))] * LANES)


def write_spread(builder, number, kind=REGISTER):
    """A register with `number` in every lane: put it into lane 0, then copy lane 0 everywhere."""
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, _INT32(0))
    return builder.shuffle_vector(first, first, ir.Constant(_INTEGERS, [0] * LANES))


def write_fma(builder, x, y, z):
    return write_call(builder, f"llvm.fmuladd.v{LANES}f32", REGISTER, x, y, z)


def write_prefetch(builder, pointer, level: int, to_write: bool = False):
    """Ask for the cache line that a pointer lies in, into the cache of this level."""
    pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    name = "llvm.prefetch.p0" if pointer.type.is_opaque else "llvm.prefetch.p0i8"
    purpose, data = _INT32(int(to_write)), _INT32(1)
    write_call(builder, name, ir.VoidType(), pointer, purpose, _INT32(4 - level), data)


def write_opaque(builder, pointer):
    """The same pointer, by an empty piece of assembly: LLVM no longer knows where it comes from."""
    kind = ir.FunctionType(pointer.type, [pointer.type])
    return builder.asm(kind, "", "=r,0", [pointer], side_effect=False)


def write_call(builder, name: str, result, *arguments):
    """Call one of LLVM's own functions, declared by hand."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, arguments)


def _is_x86() -> bool:
    return llvm.get_process_triple().startswith(("x86", "i686"))


# --------------------------------------------------------------------------- functions for kernels


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
    store.set_metadata("nontemporal", builder.module.add_metadata([_INT32(1)]))


@instruction(types.void)
def finish_streams(builder):
    """finish_streams(): what was streamed becomes visible before anything that follows"""
    if _is_x86():
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
    found = write_load(builder, pointer, _BYTES, align=1)
    wanted = write_spread(builder, builder.trunc(number, _BYTES.element), _BYTES)
    return builder.select(builder.icmp_unsigned("==", found, wanted), x, y)


@instruction(types.void, ADDRESS, VECTOR)
def vstore_bytes(builder, pointer, x):
    """vstore_bytes(a, i, x): stores whole numbers 0 to 255 as bytes a[i : i + LANES]"""
    write_store(builder, builder.trunc(builder.fptosi(x, _INTEGERS), _BYTES), pointer, align=1)


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
def seen_from(builder, pointer, other):
    """seen_from(a, i, b, j): how far b[j] is behind a[i], so that a[i + that] is b[j].

    A kernel that reads from one of two arrays chooses between two indices. If it chose between the
    arrays themselves, Numba would count references to them, with atomic instructions: 200 cycles.
    """
    here, there = (builder.ptrtoint(place, INT64) for place in (pointer, other))
    return builder.sdiv(builder.sub(there, here), INT64(4), flags=("exact",))


@instruction(types.void)
def cpu_pause(builder):
    """cpu_pause(): tells an x86 core that this is a waiting loop"""
    if _is_x86():
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
                rows[i] = builder.shuffle_vector(*pair, ir.Constant(_INTEGERS, low))
                rows[i | half] = builder.shuffle_vector(*pair, ir.Constant(_INTEGERS, high))
        half *= 2
    for i in range(LANES):
        write_store(builder, rows[i], row(target, target_row, i))


__all__ = [
    "BLOCK_REGISTERS",
    "BLOCK_ROWS",
    "LANES",
    "PANEL",
    "REST_ROWS",
    "atomic_announce",
    "atomic_load",
    "atomic_next",
    "cpu_pause",
    "finish_streams",
    "give_way",
    "helper",
    "kernel",
    "prefetch",
    "prefetch_to_write",
    "seen_from",
    "vfma",
    "vkeep_positive",
    "vload",
    "vmax",
    "vpick_byte",
    "vpick_equal",
    "vpick_larger",
    "vput",
    "vset1",
    "vstore",
    "vstore_bytes",
    "vstream",
    "vtranspose",
]
