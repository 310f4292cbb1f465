"""Compiled kernels are kept, found again, and never trusted when damaged."""

import gc
import operator
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
import pytest
from numba import types
from numba.core.registry import cpu_target

from tinyft.backends.cpu.codegen import cache as compile_cache
from tinyft.backends.cpu.codegen import compiler

SCRIPT = """
import sys
import numba
import numpy as np
from tinyft.backends.cpu.codegen.cache import kernel

@kernel
def double(x):
    for i in range(x.size):
        x[i] *= 2

@numba.njit
def users_own(x):
    return x + 1

x = np.ones(3)
double(x)
assert (x == 2).all() and users_own(1) == 2
assert numba.config.CACHE_DIR == (sys.argv[1] if len(sys.argv) > 1 else "")
print(len(double.overloads), type(users_own._cache).__name__)
"""
MESSAGE = "tinyft: compiling kernels that are new to this CPU, once: about 15 s\n"


@pytest.fixture
def start(tmp_path):
    """Runs the script as a process of its own, with its cache in `home`."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    home = tmp_path / "home"
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    environment |= {"TINYFT_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(*arguments, wait=True, **more):
        process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return finish(process) if wait else process

    run.home = home
    return run


def finish(process):
    """What it wrote to stderr."""
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert out == "1 NullCache\n"
    return err


def kept_files(home):
    return sorted(home.glob("kernels-*/*.bin"))


@pytest.mark.slow
def test_compiled_once_announced_once(start):
    assert start() == MESSAGE
    assert len(kept_files(start.home)) == 1
    assert start() == ""
    assert len(kept_files(start.home)) == 1


@pytest.mark.slow
def test_loading_imports_nothing_that_only_compiling_needs(tmp_path):
    code = (
        "import sys, numpy, tinyft; tinyft.ops.relu(tinyft.Tensor(numpy.ones(3, 'float32')));"
        "print('numba.np.linalg' in sys.modules)"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}

    def start():
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, check=True, capture_output=True).stdout

    assert start() == b"True\n"
    assert start() == b"False\n"


def damage_nothing_left(file):
    shutil.rmtree(file.parent)


def damage_empty(file):
    file.write_bytes(b"")


def damage_half(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_bits(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def damage_other_content(file):
    compile_cache.write_payload(file, b"not a pickle, with the right checksum")


@pytest.mark.slow
def test_damaged_files_are_compiled_again(start):
    start()
    for damage in (
        damage_nothing_left, damage_empty, damage_half, damage_bits, damage_other_content
    ):  # fmt: skip
        damage(kept_files(start.home)[0])
        assert MESSAGE in start(), damage
        assert start() == "", damage  # and replaced


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_costs_one_warning(start):
    start.home.write_text("a file is in the way")
    error = start()
    assert error.count("compiled kernels cannot be kept in") == 1
    assert "set TINYFT_HOME to a folder that can be written" in error
    assert MESSAGE.replace(", once", "") in error


@pytest.mark.slow
def test_two_processes_at_once(start):
    said = [finish(process) for process in [start(wait=False) for _ in range(3)]]
    assert set(said) <= {"", MESSAGE}  # each compiles what no other has kept so far
    assert list(start.home.glob("kernels-*/*")) == kept_files(start.home)
    assert len(kept_files(start.home)) == 1
    assert start() == ""


@pytest.mark.slow
def test_numba_cache_dir_comes_first_and_stays_as_it_is(start, tmp_path):
    chosen = tmp_path / "chosen"
    start(str(chosen), NUMBA_CACHE_DIR=str(chosen))
    assert len(kept_files(chosen)) == 1
    assert not start.home.exists()


@pytest.mark.slow
def test_another_cpu_has_another_folder(start):
    start()
    start(NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    assert len(list(start.home.glob("kernels-*"))) == 2


def test_hash_changes_with_any_source_version_and_setting(monkeypatch, tmp_path):
    first = compile_cache.hash_of_everything()
    assert compile_cache.hash_of_everything() == first
    settings = ("OPT", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "LOOP_VECTORIZE", "SLP_VECTORIZE")
    decide = [(package, "__version__") for package in (numba, llvmlite, np)]
    decide += [(sys, "version"), *((numba.config, setting) for setting in settings)]
    for owner, name in decide:
        with monkeypatch.context() as changed:
            changed.setattr(owner, name, "another")
            assert compile_cache.hash_of_everything() != first, name
    here = Path(compile_cache.__file__).parents[1]
    shutil.copytree(here, tmp_path / "cpu")
    shutil.copy(here.parent / "philox.py", tmp_path)
    monkeypatch.setattr(compile_cache, "__file__", str(tmp_path / "cpu" / "codegen" / "cache.py"))
    assert compile_cache.hash_of_everything() == first
    for changed in ("cpu/codegen/generators.py", "cpu/conv/winograd/transforms.py", "philox.py"):
        before = compile_cache.hash_of_everything()
        with open(tmp_path / changed, "a") as source:
            source.write("\n")
        assert compile_cache.hash_of_everything() != before


@pytest.mark.slow
def test_flush(monkeypatch, tmp_path):
    monkeypatch.setattr(compile_cache, "folder", lambda: tmp_path)
    monkeypatch.setattr(
        compile_cache, "announcement", compile_cache.Announcement(lambda text: None)
    )

    @compile_cache.kernel
    def add(x):
        return x + 1

    assert add(1) == 2
    assert len(list(tmp_path.glob("*.bin"))) == 1
    add._cache.flush()
    assert not list(tmp_path.glob("*.bin"))


def test_functions_over_variables_are_not_kept(monkeypatch, tmp_path):
    """Two closures of one function look alike, but their code differs."""
    monkeypatch.setattr(compile_cache, "folder", lambda: tmp_path)

    def adder(amount):
        @compile_cache.kernel
        def add(x):
            return x + amount

        return add

    assert (adder(1)(1), adder(2)(1)) == (2, 3)
    assert not list(tmp_path.iterdir())


def test_functions_of_no_file_are_not_kept(monkeypatch, tmp_path):
    """Another version of a notebook's cell begins in the same line."""
    monkeypatch.setattr(compile_cache, "folder", lambda: tmp_path)
    found = []
    for amount in (1, 2):
        cell = {}
        exec(compile(f"def add(x):\n    return x + {amount}", "<cell>", "exec"), cell)
        found.append(compile_cache.kernel(cell["add"])(1))
    assert found == [2, 3]
    assert not list(tmp_path.iterdir())


