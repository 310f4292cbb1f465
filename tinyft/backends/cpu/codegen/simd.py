"""Vector registers for Numba, and how to write LLVM code from Python.

**The problem.** A matrix product does one multiply-add per pair of elements. A core of today does
32 of these per cycle, but loads only two registers per cycle from its cache, so a plain loop waits
for memory nearly all the time. The remedy is *register blocking*, the micro-kernel of GotoBLAS and
BLIS: keep a block of the result, say 12 rows of 32 columns, in 24 registers while k runs. For each
k, load 2 registers of B and 12 single elements of A: 24 multiply-adds for 14 loads.

    registers:     sum[0][0]  sum[0][1]         for each k:
                   sum[1][0]  sum[1][1]             b0, b1 = B[k, 0:16], B[k, 16:32]
                   ...                              for i in 0..11:   (written out, not a loop)
                   sum[11][0] sum[11][1]                sum[i][0] += A[i, k] * b0
                                                        sum[i][1] += A[i, k] * b1

**Why Numba cannot do it by itself.** LLVM, which compiles for Numba, vectorises simple loops, but
does not keep an array of 24 vectors in registers over a loop: an array lives in memory. Registers
need separate names, 24 variables that each hold a vector, and Python code has neither vectors nor a
way to write 24 variables in a loop.

**What LLVM code is.** A list of instructions on values that have a type and are assigned once:
`%sum = fadd <16 x float> %x, %y` adds two vectors of 16 floats. The instructions stand in *blocks*
that end in a jump. A value that changes from turn to turn of a loop is a *phi*: it takes one value
when the block is entered from outside and another when it is entered from the end of the last turn.
How many values there are does not matter: LLVM finds registers for them.

**How to write it from Python.** Numba's `@intrinsic` marks a function that is not compiled: it is
called while a kernel that uses it is compiled, with a `builder`, whose methods append one
instruction each (`builder.fadd(x, y)`) and return the value. A Python loop around such calls runs
at that time, so it writes the instruction once per turn. That is all that is needed:

1. here, a type `Vector` (one register of LANES floats), and `instruction`, which makes a function
   for kernels out of such calls;
2. in vectors.py, the functions, so that ordinary kernels can say
   `vstore(y, i, vmax(vload(x, i) * scale, zero))`;
3. in generators.py, two functions that write longer pieces: the loop above, and small constant
   matrices applied to both sides of a square of vectors (all of Winograd's transforms).

Addresses are not checked here: whoever calls a kernel has checked shapes (conv/table.py).
"""

from __future__ import annotations

import inspect
import operator
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

# ----------------------------------------------------------------------- which registers there are

# What LLVM's CPU names offer, for NUMBA_CPU_NAME without NUMBA_CPU_FEATURES. An unknown name gets
# the portable path, which is right everywhere.
AVX512_NAMES = ("skylake-avx512", "icelake-server", "sapphirerapids", "znver4", "znver5")
AVX2_NAMES = ("haswell", "broadwell", "skylake", "alderlake", "znver1", "znver2", "znver3")


class Blocking(NamedTuple):
    """lanes: floats per register; rows x registers: the block of results that stays in registers;
    rest: rows of the smaller block that takes what `rows` leaves over.

    Measured on an Intel Xeon (Sapphire Rapids, AVX-512, one core, product of matrices that fit L2;
    GFLOP/s of a peak of 230) by rows x registers: 8x2 191, 8x3 222, 6x4 206, 12x2 220, 14x2 229. On
    AMD Zen 4, 8x2 reached 98 % of the peak. 12x2 is taken because 12 rows and a rest of 4 divide
    what convolutions have; 14 do not. So do 6 and 4: a rest of 2 has half of the sums that a core
    can work at, and cost a product of 16 rows 10 %, of 32 3 % (AVX2, Zen 4).
    """

    lanes: int
    rows: int
    registers: int
    rest: int


def requested_cpu() -> tuple[str, str]:
    """What NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say, "" where they say nothing."""
    return getattr(config, "CPU_NAME", None) or "", getattr(config, "CPU_FEATURES", None) or ""


def has(feature: str) -> bool:
    """True if code compiled by Numba in this process may use this feature of LLVM's list.

    Numba compiles for the CPU it runs on unless NUMBA_CPU_NAME or NUMBA_CPU_FEATURES say otherwise,
    so the same two variables decide here. (NUMBA_ENABLE_AVX=0 does not: each wide register is then
    several narrow ones.) Every 64-bit ARM has NEON, also one that LLVM knows only as "generic".
    """
    name, features = requested_cpu()
    if feature == "neon" and platform.machine() in ("aarch64", "arm64"):
        return "-neon" not in features.split(",")
    if features:
        return f"+{feature}" in features.split(",")
    if name and name not in (llvm.get_host_cpu_name(), "host"):
        avx2 = (*AVX2_NAMES, *AVX512_NAMES)
        names = {"avx512f": AVX512_NAMES, "avx2": avx2, "fma": avx2}
        return name in names.get(feature, ())
    return host_has(feature)


def host_has(feature: str) -> bool:
    """True if this CPU has this feature of LLVM's list, whatever code is compiled for."""
    try:
        return bool(llvm.get_host_cpu_features().get(feature))
    except RuntimeError:  # LLVM cannot tell on this system
        return False


def is_x86(triple: str | None = None) -> bool:
    """True if LLVM's name for a machine, by default this one, says so."""
    return (triple or llvm.get_process_triple()).startswith(("x86", "i686"))


def is_arm64(triple: str | None = None) -> bool:
    return (triple or llvm.get_process_triple()).startswith(("aarch64", "arm64"))


