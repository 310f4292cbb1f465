"""A Numba without a name that we use: kernels compute the same, and that is said once."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tinyft

pytestmark = pytest.mark.slow


ROOT = Path(tinyft.__file__).parent
FOLDER = ROOT / "backends" / "cpu" / "codegen"
FILE = "compiler.py"
PROMISED = ("numba", "numba.extending", "llvmlite", "llvmlite.binding")

# In a process of its own: each change of a source is made, and a kernel with a helper (or an op)
# computes with it. A name of ours that is changed is as a name of Numba's that is gone,
# but Numba itself can still use it.
CHILD = """
import ast, importlib, importlib.util, os, sys, warnings
import numpy as np
from pathlib import Path

root, what = Path(sys.argv[1]), sys.argv[2]
import tinyft
from tinyft.errors import TinyftError

def renamed(source, line, column, name):
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (getattr(node, "lineno", 0), getattr(node, "col_offset", 0)) == (line, column):
            if isinstance(node, ast.alias) and node.name == name:
                node.asname, node.name = node.asname or name, name + "_gone"
            elif isinstance(node, ast.Attribute) and node.attr == name:
                node.attr += "_gone"
    return tree

class Changed:
    def __init__(self, file, line, column, name):
        self.file, self.at = file, (line, column, name)
    def find_spec(self, name, path=None, target=None):
        if name == "tinyft.backends.cpu.codegen." + self.file.removesuffix(".py"):
            return importlib.util.spec_from_file_location(name, root / self.file, loader=self)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        tree = renamed((root / self.file).read_text(), *self.at)
        exec(compile(tree, str(root / self.file), "exec"), module.__dict__)

KERNEL = '''
from tinyft.backends.cpu.codegen.cache import helper, kernel

@helper
def double_from(x, first):
    for i in range(first, x.size):
        x[i] *= 2

@kernel
def double_all_but_one(x):
    double_from(x, 1)
'''

def compute():
    if what == "op":
        from tinyft import backends
        x = tinyft.ops.relu(tinyft.Tensor(np.float32([-1, 2])))
        assert x.data.tolist() == [0, 2], x
        return backends.get("auto").name
    cell = {"__name__": "cell"}
    exec(compile(KERNEL, __file__, "exec"), cell)
    x = np.ones(3, np.float32)
    cell["double_all_but_one"](x)
    assert x.tolist() == [1, 2, 2], x
    return "cpu"

for number, line in enumerate(sys.stdin):
    file, *at, name = line.split()
    os.environ["NUMBA_CACHE_DIR"] = sys.argv[3] + str(number)  # where nothing is compiled yet
    change = Changed(file, *map(int, at), name)
    for module in [m for m in sys.modules if m.startswith("tinyft.backends.cpu")]:
        del sys.modules[module]
    import tinyft.backends
    vars(tinyft.backends).pop("cpu", None)
    for cached in (tinyft.backends.get, tinyft.backends.why_no_numba):
        cached.cache_clear()
    sys.meta_path.insert(0, change)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = compute()
        except BaseException as error:
            found = f"{type(error).__name__}: {error}".splitlines()[0]
    sys.meta_path.remove(change)
    texts = [" ".join(str(warning.message).split()) for warning in said]
    print(line.strip(), len(said), found, *texts, sep="\\t", flush=True)
"""


def names_of_numba(file):
    """(line, column, name) of each import and attribute in a file that may be one of Numba's."""
    tree = ast.parse((FOLDER / file).read_text())
    ours = {"append", "cost", "items"}  # Python's, this file's
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            ours.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            ours |= {node.attr} if getattr(node.value, "id", None) == "self" else set()
    modules = {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.Import)
               for a in n.names if a.name.split(".")[0] not in ("numba", "llvmlite")}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("numba", "llvmlite"):
            for alias in node.names:
                if node.module not in PROMISED or alias.name.startswith("_"):
                    yield alias.lineno, alias.col_offset, alias.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            if node.attr in ours or getattr(node.value, "id", None) in modules:
                continue
            yield node.lineno, node.col_offset, node.attr


def test_only_these_files_know_names_that_numba_does_not_promise():
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            modules += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                private = module.split(".")[0] in ("numba", "llvmlite") and module not in PROMISED
                if private or (module == "numba" and any(a.name[0] == "_" for a in node.names)):
                    found.setdefault(path.name, []).append(module)
    assert list(found) == [FILE], found


def without(changes, what, tmp_path):
    """Each change, how many notices there were, and which backend computed."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    environment = os.environ | {
        "TINYFT_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, str(script), str(FOLDER), what, str(tmp_path)],
        input="".join(f"{file} {line} {column} {name}\n" for file, line, column, name in changes),
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(rows) == len(changes)
    return rows


def matrix():
    return [(FILE, *at) for at in names_of_numba(FILE)]


@pytest.mark.usefixtures("compiled")
def test_without_each_name_kernels_compute_and_it_is_said_once(tmp_path):
    assert len(matrix()) > 60
    rows = without(matrix(), "kernel", tmp_path)
    wrong = [row for row in rows if int(row[1]) > 1 or row[2] != "cpu"]
    assert not wrong
    costs = {row[0].split()[-1]: " ".join(row[3:]) for row in rows}
    assert "compiling takes twice as long" in costs["make_function"]
    assert "compiled kernels cannot be kept" in costs["dumps"]


@pytest.mark.usefixtures("compiled")
def test_where_no_kernel_can_be_made_plain_numpy_computes(tmp_path):
    line = next(
        (alias.lineno, alias.col_offset, alias.name)
        for node in ast.walk(ast.parse((FOLDER / "simd.py").read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == "intrinsic"
    )
    ((_, notices, backend, text),) = without([("simd.py", *line)], "op", tmp_path)
    assert (notices, backend) == ("1", "reference")
    assert "plain NumPy computes, many times slower than Numba would" in text
    assert "cannot import name 'intrinsic_gone'" in text


WITHOUT_NUMBA = """
import sys
import numpy as np

class NoNumba:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("numba", "llvmlite"):
            raise ModuleNotFoundError(f"No module named {name!r}")

if "absent" in sys.argv:
    sys.meta_path.insert(0, NoNumba)
import tinyft as ft

x = ft.Tensor(np.ones(3, np.float32))
ft.testing.check_op(ft.testing.OP_CASES[0], "reference")
print(x.to("cpu").data, ft.nn.Linear(2, 2).to("cpu").weight.shape)
print(ft.ops.relu(x).data, ft.ops.relu(x).data, ft.backends.get("auto").name)
from tinyft.cli.main import main
sys.exit(main(["finetune", "--backend", "cpu"]))
"""


@pytest.mark.parametrize("how", ["absent", "switched off"])
def test_without_numba_the_plain_path_works(how):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    if how == "switched off":
        pytest.importorskip("numba")
        environment["NUMBA_DISABLE_JIT"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMBA, how], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "[1. 1. 1.] (2, 2)\n[1. 1. 1.] [1. 1. 1.] reference\n", done.stderr
    assert done.stderr.count("plain NumPy computes, many times slower") == 1
    assert done.returncode == 2
    remedy = "`pip install numba` (No module named 'numba')"
    assert f"needs Numba: {remedy if how == 'absent' else 'unset NUMBA_DISABLE_JIT'}" in done.stderr