def test_what_is_said_can_be_redirected():
    said = []
    announcement = compile_cache.Announcement(said.append)
    announcement.make()
    announcement.make()
    assert said == [MESSAGE.strip()]


def test_a_helper_has_one_version_for_numbers_written_and_computed():
    @compile_cache.helper
    def add(x, by):
        return x + by

    @compile_cache.kernel
    def add_three_ways(x, by):
        x[0] = add(add(add(x[0], 1), 2), by)

    x = np.zeros(1, np.int64)
    add_three_ways(x, 3)
    assert x[0] == 6
    assert len(add.signatures) == 1


def test_a_kernel_is_not_called_by_another():
    @compile_cache.kernel
    def inner(x):
        return x + 1

    @compile_cache.kernel
    def outer(x):
        return inner(x)

    with pytest.raises(numba.TypingError, match="inner is a kernel, which Python calls"):
        outer(1)


@pytest.mark.slow
def test_a_kernel_makes_no_array():
    @compile_cache.kernel
    def turn_round(x):
        x[:] = x.copy()[::-1]

    with pytest.raises(numba.TypingError, match="NRT required but not enabled"):
        turn_round(np.ones(2))


def test_numba_is_asked_once_which_function_adds(monkeypatch):
    monkeypatch.setattr(compiler.RememberingTypingContext, "found", {})
    context = cpu_target.typing_context
    add = context.resolve_value_type(operator.add)
    pairs = [(types.int64, types.int64), (types.int64, types.float32), (types.int64, types.int64)]
    expected = [context.resolve_function_type(add, pair, {}) for pair in pairs]
    asked = []

    class Counting:
        def resolve_function_type(self, function, arguments, named):
            asked.append(arguments)
            return context.resolve_function_type(function, arguments, named)

    remembering = compiler.RememberingTypingContext(Counting())
    assert [remembering.resolve_function_type(add, pair, {}) for pair in pairs] == expected
    assert asked == pairs[:2]


