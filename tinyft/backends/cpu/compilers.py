"""How Numba compiles a kernel, and a function that only kernels call.

**LLVM optimises once, and not all it can.** Numba has LLVM optimise each function by itself, and
then all that a kernel consists of, with the code of the functions in place of the calls: shortly,
and once more at level 3. Here the first time is short: variables move to registers, and branches
that lead nowhere go, for without that some loops are 10 % slower in the end. The second time is
level 1, once, and no loop is unrolled: what has to be wide is written wide (generators.py). A first
start takes 4.5 of 16 s less (level 2: 2.8, without unrolling 3.9), and a training step is 4 %
faster with ResNet-18, 1 % with `cifar_resnet20`, level with ResNet-50.

**A helper ends before machine code.** Numba would make machine code of each function that kernels
call, of a function that calls others again with their code inside, and of the kernel once more: the
only machine code that ever runs. So a helper stops before that: Numba hands its LLVM code on to
kernels, and nothing to the machine. That takes another 2 s less.

**Nothing for what no kernel has.** Numba looks through each function for closures, branches on
None, arithmetic on whole arrays and functions to be written out, and makes an entry for C: 1.0 of
13.2 s (Intel Xeon).

**No search for garbage meanwhile.** Compiling makes millions of small objects, and Python would
look through all that it has, again and again: another 0.7 s. Nor afterwards, when all that is left
would be searched as young: another 0.65 s, for 140 MiB until the next full search (AMD Zen 4).

**Only machine code is kept.** Numba keeps a kernel's LLVM code beside it, for functions that would
take it in, of which there are none, and reads it when it loads the kernel: 0.1 of the 0.23 s that
loading took.

Next: tinyft/backends/cpu/routines.py
"""

from __future__ import annotations

import gc

import llvmlite.binding as llvm
from numba import _dynfunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import LoweringPass, register_pass
from numba.core.typed_passes import InlineOverloads, NativeLowering, NopythonRewrites
from numba.core.untyped_passes import DeadBranchPrune, InlineClosureLikes

# Numba 0.61 had LLVM optimise by another interface, and is left to do as it does.
CHOOSES_PASSES = hasattr(llvm.create_new_function_pass_manager(), "add_sroa_pass")
NEEDLESS = InlineClosureLikes, DeadBranchPrune, InlineOverloads, NopythonRewrites


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
            for function in module.functions:
                passes.run(function, self._codegen._pass_builder())

        def _optimize_final_module(self):
            options = llvm.create_pipeline_tuning_options()
            options.speed_level, options.loop_unrolling = 1, False
            builder = llvm.create_pass_builder(self._codegen._tm, options)
            passes = builder.getModulePassManager()
            passes.add_refprune_pass()  # counts of references that cancel out, as Numba does
            passes.run(self._final_module, builder)


class HelperLibrary(KernelLibrary):
    """LLVM code that kernels link in, without an address of its own."""

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True


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


class KernelCompiler(CompilerBase):
    """Numba's own passes but those that are NEEDLESS, with such a library."""

    library = KernelLibrary

    def define_pipelines(self):
        state = self.state
        state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        passes = DefaultPassBuilder.define_nopython_pipeline(state)
        passes.passes = [entry for entry in passes.passes if entry[0] not in NEEDLESS]
        self.extend(passes)
        passes.finalize()
        return [passes]

    def _compile_core(self):
        """Numba's own, without garbage collection; a helper's runs within its kernel's."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            return super()._compile_core()
        finally:
            if collecting:
                _count_all_as_old()
                gc.enable()

    def extend(self, passes):
        """A kernel needs no further passes."""


class HelperCompiler(KernelCompiler):
    """The same without an executable function."""

    library = HelperLibrary

    def extend(self, passes):
        self.state.flags.no_compile = True
        passes.add_pass_after(OfferToKernels, NativeLowering)


def _count_all_as_old() -> None:
    """Leave the objects that exist now to the next full search for garbage."""
    if gc.get_freeze_count() == 0:  # what a program has frozen itself stays frozen
        gc.freeze()
        gc.unfreeze()
