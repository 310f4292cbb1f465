"""The shape of the source: who imports whom, how long things are, what `import tinyft` loads.

    python -m pytest tests/test_structure.py -k rooms -s        prints rooms, arrows and floors

A room is a file at the root of the package or a folder there; an arrow, two rooms with an import
between them. Every import counts: lazy ones, and those for type checking alone.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

import tinyft
from tinyft.seeds import generator

PACKAGE = Path(tinyft.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Lowest first: a room may import from its own line and from the lines above it. The names of the
# package, `tinyft/__init__.py`, stand on top of all.
ORDER = [
    ["errors", "seeds", "display", "progress", "lazy", "version"],
    ["bundled"],
    ["backends"],
    ["engine"],
    ["ops"],
    ["nn"],
    ["testing"],
    ["weights"],
    ["data"],
    ["finetune"],
    ["inspection"],
    ["bench"],
    ["learn"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}

MOST_ROOMS, MOST_ARROWS = 22, 87
MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 60
MOST_KERNEL_LINES = 80  # one loop nest


def module_of(path):
    """tinyft/ops/conv2d.py -> tinyft.ops.conv2d"""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def imports(path):
    """Every module of tinyft that a file imports, anywhere in it: (line, module, name), `name` None
    for a module. A package that is named as the parent of a module does not count.
    """
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "tinyft":
                    yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: name the module from tinyft on"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in MODULES:
                    yield node.lineno, whole, None
                elif node.module.split(".")[0] == "tinyft":
                    yield node.lineno, node.module, alias.name


IMPORTS = {name: list(imports(path)) for name, path in MODULES.items()}


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "tinyft"


def code_lines(source, tree):
    """The numbers of the lines that hold code: no blank lines, comments or docstrings."""
    quiet = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
        tokenize.ENDMARKER,
    }  # fmt: skip
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in quiet:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def name_of(path):
    return str(path.relative_to(PACKAGE.parent))


# ------------------------------------------------------------------------------------ who uses whom


def test_every_room_has_a_place_in_the_order():
    found = {room_of(module) for module in MODULES} - {"tinyft"}
    assert found == set(LEVEL), f"ORDER differs in {found ^ set(LEVEL)}"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "tinyft"])
def test_imports_go_down_only(module):
    for line, other, name in IMPORTS[module]:
        where = f"{name_of(MODULES[module])}:{line}"
        assert other != "tinyft", f"{where} takes {name} from the root, which stands above it"
        own_package = module.rpartition(".")[0] == other or module.startswith(f"{other}.")
        is_package = MODULES[other].name == "__init__.py"
        assert not (is_package and own_package and name), (
            f"{where} takes {name} from its own package's __init__: name the file that has it"
        )
        assert LEVEL[room_of(other)] <= LEVEL[room_of(module)], (
            f"{where} imports {other}, which stands above it"
        )


def circles():
    """Modules that reach themselves through imports, in groups (Tarjan's algorithm)."""
    index, low, stack, found = {}, {}, [], []

    def visit(module):
        index[module] = low[module] = len(index)
        stack.append(module)
        for _, other, _ in IMPORTS[module]:
            if other not in index:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[-len(group) :]
            if len(group) > 1:
                found.append(set(group))

    for module in MODULES:
        if module not in index:
            visit(module)
    return found


def test_no_imports_go_in_circles():
    assert [sorted(group) for group in circles()] == []


def test_rooms_and_arrows_are_few(capsys):
    arrows = {
        (room_of(module), room_of(other))
        for module, found in IMPORTS.items()
        for _, other, _ in found
        if room_of(module) != room_of(other) and module != "tinyft"  # a list of names: uses nothing
    }
    rooms = {room_of(module) for module in MODULES}
    below = defaultdict(set)
    for upper, lower in arrows:
        below[upper].add(lower)

    def floor(room):
        return 1 + max(map(floor, below[room]), default=0)

    counts = f"{len(rooms)} rooms, {len(arrows)} arrows, {max(map(floor, rooms))} floors"
    print(f"\n{counts}, {len(circles())} circles, {len(FILES)} files")
    assert len(rooms) <= MOST_ROOMS and len(arrows) <= MOST_ARROWS


# ------------------------------------------------------------------------------- names and lengths


def test_no_siblings_share_a_prefix():
    """What two names begin with is a folder's name."""
    shared = []
    for folder in {path.parent for path in FILES}:
        names = defaultdict(list)
        for path in folder.iterdir():
            if (path.suffix == ".py" and path.stem[:2] != "__") or (path / "__init__.py").exists():
                names[path.stem.split("_")[0]].append(name_of(path))
        shared += [sorted(group) for group in names.values() if len(group) > 1]
    assert shared == []


def test_a_short_file_is_used_by_two_others():
    """Every file is a hop for its reader. Commands stand in a file each."""
    for module, path in MODULES.items():
        if path.name[:2] == "__" or path.parent.name == "cli":
            continue
        users = [name for name, found in IMPORTS.items() if module in {m for _, m, _ in found}]
        lines = len(path.read_text().splitlines())
        if path.with_suffix(".cu").exists():  # the two are one
            continue
        assert lines >= 60 or len(users) > 1, f"{name_of(path)}: {lines} lines for {users}"


def test_every_file_is_used():
    """A convolution's algorithm, for example, has a row in the table."""
    used = {module for found in IMPORTS.values() for _, module, _ in found}
    unused = {name for name, path in MODULES.items() if path.name != "__init__.py"} - used
    by_name = {"tinyft.__main__", "tinyft.inspection.report.notebook"}  # named as texts
    assert unused == by_name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path):
    lines = code_lines(path.read_text(), TREES[path])
    assert len(lines) <= MOST_FILE_LINES, f"{len(lines)} lines of code"
    most = MOST_KERNEL_LINES if "backends" in path.parts else MOST_FUNCTION_LINES
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = len(lines & set(range(node.lineno, node.end_lineno + 1)))
            assert count <= most, f"{name_of(path)}:{node.lineno} {node.name} has {count} lines"