def test_the_llvm_code_of_a_kernel_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(compile_cache, "folder", lambda: tmp_path)

    @compile_cache.kernel
    def triple(x):
        return 3 * x

    assert triple(2) == 6
    (file,) = tmp_path.glob("*.bin")
    (_, kind, (machine_code, llvm_code)), *_ = pickle.loads(compile_cache.read_payload(file))
    assert kind == "object" and machine_code
    functions = llvm.parse_bitcode(llvm_code).functions
    assert {len(list(function.blocks)) for function in functions} == {1}  # return, and no more
    again = compile_cache.kernel(triple.py_func)
    assert again(2) == 6
    assert again._cache_hits


def test_a_full_disk_is_told_once(start, monkeypatch):
    monkeypatch.setattr(compile_cache, "_complaints", set())
    cache = compile_cache.KernelCache(test_what_is_said_can_be_redirected)
    with pytest.warns(RuntimeWarning) as told:
        for _ in range(3):
            cache._complain("kept", OSError(28, "No space left on device"))
        cache._complain("loaded", ValueError("other"))
    assert [str(warning.message).count("No space left") for warning in told] == [1, 0]


def test_a_helper_gets_no_machine_code_of_its_own():
    factor = 3

    @compile_cache.helper
    def inner(x):
        return x * factor

    @compile_cache.helper
    def outer(x):
        return inner(x) + 1

    @compile_cache.kernel
    def whole(x):
        return outer(x)

    assert whole(2) == 7
    for helper in (inner, outer):
        (compiled,) = helper.overloads.values()
        assert compiled.library.get_pointer_to_function(compiled.fndesc.mangled_name) == 0
    (compiled,) = whole.overloads.values()
    assert compiled.library.get_pointer_to_function(compiled.fndesc.mangled_name) != 0


@pytest.mark.parametrize("collecting", [True, False])
def test_garbage_is_collected_as_before_once_a_kernel_is_compiled(collecting):
    before, during = gc.isenabled(), []

    @numba.extending.overload(during.append)  # Numba asks this while it compiles
    def _append(number):
        during.append(gc.isenabled())
        return lambda number: None

    append, other = during.append, object()

    @compile_cache.kernel
    def well(number):
        append(number)

    @compile_cache.kernel
    def badly(number):
        return other + number

    try:
        (gc.enable if collecting else gc.disable)()
        well(2)
        assert gc.isenabled() == collecting
        with pytest.raises(numba.TypingError):
            badly(2)
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()
    assert set(during) == {False}


def test_what_interrupts_compiling_does_not_compile(monkeypatch):
    """As a signal handler may, within LLVM's own structures, which then ends the process."""
    monkeypatch.setattr(compile_cache, "folder", lambda: None)

    def increment(number):
        return number + 1

    ready, interrupted, other = (compile_cache.kernel(increment) for _ in range(3))
    assert ready(1) == 2
    found = []

    def handler():
        found.append(ready(2))
        with pytest.raises(RuntimeError, match="kernel increment is not compiled yet, and cannot"):
            other(1)

    monkeypatch.setattr(compile_cache.announcement, "make", handler)
    assert interrupted(1) == 2
    monkeypatch.undo()
    assert (found, other(1)) == ([3], 2)
