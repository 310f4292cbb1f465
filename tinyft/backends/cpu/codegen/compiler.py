"""Has Numba compile a kernel, and a helper that only kernels call. Seconds: a first start.

**LLVM optimises once, at level 1.** Numba has LLVM optimise each function by itself, then twice
more with the code of those that it calls in place of the calls. Here only a kernel is optimised,
with all that it consists of, once, and no loop is unrolled: what has to be wide is written wide
(generators.py). 4.5 of 16 s (at level 2 2.8), and a training step of ResNet-18 is 4 % faster.
**A helper ends before machine code**: its LLVM code becomes a part of each kernel that calls it,
whose machine code is the only one that ever runs. 2 s.
**Nothing for what no kernel has**: closures, branches on None, arithmetic on whole arrays, an entry
for C (1.0 of 13.2 s), references to count (a quarter of all LLVM code: 1.0 of 10.6 s).
**No question twice**: Numba looks for what an operator is on such types wherever it is written, for
a + b of two integers among lists, arrays, sets and times first. It is asked once: 0.8 of 9.2 s.
**No garbage collection meanwhile**, among millions of small objects: 0.7 s.
**Only machine code is kept** on disk, not the LLVM code beside it: 0.1 s of every start.

All this uses names that Numba and llvmlite do not promise, and this file is the only one that does.
Where a Numba lacks one, what it does promise takes its place and kernels compute the same bits:
this is said once, and `tinyft doctor` always says what is missing and what that costs.
`tinyft warmup` on one thread: 13.8 s of CPU, without all this 29 (AMD Zen 4).
"""

from __future__ import annotations

import contextlib
import gc
import pickle
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import llvmlite.binding as llvm
import numba
from numba import njit, types

from tinyft.backends.cpu.codegen.simd import flush_denormals

# error_model numpy: no test for division by zero before every // and %.
# _nrt: without Numba's runtime, which makes arrays and counts references to them.
OPTIONS = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, "_nrt": False}
PROMISED_OPTIONS = ("nogil", "error_model", "fastmath")

SLOWLY = "compiling takes twice as long, and numbers below 1.2e-38 do not count as 0"
NOT_KEPT = "compiled kernels cannot be kept, so every start compiles them again, about 15 s"
OFTEN = "helpers are compiled once for each number at a call, some 5 s at a first start"


class Lack(NamedTuple):
    """Says what a Numba does not have, in its words, and what that costs."""

    error: str
    cost: str

    def __str__(self) -> str:
        return f"Numba {numba.__version__} has changed inside ({self.error}): {self.cost}"


lacks: list[Lack] = []


def note(error: Exception, cost: str) -> None:
    """Keep what is missing, and say so if it is the first time."""
    lack = Lack(f"{type(error).__name__}: {error}", cost)
    if lack not in lacks:
        lacks.append(lack)
        if len(lacks) == 1:
            # Where warnings are errors, an error may not stop what works.
            with contextlib.suppress(RuntimeWarning):
                warnings.warn(f"{lack}; else all is as before", RuntimeWarning, stacklevel=2)


# ------------------------------------------------------------- our pipeline, if all names are there