# ------------------------------------------------------------------------------------ what is there


def test_what_random_numbers_are_drawn_for_is_listed_where_they_are_made():
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    drawn = {node.args[1].value for node in calls if ast.unparse(node.func) == "generator"}
    listed = set(re.findall(r"\w+", generator.__doc__))
    assert drawn and drawn <= listed


def in_a_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_importing_tinyft_loads_neither_numba_nor_h5py_nor_pillow():
    heavy = "{'numba', 'llvmlite', 'h5py', 'PIL', 'rich', 'cupy'}"
    code = f"import sys, tinyft; print(sorted({heavy} & set(sys.modules)))"
    assert in_a_new_process(code) == "[]"
    # nor does computing on the reference backend
    code = (
        "import sys, tinyft as ft\n"
        "with ft.backends.use('reference'): ft.ops.relu(ft.Tensor([1.0]))\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    assert in_a_new_process(code) == "[]"


@pytest.mark.slow
def test_an_optimizer_comes_without_what_reads_pictures_and_weights():
    code = (
        "import sys, tinyft as ft; ft.SGD, ft.finetune.Group\n"
        "print({'tinyft.data', 'tinyft.weights', 'tinyft.finetune.learner'} & set(sys.modules))"
    )
    assert in_a_new_process(code) == "set()"


@pytest.mark.parametrize("package", ["finetune", "inspection", "testing", "weights", "nn", "ops"])
def test_every_name_of_a_package_is_there(package):
    package = getattr(tinyft, package)
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)


@pytest.mark.parametrize("name", tinyft.__all__)
def test_every_public_name_is_there(name):
    assert getattr(tinyft, name) is not None
    assert name in dir(tinyft)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'tinyft' has no attribute 'nothing'"):
        _ = tinyft.nothing


@pytest.mark.slow
def test_gradcheck_is_the_function_whatever_was_imported_before():
    code = (
        "import tinyft.testing.gradient_check, tinyft.testing, tinyft\n"
        "from tinyft.testing.gradient_check import gradcheck\n"
        "print(tinyft.gradcheck is gradcheck, callable(tinyft.gradcheck))"
    )
    assert in_a_new_process(code) == "True True"