def blocking() -> Blocking:
    """The block for this CPU: rows x registers sums, `registers` of B and one of A."""
    if has("avx512f"):
        return Blocking(lanes=16, rows=12, registers=2, rest=4)  # 27 of 32 registers
    if has("avx2") and has("fma"):
        return Blocking(lanes=8, rows=6, registers=2, rest=4)  # 15 of 16
    if has("neon"):
        return Blocking(lanes=4, rows=12, registers=2, rest=4)  # 27 of 32
    return Blocking(lanes=4, rows=6, registers=2, rest=4)  # SSE: 15 of 16


LANES, BLOCK_ROWS, BLOCK_REGISTERS, REST_ROWS = blocking()
PANEL = BLOCK_REGISTERS * LANES  # columns of a block, and of a packed panel

LINE = 16  # floats of a cache line

INT = types.int64
FLOAT = types.float32
ADDRESS = "address"  # two arguments in a kernel, an array and a flat index, are one pointer here

_FLOAT = ir.FloatType()
INT32 = ir.IntType(32)
INT64 = ir.IntType(64)
REGISTER = ir.VectorType(_FLOAT, LANES)
INTEGERS = ir.VectorType(INT32, LANES)
X86_FLUSHES = 1 << 15 | 1 << 6  # bits of MXCSR: tiny results become 0, and count as 0
ARM64_FLUSHES = 1 << 24  # the bit of FPCR for both
FUSE = ("contract",)  # the one freedom we give LLVM: a * b + c may become one fused instruction


# ----------------------------------------------------------------------------------------- the type


class VectorType(types.Type):
    """Tells Numba that a value of this type is one register."""

    def __init__(self):
        super().__init__(name=f"float32x{LANES}")


VECTOR = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    """Tells LLVM that it is <LANES x float>."""

    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, REGISTER)


def _define_operator(python_operator, method: str) -> None:
    """Give + - * a meaning between two Vectors."""

    @type_callable(python_operator)
    def _declare(typing_context):
        return lambda x, y: VECTOR if x == y == VECTOR else None

    @lower_builtin(python_operator, VECTOR, VECTOR)
    def _write(context, builder, call, arguments):
        return getattr(builder, method)(*arguments, flags=FUSE)


_define_operator(operator.add, "fadd")
_define_operator(operator.sub, "fsub")
_define_operator(operator.mul, "fmul")


def instruction(
    result: types.Type, *parameters: types.Type | str
) -> Callable[[Callable[..., object]], Callable[..., Any]]:  # in kernels types are Numba's
    """Turn `write(builder, *values)`, which appends instructions, into a function for kernels.

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
                        kind = call.args[len(call.args) - len(arguments)]
                        array, index, *arguments = arguments
                        data = context.data_model_manager[kind].get(builder, array, "data")
                        values.append(builder.gep(data, [index]))
                    else:
                        number, *arguments = arguments
                        values.append(number)
                value = write(builder, *values)
                return context.get_dummy_value() if value is None else value

            return result(*declared), generate

        count = len(parameters) + parameters.count(ADDRESS)  # of a kernel's arguments
        names = ["typing_context", *(f"argument_{i}" for i in range(count))]
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
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, INT32(0))
    return builder.shuffle_vector(first, first, ir.Constant(INTEGERS, [0] * LANES))


def write_fma(builder, x, y, z):
    return write_call(builder, f"llvm.fmuladd.v{LANES}f32", REGISTER, x, y, z)


def write_prefetch(builder, pointer, level: int, to_write: bool = False):
    """Ask for the cache line that a pointer lies in, into the cache of this level."""
    pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
    name = "llvm.prefetch.p0" if pointer.type.is_opaque else "llvm.prefetch.p0i8"
    purpose, data = INT32(int(to_write)), INT32(1)
    write_call(builder, name, ir.VoidType(), pointer, purpose, INT32(4 - level), data)


def write_opaque(builder, pointer):
    """The same pointer, by an empty piece of assembly: LLVM no longer knows where it comes from."""
    kind = ir.FunctionType(pointer.type, [pointer.type])
    return builder.asm(kind, "", "=r,0", [pointer], side_effect=False)


def write_call(builder, name: str, result, *arguments):
    """Call one of LLVM's own functions, declared by hand."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)


def flush_denormals(function, triple: str) -> None:
    """Make `function` count numbers below 1.2e-38 as 0, and leave the CPU as it found it.

    A core computes with such numbers, of less than the usual precision, some hundred times as
    slowly. What they count as is a setting of the thread: a function that has been written gets its
    change at the beginning, and before every return what was set before, so none can escape.
    """
    builder = ir.IRBuilder(function.entry_basic_block)
    builder.position_at_start(function.entry_basic_block)
    if is_x86(triple):
        before, flushing = builder.alloca(INT32), builder.alloca(INT32)
        _move_mxcsr(builder, "stmxcsr", before)
        builder.store(builder.or_(builder.load(before), INT32(X86_FLUSHES)), flushing)
        _move_mxcsr(builder, "ldmxcsr", flushing)
    elif is_arm64(triple):
        before = write_call(builder, "llvm.aarch64.get.fpcr", INT64)
        flushing = builder.or_(before, INT64(ARM64_FLUSHES))
        write_call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), flushing)
    else:
        return
    for block in function.blocks:
        if isinstance(block.terminator, ir.Ret):
            builder.position_before(block.terminator)
            if is_x86(triple):
                _move_mxcsr(builder, "ldmxcsr", before)
            else:
                write_call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), before)


def _move_mxcsr(builder, how: str, place) -> None:
    place = builder.bitcast(place, ir.IntType(8).as_pointer())
    write_call(builder, f"llvm.x86.sse.{how}", ir.VoidType(), place)