try:
    from numba._dynfunc import make_function
    from numba.core.codegen import JITCodeLibrary
    from numba.core.compiler import Compiler, CompilerBase
    from numba.core.compiler_machinery import (
        CompilerPass,
        LoweringPass,
        PassManager,
        register_pass,
    )
    from numba.core.lowering import Lower
    from numba.core.typed_passes import (
        NativeLowering,
        NoPythonBackend,
        NopythonTypeInference,
        PreLowerStripPhis,
    )
    from numba.core.untyped_passes import (
        FixupArgs,
        GenericRewrites,
        IRProcessing,
        ReconstructSSA,
        TranslateByteCode,
    )

    # Numba 0.61 had LLVM optimise by another interface, and is left to do as it does with kernels.
    CHOOSES_PASSES = hasattr(llvm.create_new_function_pass_manager(), "add_sroa_pass")

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

            def _optimize_functions(self, ll_module):
                """Move variables to registers and drop branches that lead nowhere, no more: less
                is left for the kernel to do.
                """
                ll_module.data_layout = self._codegen._data_layout  # as Numba does
                passes = llvm.create_new_function_pass_manager()
                passes.add_sroa_pass()
                passes.add_simplify_cfg_pass()
                builder = self._codegen._pass_builder()
                for function in ll_module.functions:
                    if not function.is_declaration:
                        passes.run(function, builder)

            def _optimize_final_module(self):
                options = llvm.create_pipeline_tuning_options()
                options.speed_level, options.loop_unrolling = 1, False
                builder = llvm.create_pass_builder(self._codegen._tm, options)
                builder.getModulePassManager().run(self._final_module, builder)

    class HelperLibrary(KernelLibrary):
        """LLVM code that kernels link in, without an address; optimised as their part."""

        def _optimize_final_module(self):
            pass

        def _finalize_final_module(self):
            self._finalize_dynamic_globals()
            self._finalized = True

    class KernelLower(Lower):
        """Numba's writer of LLVM code, whose kernels count denormal numbers as 0."""

        def lower_normal_function(self, fndesc):
            super().lower_normal_function(fndesc)
            assert self.flags is not None  # as always while a function is compiled
            if not self.flags.no_cpython_wrapper:  # a kernel: its helpers compute as it does
                flush_denormals(self.function, self.module.triple)

    @register_pass(mutates_CFG=True, analysis_only=False)
    class KernelLowering(NativeLowering):
        """Numba's pass from typed Python to LLVM code, with KernelLower."""

        _name = "kernel_lowering"

        @property
        def lowering_class(self):
            return KernelLower

    @register_pass(mutates_CFG=False, analysis_only=False)
    class OfferToKernels(LoweringPass):
        """Tells Numba where kernels find a helper: under a Python function that is never called."""

        _name = "offer_to_kernels"

        def __init__(self):
            LoweringPass.__init__(self)

        def run_pass(self, state):  # pyright: ignore[reportIncompatibleMethodOverride]  # Numba's is empty
            lowered, library = state.cr, state.library
            name = lowered.fndesc.qualname.split(".")[-1]
            module, no_address = lowered.fndesc.lookup_module(), 0
            key = make_function(module, name, "", no_address, lowered.env, (library,))
            state.targetctx.insert_user_function(key, lowered.fndesc, [library])
            state.cr = lowered._replace(cfunc=key)
            return True

    class RememberingTypingContext:
        """Numba's typing context, asked once which function a name or operator is on such types.

        The answer stays right: another implementation that is registered is another `function`.
        """

        found: ClassVar[dict[tuple, Any]] = {}

        def __init__(self, context: Any) -> None:
            self._context = context

        def __getattr__(self, name):
            return getattr(self._context, name)

        def resolve_function_type(self, function, arguments, named):
            if not isinstance(function, types.Function):  # a helper, perhaps to be compiled
                return self._context.resolve_function_type(function, arguments, named)
            key = function, tuple(arguments), tuple(named.items())
            if key not in self.found:
                self.found[key] = self._context.resolve_function_type(function, arguments, named)
            return self.found[key]

    class KernelPipeline(CompilerBase):
        """Numba's compiler, with these passes only and such a library. (What is Numba's own, such
        as `min`, Numba compiles as ever: 0.1 s.)
        """

        library = KernelLibrary
        passes: tuple[type[CompilerPass], ...] = (
            TranslateByteCode,  # Python's code -> statements on variables
            FixupArgs,
            IRProcessing,
            GenericRewrites,  # an index written as a number becomes part of a tuple's type; `raise`
            ReconstructSSA,  # a variable for each assignment, so that each has one type
            NopythonTypeInference,
            PreLowerStripPhis,
            KernelLowering,  # -> LLVM code, and machine code
            NoPythonBackend,
        )

        def __init__(self, *given, **named):
            self._given = given, named
            super().__init__(*given, **named)

        def compile_extra(self, func):
            """Compile with Numba's own passes instead, from the first time that ours fail."""
            (given, named), failure = self._given, None
            if not any(lack.cost == SLOWLY for lack in lacks):
                try:
                    return super().compile_extra(func)
                except Exception as error:
                    failure = error
            compiled = Compiler(*given, **named).compile_extra(func)  # raises if it is its fault
            if failure is not None:
                note(failure, SLOWLY)
            return compiled

        def define_pipelines(self):
            state = self.state
            state.typingctx = RememberingTypingContext(state.typingctx)
            state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
            state.library.enable_object_caching()
            manager = PassManager("kernel")
            for compiler_pass in self.passes:
                manager.add_pass(compiler_pass, compiler_pass.name())
            manager.finalize()
            return [manager]

        def _compile_core(self):
            """Compile without garbage collection; a helper's runs within its kernel's."""
            collecting = gc.isenabled()
            gc.disable()
            try:
                compiled = super()._compile_core()
                compiled.library._ensure_finalized()  # here, so that what fails there fails here
                return compiled
            finally:
                if collecting:
                    gc.enable()

    class HelperPipeline(KernelPipeline):
        """The same without an executable function."""

        library = HelperLibrary
        passes = (*KernelPipeline.passes[:-1], OfferToKernels, NoPythonBackend)

        def define_pipelines(self):
            self.state.flags = self.state.flags.copy()  # Numba's own needs them as they are
            self.state.flags.no_compile = True
            return super().define_pipelines()

    COMPLETE = True
