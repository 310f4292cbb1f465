"""Code that kernels call by its name, instead of each having it inside.

    @routine(ADDRESS, INT)      # called by kernels only, as a helper is
    def double(x, size):
        x = array_at(x)
        ...

A helper's code becomes a part of each kernel that calls it. For small ones that is best. But the
product of two matrices is large, and a first training step has eleven kernels with a product: LLVM
would optimise it eleven times, and make machine code of it as often. A routine is compiled once, as
a function of a C library is, and its callers know no more than its name. That takes 1.1 of 13.5 s
off a first start. A call with 16 arguments takes 1 % of
a step of `cifar_resnet20`, and nothing that could be measured of ResNet-18's (AMD Zen 4).

LLVM looks names up in a table of the process, when it loads a kernel, and ends the process if one
is not there. So a routine is made ready before: while a kernel that calls it is compiled, and when
one is read from disk whose machine code has the routine's name in it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tinyft.backends.cpu.codegen.cache import OPTIONS, KernelCache, called_by_name
from tinyft.backends.cpu.codegen.internals import Routine, compiler_lock
from tinyft.backends.cpu.codegen.simd import ADDRESS, FLOAT, INT64, instruction, write_call

_ONE = ir.ArrayType(INT64, 1)  # how Numba has the shape of a flat array


def routine(*parameters) -> Callable:
    """Compiles a function with these parameters, which are given as to simd.py's `instruction`.

    Where one is ADDRESS, a kernel passes an array and a flat index, and the function gets a
    pointer, of which `array_at` makes an array again.
    """

    def decorate(function: Callable) -> Callable:
        name = f"tinyft_{function.__name__}"
        arguments = (types.CPointer(FLOAT) if kind is ADDRESS else kind for kind in parameters)
        options = {**OPTIONS, "forceinline": True}  # into its entry for C, which is what is called
        compiled = Routine(function, tuple(arguments), options, KernelCache(function))
        called_by_name[name] = load_it = functools.partial(_load, name, compiled)

        def write(builder, *values):
            load_it()
            write_call(builder, name, ir.VoidType(), *values)

        write.__name__, write.__doc__ = function.__name__, function.__doc__
        return instruction(types.void, *parameters)(write)

    return decorate


@intrinsic
def array_at(typing_context, pointer):
    """A flat array that begins at a routine's pointer; as it cannot know where it ends, of the
    largest size that there is.
    """
    kind = types.Array(pointer.dtype, 1, "C")
    itemsize = pointer.dtype.bitwidth // 8

    def generate(context, builder, call, arguments):
        array = context.make_array(kind)(context, builder)
        array.data, array.itemsize, array.nitems = arguments[0], INT64(itemsize), INT64(sys.maxsize)
        array.shape, array.strides = _ONE([sys.maxsize]), _ONE([itemsize])
        return array._getvalue()

    return kind(pointer), generate


def _load(name: str, compiled: Routine) -> None:
    """Put a routine into LLVM's table, compiled or read from disk."""
    with compiler_lock():
        address = compiled.address()
        if llvm.address_of_symbol(name) is None:  # a Ctrl-C may come between the two
            llvm.add_symbol(name, address)
