"""How Numba compiles a kernel, and a function that only kernels call.

**LLVM optimises once, and not all it can.** Numba has LLVM optimise each function by itself, then
with the code of those that it calls in place of the calls: shortly, and once more at level 3. Here
the first time is short, so that less is left to do: variables move to registers, and branches that
lead nowhere go. Only a kernel is optimised with all that it consists of, at level 1, once, and no
loop is unrolled: what has to be wide is written wide (generators.py). A first start takes 4.5 of
16 s less (level 2: 2.8, without unrolling 3.9), and a training step is 4 % faster with ResNet-18,
1 % with `cifar_resnet20`, level with ResNet-50. That the functions which a kernel calls are not
optimised a second time by themselves is 0.5 of the 9.1 s which compiling took before.

**A helper ends before machine code.** Numba would make machine code of each function that kernels
call, of a function that calls others again with their code inside, and of the kernel once more: the
only machine code that ever runs. So a helper stops before that: Numba hands its LLVM code on to
kernels, and nothing to the machine. That takes another 2 s less.

**Nothing for what no kernel has.** Numba looks through each function for closures, branches on
None, arithmetic on whole arrays and functions to be written out, and makes an entry for C: 1.0 of
13.2 s (Intel Xeon). It counts the references to each array, of which no kernel makes any: a quarter
of all LLVM code, and 1.0 of 10.6 s.

**No question twice.** Wherever an operator is written, Numba looks for the function that stands for
it on such types, and for a + b of two whole numbers it tries those for lists, arrays, sets and
times first, twice each. Here it is asked once for each operator and types: 0.8 of 9.2 s.

**No search for garbage meanwhile.** Compiling makes millions of small objects, and Python would
look through all that it has, again and again: another 0.7 s. Nor afterwards, when all that is left
would be searched as young: another 0.65 s, for 140 MiB until the next full search (AMD Zen 4).

**Only machine code is kept.** Numba keeps a kernel's LLVM code beside it, for functions that would
take it in, of which there are none, and reads it when it loads the kernel: 0.1 of the 0.23 s that
loading took.
"""

from __future__ import annotations

import gc
from typing import ClassVar

