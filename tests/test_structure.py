"""The shape of the source: who imports whom, how long things are, what `import tinyft` loads."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import tinyft

PACKAGE = Path(tinyft.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Lowest first: a module may import from its own line and from the lines above it.
ORDER = [
    ["errors", "bundled", "display", "lookup", "seeds"],
    ["backends"],
    ["tensor", "op_mistakes", "tensor_text"],
    ["ops"],
    [
        "gradient_causes",
        "gradient_check",
        "gradient_comparison",
        "gradient_function",
        "gradient_report",
        "kernel_cases",
        "op_cases",
        "testing",
    ],
    ["nn"],
    ["weights"],
    ["data"],
    ["finetune"],
    ["inspection"],
    [
        "bench",
        "bench_accuracy",
        "bench_frozen",
        "bench_gpu",
        "bench_onnx",
        "bench_overhead",
        "bench_processes",
        "bench_torch",
        "bench_torch_kernels",
        "bench_torch_learner",
        "compile_ahead",
        "compile_gradients",
    ],
    ["cli", "__main__"],
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}

MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 40
MOST_KERNEL_LINES = 80  # one loop nest


def module_of(path):
    """tinyft/ops/conv2d.py -> tinyft.ops.conv2d"""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path):
    """Every module of tinyft that a file imports, anywhere in it: (line, dotted name)."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                yield (
                    node.lineno,
                    whole
                    if (PACKAGE.parent / whole.replace(".", "/")).exists()
                    or (PACKAGE.parent / (whole.replace(".", "/") + ".py")).exists()
                    else source,
                )


def level_of(module):
    parts = module.split(".")
    return LEVEL[parts[1]] if len(parts) > 1 else None


def code_lines(source):
    """The numbers of the lines that hold code: no blank lines, comments or docstrings."""
    quiet = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
        tokenize.ENDMARKER,
    }  # fmt: skip
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in quiet:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def name_of(path):
    return str(path.relative_to(PACKAGE.parent))


def test_every_module_has_a_place_in_the_order():
    found = {module_of(p).split(".")[1] for p in FILES if module_of(p) != "tinyft"}
    assert found <= set(LEVEL), f"add {found - set(LEVEL)} to ORDER, in its place"


@pytest.mark.parametrize("path", [p for p in FILES if module_of(p) != "tinyft"], ids=name_of)
def test_imports_go_down_only(path):
    here = level_of(module_of(path))
    upward = [
        f"{name_of(path)}:{line} imports {module}, which stands above it"
        for line, module in imported_modules(path)
        if module.split(".")[0] == "tinyft" and module != "tinyft" and level_of(module) > here
    ]
    assert not upward, "\n".join(upward)


@pytest.mark.parametrize("path", [p for p in FILES if module_of(p) != "tinyft"], ids=name_of)
def test_nothing_inside_imports_the_whole_package(path):
    """`import tinyft as ft` inside would reach every layer without the order noticing; its version
    comes with `from tinyft import __version__`.
    """
    whole = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) and any(a.name == "tinyft" for a in node.names)
    ]
    assert not whole, f"{name_of(path)}: import tinyft in lines {whole}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path):
    source = path.read_text()
    lines = code_lines(source)
    assert len(lines) <= MOST_FILE_LINES, f"{len(lines)} lines of code"
    most = MOST_KERNEL_LINES if "backends" in path.parts else MOST_FUNCTION_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = len(lines & set(range(node.lineno, node.end_lineno + 1)))
            assert count <= most, f"{name_of(path)}:{node.lineno} {node.name} has {count} lines"


def following(path):
    """The file that the last line of a page, or of a module's docstring, names."""
    text = path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    lines = text.strip().splitlines() or [""]
    assert lines[-1].startswith("Next: "), f"{path}: the last line does not name the next file"
    return PACKAGE.parent / lines[-1].removeprefix("Next: ")


def test_the_next_lines_lead_through_every_file_once():
    path, read = PACKAGE / "__init__.py", []
    while path != PACKAGE.parent / "README.md":
        assert path not in read, f"two files name {name_of(path)}"
        read.append(path)
        path = following(path)
    assert {path for path in read if path.suffix == ".py"} == set(FILES)


def in_a_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


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


def test_plain_pytest_finds_what_the_tests_import(tmp_path):
    """`python -m pytest` has the checkout on its path, `pytest` has not."""
    line = "import sys, pytest; sys.path.remove(''); sys.exit(pytest.main(sys.argv[1:]))"
    root = PACKAGE.parent
    options = ["-q", "--collect-only", "-p", "no:cacheprovider", "tests/cli/test_sample.py"]
    done = subprocess.run(
        [sys.executable, "-c", line, *options], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_an_optimizer_comes_without_what_reads_pictures_and_weights():
    code = (
        "import sys, tinyft as ft; ft.SGD, ft.finetune.Group\n"
        "print({'tinyft.data', 'tinyft.weights', 'tinyft.finetune.learner'} & set(sys.modules))"
    )
    assert in_a_new_process(code) == "set()"


@pytest.mark.parametrize("name", tinyft.finetune.__all__)
def test_every_name_for_fine_tuning_is_there(name):
    assert getattr(tinyft.finetune, name) is not None
    assert name in dir(tinyft.finetune)


@pytest.mark.parametrize("name", tinyft.__all__)
def test_every_public_name_is_there(name):
    assert getattr(tinyft, name) is not None
    assert name in dir(tinyft)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'tinyft' has no attribute 'nothing'"):
        _ = tinyft.nothing


def test_gradcheck_is_the_function_whatever_was_imported_before():
    code = (
        "import tinyft.gradient_check, tinyft.testing, tinyft\n"
        "from tinyft.gradient_check import gradcheck\n"
        "print(tinyft.gradcheck is gradcheck, callable(tinyft.gradcheck))"
    )
    assert in_a_new_process(code) == "True True"
