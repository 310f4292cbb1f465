"""How Numba compiles a function that only kernels call.

Left alone it makes machine code of each such function, of a function that calls others again with
their code inside, and of the kernel once more, which has the code of all of them in place of the
calls: the only machine code that ever runs. So a helper stops before that: Numba hands its LLVM
code on to kernels, and nothing to the machine. The kernels are the same, and a first start takes
2 of 15 s less.

Next: tinyft/backends/cpu/cpu_features.py
"""

from __future__ import annotations

from numba import _dynfunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import LoweringPass, register_pass
from numba.core.typed_passes import NativeLowering


class HelperLibrary(JITCodeLibrary):
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


class HelperCompiler(CompilerBase):
    """Numba's own passes, with such a library and without an executable function."""

    def define_pipelines(self):
        state = self.state
        state.flags.no_compile = True
        state.library = HelperLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        passes = DefaultPassBuilder.define_nopython_pipeline(state)
        passes.add_pass_after(OfferToKernels, NativeLowering)
        passes.finalize()
        return [passes]