import llvmlite.binding as llvm
from numba import _dynfunc, types
from numba.core import cgutils
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompilerBase, Flags
from numba.core.compiler_machinery import LoweringPass, PassManager, register_pass
from numba.core.lowering import Lower
from numba.core.typed_passes import (
    BaseNativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.typing.context import BaseContext
from numba.core.typing.templates import Signature
from numba.core.untyped_passes import (
    FixupArgs,
    GenericRewrites,
    IRProcessing,
    ReconstructSSA,
    TranslateByteCode,
)

from tinyft.backends.cpu.codegen.simd import flush_denormals

__all__ = ["Compiler", "HelperCompiler", "KernelCompiler", "copied"]

# Numba 0.61 had LLVM optimise by another interface, and is left to do as it does with kernels.
CHOOSES_PASSES = hasattr(llvm.create_new_function_pass_manager(), "add_sroa_pass")

# Python 3.12 freezes some 375 objects at its start; without modules there are 5,000 more already.
FROZEN_BY_PYTHON = 1000


class KernelLibrary(JITCodeLibrary):
    """LLVM code that is optimised as a whole, of which machine code alone is kept."""

    def serialize_using_object_code(self):
        self._ensure_finalized()
        # Numba learns from the LLVM code which names the machine code has.
        names = [function.name for function in self.get_defined_functions()]
        empty = "".join(f'define void @"{name}"() {{ ret void }}\n' for name in names)
        code = self._get_compiled_object(), llvm.parse_assembly(empty).as_bitcode()
        return self.name, "object", code

    if CHOOSES_PASSES:

        def _optimize_functions(self, module):
            module.data_layout = self._codegen._data_layout  # as Numba does
            passes = llvm.create_new_function_pass_manager()
            passes.add_sroa_pass()
            passes.add_simplify_cfg_pass()
            builder = self._codegen._pass_builder()
            for function in module.functions:
                if not function.is_declaration:
                    passes.run(function, builder)

        def _optimize_final_module(self):
            options = llvm.create_pipeline_tuning_options()
            options.speed_level, options.loop_unrolling = 1, False
            builder = llvm.create_pass_builder(self._codegen._tm, options)
            builder.getModulePassManager().run(self._final_module, builder)


class HelperLibrary(KernelLibrary):
    """LLVM code that kernels link in, without an address of its own; optimised as their part."""

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True


class KernelLower(Lower):
    """Writes LLVM code without what only counts of references and debuggers need: loads of what a
    variable held before, and where variables lie.
    """

    def storevar(self, value, name, argidx=None):
        if name in self._singly_assigned_vars:
            super().storevar(value, name, argidx)
        else:
            self.builder.store(value, self.getvar(name))

    def alloca_lltype(self, name, lltype, datamodel=None):
        return cgutils.alloca_once(self.builder, lltype, name=name)

    def lower_normal_function(self, fndesc):
        super().lower_normal_function(fndesc)
        if not self.flags.no_cpython_wrapper:  # a kernel: its helpers and routines compute as it
            flush_denormals(self.function, self.module.triple)


@register_pass(mutates_CFG=True, analysis_only=False)
class KernelLowering(BaseNativeLowering):
    """Numba's pass from typed Python to LLVM code, with KernelLower."""

    _name = "kernel_lowering"
    lowering_class = KernelLower


@register_pass(mutates_CFG=False, analysis_only=False)
class OfferToKernels(LoweringPass):
    """Tells Numba where kernels find the helper: under a Python function that is never called."""

    _name = "offer_to_kernels"

    def __init__(self):
        LoweringPass.__init__(self)

    def run_pass(self, state):
        lowered, library = state.cr, state.library
        name = lowered.fndesc.qualname.split(".")[-1]
        module, no_address = lowered.fndesc.lookup_module(), 0
        key = _dynfunc.make_function(module, name, "", no_address, lowered.env, (library,))
        state.targetctx.insert_user_function(key, lowered.fndesc, [library])
        state.cr = lowered._replace(cfunc=key)
        return True


class RememberingTypingContext:
    """Numba's typing context, asked once which function a name or an operator is on such types.

    The answer stays right: if another implementation is registered, Numba makes a new `function`.
    """

    found: ClassVar[dict[tuple, Signature]] = {}

    def __init__(self, context: BaseContext) -> None:
        self._context = context

    def __getattr__(self, name):
        return getattr(self._context, name)

    def resolve_function_type(self, function, arguments, named):
        if not isinstance(function, types.Function):  # a helper, which may have to be compiled
            return self._context.resolve_function_type(function, arguments, named)
        key = function, tuple(arguments), tuple(named.items())
        if key not in self.found:
            self.found[key] = self._context.resolve_function_type(function, arguments, named)
        return self.found[key]


class KernelCompiler(CompilerBase):
    """Numba's compiler, with these passes only and such a library. (What is Numba's own, such as
    `min`, Numba compiles as ever: 0.1 s.)
    """

    library = KernelLibrary
    passes = (
        TranslateByteCode,  # Python's code -> statements on variables
        FixupArgs,
        IRProcessing,
        GenericRewrites,  # an index written as a number becomes a part of a tuple's type; `raise`
        ReconstructSSA,  # a variable of its own for each assignment, so that each has one type
        NopythonTypeInference,
        PreLowerStripPhis,
        KernelLowering,  # -> LLVM code, and machine code
        NoPythonBackend,
    )

    def define_pipelines(self):
        state = self.state
        state.typingctx = RememberingTypingContext(state.typingctx)
        state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        manager = PassManager("kernel")
        for compiler_pass in self.passes:
            manager.add_pass(compiler_pass, compiler_pass._name)
        manager.finalize()
        return [manager]

    def _compile_core(self):
        """Numba's own, without garbage collection; a helper's runs within its kernel's."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            compiled = super()._compile_core()
            compiled.library._ensure_finalized()  # here, so that what fails there fails here
            return compiled
        finally:
            if collecting:
                _count_all_as_old()
                gc.enable()


def copied(value: object) -> object:
    """What a compiler is given, for one that may change it."""
    return Flags(value) if isinstance(value, Flags) else value


class HelperCompiler(KernelCompiler):
    """The same without an executable function."""

    library = HelperLibrary
    passes = (*KernelCompiler.passes[:-1], OfferToKernels, NoPythonBackend)

    def define_pipelines(self):
        self.state.flags.no_compile = True
        return super().define_pipelines()


def _count_all_as_old() -> None:
    """Leave the objects that exist now to the next full search for garbage.

    What a program has frozen itself stays frozen: all that there was then, which is never so few.
    """
    if gc.get_freeze_count() <= FROZEN_BY_PYTHON:
        gc.freeze()
        gc.unfreeze()
