"""Compiles kernels, and keeps the compiled code from one process to the next.

    @kernel                     # called from Python, most by threads.run
    @helper                     # called by kernels only

Compiling all kernels takes about 15 seconds, loading them from disk a quarter of a second. Numba's
own cache looks at the file of the kernel alone (an edit in generators.py would go unnoticed), stops
on a damaged file or a folder that it may not write, and is configured by one variable for all of a
program's functions. So each of our kernels gets a `KernelCache`, and nothing global is touched.

**Folder**: `kernels-HASH` in NUMBA_CACHE_DIR, else in TINYFT_HOME, else in the platform's cache
folder. The hash covers the sources of backends/cpu and philox.py, the versions of Python, Numba,
llvmlite and NumPy, the CPU, and Numba's settings. Folders of other versions stay: some 2 MB each.
**File**: one per kernel and signature: a SHA-256 and what it covers. It is written under another
name and then moved, so two processes may write at once (each then compiles for itself, to the same
code). A file that is damaged counts as absent: the kernel is compiled and the file replaced.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
import platformdirs
from numba import TypingError, config

from tinyft import progress
from tinyft.backends.cpu.codegen import compiler
from tinyft.backends.cpu.codegen.simd import requested_cpu

# kernels that training and judging compile: 37 for the sample run, 39 for a ResNet-18
OF_A_RUN = 40
DIGEST_SIZE = hashlib.sha256().digest_size


def helper(function: Callable, *, reorder: bool = False) -> Callable:
    """Compile `function` where kernels call it, and put its code in place of the call.

    `reorder` lets LLVM add up floats in another order than written, so that a sum becomes vector
    code. NaN and infinity keep their meaning.

    Numba compiles a version for each set of argument types, and to Numba a literal at the call is a
    type of its own: `multiply` alone was compiled nine times. Here a literal counts as an int64,
    which takes 6 s off a first start; LLVM sees its value at the call all the same.
    """
    fastmath = {"reassoc", "contract"} if reorder else False
    compiled = compiler.dispatcher(
        function, helper=True, forceinline=True, no_cpython_wrapper=True, fastmath=fastmath
    )
    compiler.without_literals(compiled)
    return compiled


def kernel(function: Callable) -> Callable:
    """Compile `function` when it is first called, without the GIL, and keep the code on disk.

    Another kernel cannot call it: only machine code is kept, which cannot become a part of
    another's. A kernel or helper computes with scalars, with arrays that it is given, their slices,
    and tuples: it makes no array or list, and defines no function.
    """
    compiled = compiler.dispatcher(function, helper=False)
    compiled.get_call_template = functools.partial(_refuse_call, function)
    compiled.compile = functools.partial(_compile_alone, function, compiled.compile)
    # Kept where a file says all of its code: not a closure's, nor a notebook's cell.
    if function.__closure__ is None and _content(inspect.getfile(function)):
        compiler.keep_in(compiled, KernelCache(function))
    return compiled


def _refuse_call(function: Callable, *types_of_arguments) -> None:
    name = function.__name__
    raise TypingError(f"{name} is a kernel, which Python calls; what kernels call is a @helper")


def _compile_alone(function: Callable, compile_it: Callable, signature: tuple) -> Callable:
    """Numba and LLVM are not made to be called from within themselves: that may end the process."""
    if compiler.is_compiling():
        raise RuntimeError(
            f"kernel {function.__name__} is not compiled yet, and cannot be by a call that "
            "interrupts compiling, as from a signal handler; compute once before signals come, or "
            "let the handler set a flag and compute later"
        )
    return compile_it(signature)


# ------------------------------------------------------------------------------------ announcement


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Announcement:
    """Says once per process that compilation begins, then counts the kernels; `say` may be
    exchanged.
    """

    def __init__(self, say: Callable[[str], None] = _say) -> None:
        self.say = say
        self.lock = threading.Lock()
        self.kernels = 0

    def make(self) -> None:
        """Tell of one more kernel."""
        with self.lock:
            before, self.kernels = self.kernels, self.kernels + 1
        if before == 0:
            once = ", once" if folder() is not None else ""
            self.say(f"tinyft: compiling kernels that are new to this CPU{once}: about 15 s")
        if display := progress.shown():
            display.compile(before, OF_A_RUN)


announcement = Announcement()


# ------------------------------------------------------------------------------------------ folder


@functools.cache
def folder() -> Path | None:
    """Return the folder of this version's kernels; None, with one warning, if nothing can be
    written, or if there are no sources to tell one version from the next, as in a frozen program.
    """
    if not _sources():
        return None
    place = cache_home() / f"kernels-{hash_of_everything()}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return place
    except OSError as error:
        warnings.warn(
            f"compiled kernels cannot be kept in {place} ({error.strerror}), so every start takes "
            "about 15 s longer; set TINYFT_HOME to a folder that can be written",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def cache_home() -> Path:
    """Choose NUMBA_CACHE_DIR, else TINYFT_HOME, else the platform's cache folder."""
    home = os.path.expanduser(os.environ.get("TINYFT_HOME", ""))
    chosen = os.environ.get("NUMBA_CACHE_DIR") or home
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("tinyft"))