except Exception as error:  # whatever a class that is made of Numba's ends with
    COMPLETE = False
    note(error, SLOWLY)


# --------------------------------------------------------------------------------------- compiling


class Dispatcher(Protocol):
    """What is used of Numba's object that compiles a function, and what is exchanged in it."""

    get_call_template: Callable
    compile: Callable

    def __call__(self, *arguments: Any) -> Any: ...


def dispatcher(function: Callable, *, helper: bool, **options: Any) -> Dispatcher:
    """Numba's dispatcher of a kernel or helper, with the options that this Numba has; without the
    others kernels compute the same.
    """
    options |= OPTIONS
    try:
        from numba.core.registry import cpu_target

        known = [name for name in options if hasattr(cpu_target.options, name)]
    except Exception as error:
        note(error, SLOWLY)
        known = []
    kept = {name: options[name] for name in options if name in (*known, *PROMISED_OPTIONS)}
    if COMPLETE:
        kept["pipeline_class"] = HelperPipeline if helper else KernelPipeline
    return njit(**kept)(function)


def without_literals(helper: Dispatcher) -> None:
    """Let a helper be asked for by a number's type, not by each number that is written at a call:
    see cache.py.
    """
    try:
        resolve, unliteral = helper.get_call_template, types.unliteral
    except AttributeError as error:
        note(error, OFTEN)
        return

    def resolve_without_literals(arguments, named):
        return resolve(
            [unliteral(kind) for kind in arguments],
            {name: unliteral(kind) for name, kind in named.items()},
        )

    helper.get_call_template = resolve_without_literals


def is_compiling() -> bool:
    """True if this thread is compiling; False where that cannot be told."""
    try:
        from numba.core.compiler_lock import global_compiler_lock

        return bool(global_compiler_lock.is_locked())
    except (ImportError, AttributeError):
        return False


# ------------------------------------------------------------------------------------ keeping code


def keep_in(compiled: Any, cache: Any) -> None:
    """Let Numba look for a function's code in `cache`, and put it there."""
    if hasattr(compiled, "_cache"):
        compiled._cache = cache
    else:
        note(AttributeError(f"{type(compiled).__name__} has no _cache"), NOT_KEPT)


def packed(compiled: Any) -> bytes:
    """Turn what Numba compiled into bytes."""
    from numba.core.serialize import dumps

    return dumps(compiled._reduce())


def unpacked(payload: bytes, target_context: Any) -> Any:
    """The reverse of `packed`."""
    from numba.core.compiler import CompileResult

    return CompileResult._rebuild(target_context, *pickle.loads(payload))
