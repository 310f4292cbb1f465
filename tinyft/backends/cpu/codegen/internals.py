"""What we need of Numba's internals, and what takes its place where a Numba does not have it.

Numba promises little of what compiler.py is made of, and a new version may be without a name, or
have changed what it means. Each piece here is tried when it is first needed. Where that fails, what
Numba does promise takes its place, and kernels compute the same bits: this says so once, and
`tinyft doctor` always says what was missing and what that costs. This file and compiler.py are the
only ones that know names which Numba does not promise.

`tinyft warmup`, one thread, seconds of CPU: 13.8, without compiler.py 29 (AMD Zen 4).
"""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
from numba import njit, types

import tinyft.backends.cpu.codegen.simd  # noqa: F401 - what fails there has no substitute

SLOWLY = "compiling takes twice as long, and numbers below 1.2e-38 do not count as 0"
NOT_KEPT = "compiled kernels cannot be kept, so every start compiles them again, some 10 s"
ROUTINES_NOT_KEPT = "every start compiles some code again, which takes a second"
OFTEN = "helpers are compiled once for each number at a call, some 5 s at a first start"
NO_LOCK = "two threads may compile the same code at once"


class Lack(NamedTuple):
    """What a Numba does not have, in its words, and what that costs."""

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


# ---------------------------------------------------------------------------------------- compilers

try:
    from tinyft.backends.cpu.codegen import compiler as compilers
except Exception as error:  # whatever a class that is made of Numba's ends with
    compilers = None
    note(error, SLOWLY)


class _Guarded:
    """A compiler of compiler.py as Numba calls it; Numba's own from the first time it fails."""

    ours: type

    def __init__(self, *given: Any, **named: Any) -> None:
        self._given = given, named

    def compile_extra(self, function: Callable) -> Any:
        if any(lack.cost == SLOWLY for lack in lacks):
            return self._by(compilers.Compiler, function)
        try:
            return self._by(self.ours, function)
        except Exception as error:
            compiled = self._by(compilers.Compiler, function)  # raises if it is the function's
            note(error, SLOWLY)
            return compiled

    def _by(self, compiler: type, function: Callable) -> Any:
        """What this compiler makes of a function; it may change the flags, so it gets a copy."""
        given, named = self._given
        copied = [compilers.copied(value) for value in given]
        named = {name: compilers.copied(value) for name, value in named.items()}
        return compiler(*copied, **named).compile_extra(function)


if compilers is not None:

    class KernelCompiler(_Guarded):
        ours = compilers.KernelCompiler

    class HelperCompiler(_Guarded):
        ours = compilers.HelperCompiler


def compiled(function: Callable, *, helper: bool, **options: Any) -> Callable:
    """Numba's dispatcher of a kernel or helper."""
    own = {"pipeline_class": HelperCompiler if helper else KernelCompiler} if compilers else {}
    return njit(**known(options), **own)(function)


def known(options: dict[str, Any]) -> dict[str, Any]:
    """The options that this Numba has; without the others kernels compute the same."""
    promised = ("nogil", "error_model", "fastmath")
    try:
        from numba.core.registry import cpu_target

        kept = {name: value for name, value in options.items()
                if name in promised or hasattr(cpu_target.options, name)}  # fmt: skip
    except Exception as error:
        note(error, SLOWLY)
        kept = {name: options[name] for name in promised if name in options}
    return kept


def without_literals(helper: Callable) -> None:
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


# ------------------------------------------------------------------------------------ keeping code


def keep_in(compiled: Any, cache: Any) -> None:
    """Let Numba look for a function's code in `cache`, and put it there."""
    if hasattr(compiled, "_cache"):
        compiled._cache = cache
    else:
        note(AttributeError(f"{type(compiled).__name__} has no _cache"), NOT_KEPT)


def packed(compiled: Any) -> bytes:
    """What Numba compiled, as bytes."""
    from numba.core.serialize import dumps

    return dumps(compiled._reduce())


def unpacked(payload: bytes, target_context: Any) -> Any:
    """The reverse of `packed`."""
    from numba.core.compiler import CompileResult

    return CompileResult._rebuild(target_context, *pickle.loads(payload))


# ----------------------------------------------------------------------------------------- routines


def compiler_lock() -> contextlib.AbstractContextManager:
    """The lock that Numba holds while it compiles."""
    try:
        from numba.core.compiler_lock import global_compiler_lock
    except ImportError as error:
        note(error, NO_LOCK)
        return contextlib.nullcontext()
    return global_compiler_lock


def is_compiling() -> bool:
    """Whether this thread is compiling; False where that cannot be told."""
    try:
        return compiler_lock().is_locked()
    except AttributeError:
        return False


class Routine:
    """A function that is called as C's are; `address` compiles it or reads it from `cache`."""

    def __init__(self, function: Callable, parameters: tuple, options: dict, cache: Any) -> None:
        self.function, self.options, self.cache = function, options, cache
        self.signature = types.void(*parameters)
        self.compiled: list[Any] = []  # what kernels may have been linked with stays

    def address(self) -> int:
        if not self.compiled:
            try:
                self.compiled.append(self._compile())
            except Exception as error:
                public = numba.cfunc(self.signature, nogil=True, error_model="numpy")
                self.compiled.append(public(self.function))
                note(error, ROUTINES_NOT_KEPT)
        return self.compiled[-1].address

    def _compile(self) -> Any:
        from numba.core.ccallback import CFunc

        signature = self.signature.args, self.signature.return_type
        own = {"pipeline_class": KernelCompiler} if compilers else {}
        compiled = CFunc(self.function, signature, {}, known(self.options), **own)
        keep_in(compiled, self.cache)
        compiled.compile()
        assert compiled.address
        return compiled