def hash_of_everything() -> str:
    """Give 16 hexadecimal digits that change when compiled code may."""
    digest = hashlib.sha256()
    for source in _sources():
        digest.update(source.read_bytes())
    versions = sys.version, numba.__version__, llvmlite.__version__, np.__version__
    digest.update(repr((versions, _cpu(), _settings())).encode())
    return digest.hexdigest()[:16]


def _sources() -> list[Path]:
    cpu = Path(__file__).parents[1]
    return sorted([*cpu.rglob("*.py"), *cpu.parent.glob("philox.py")])  # whose constants it uses


def _settings() -> list[str]:
    """Numba's settings, from variables such as NUMBA_BOUNDSCHECK, that change compiled code."""
    names = "OPT", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "LOOP_VECTORIZE", "SLP_VECTORIZE"
    return [f"{name}={getattr(config, name, None)}" for name in names]


def _cpu() -> tuple[str, str]:
    """Name and features of the CPU that Numba compiles for."""
    if any(requested_cpu()):
        return requested_cpu()
    try:
        return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    except RuntimeError:  # LLVM cannot tell on this system
        return "unknown", ""


# -------------------------------------------------------------------------------------------- cache

_complaints: set[tuple] = set()


class KernelCache:
    """One kernel's files, with the methods that Numba calls when a signature is first needed."""

    def __init__(self, function: Callable) -> None:
        self.function = function

    @property
    def cache_path(self) -> str:
        return str(folder())

    def flush(self) -> None:
        """Forget what was kept for this kernel."""
        if (kept := folder()) is not None:
            for file in kept.glob(f"{_prefix(self.function)}-*.bin"):
                file.unlink(missing_ok=True)

    def load_overload(self, signature, target_context):
        """The compiled kernel, or None, upon which Numba compiles it."""
        file = self._file(signature)
        payload = None if file is None else read_payload(file)
        if payload is not None:
            try:
                return compiler.unpacked(payload, target_context)
            except Exception as error:  # whatever is wrong with it, it can be compiled
                self._complain("loaded", error)
        announcement.make()
        return None

    def save_overload(self, signature, compiled) -> None:
        """Keep what was just compiled."""
        file = self._file(signature)
        if file is None:
            return
        try:
            write_payload(file, compiler.packed(compiled))
        except (AttributeError, ImportError) as error:
            compiler.note(error, compiler.NOT_KEPT)
        except Exception as error:  # a full disk, for example: it runs all the same
            self._complain("kept", error)

    def _file(self, signature) -> Path | None:
        if (kept := folder()) is None:
            return None
        line = self.function.__code__.co_firstlineno
        source = _content(inspect.getfile(self.function))  # which need not be in this folder
        key = repr((signature, line)).encode() + source
        return kept / f"{_prefix(self.function)}-{hashlib.sha256(key).hexdigest()[:16]}.bin"

    def _complain(self, what: str, error: Exception) -> None:
        """Once for each kind of trouble: a full disk is the same for all kernels."""
        trouble = what, type(error), getattr(error, "errno", None)
        if trouble not in _complaints:
            _complaints.add(trouble)
            name = self.function.__name__
            text = f"kernel {name} could not be {what} in {folder()}: {error!r}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)


def _prefix(function: Callable) -> str:
    return f"{function.__module__}.{function.__qualname__}".replace("<locals>.", "")


def _content(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError:  # no such file: a notebook's cell
        return b""


def read_payload(file: Path) -> bytes | None:
    """Return what `write_payload` wrote; None if the file is absent or damaged."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    digest, payload = data[:DIGEST_SIZE], data[DIGEST_SIZE:]
    return payload if hashlib.sha256(payload).digest() == digest else None


def write_payload(file: Path, payload: bytes) -> None:
    """Write SHA-256 and payload, under another name first: nobody sees half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix="unfinished-", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(hashlib.sha256(payload).digest() + payload)
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
