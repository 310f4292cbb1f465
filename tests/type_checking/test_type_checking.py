"""What an editor and a type checker know of tinyft. The checkers are the extra "types".

The package's own rules for them, and what is left out and why, stand in pyproject.toml.
"""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinyft

ROOT = Path(__file__).parents[2]
USER = Path(__file__).with_name("user.py")
CHECKERS = {
    "pyright": ["pyright", "--pythonpath", sys.executable],
    "mypy": ["mypy"],
}


def for_editors(package):
    """{name: what it is} of the imports that stand under `if TYPE_CHECKING` in a package."""
    found = {}
    for node in ast.parse(Path(package.__file__).read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exec("\n".join(map(ast.unparse, node.body)), found)
    del found["__builtins__"]
    return found


@pytest.mark.parametrize("name", ["tinyft", "finetune", "inspection", "testing"])
def test_an_editor_sees_each_name_that_is_looked_up(name):
    package = tinyft if name == "tinyft" else getattr(tinyft, name)
    seen = for_editors(package)
    assert sorted(seen) == sorted(set(package.__all__) - {"__version__"})
    for each, value in seen.items():
        assert getattr(package, each) is value, each


def checked(name, *arguments):
    """What a type checker says: its errors, as (file name, line), and all of its text."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f'{name} is not installed; pip install ".[types]"')
    command = [sys.executable, "-m", *CHECKERS[name], *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    said = done.stdout + done.stderr
    lines = re.findall(r"([\w]+\.py):(\d+):(?:\d+)?.*\berror\b", said)
    return {(file, int(line)) for file, line in lines}, said


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKERS)
def test_a_type_checker_finds_the_mistakes_of_a_script_and_nothing_else(name):
    marked = {
        (USER.name, number)
        for number, line in enumerate(USER.read_text().splitlines(), 1)
        if "# mistake" in line
    }
    strict = ["--strict"] if name == "mypy" else []  # pyright is told in the script
    found, said = checked(name, *strict, str(USER))
    assert found == marked and len(marked) == 3, said


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKERS)
def test_the_package_has_no_type_errors(name):
    found, said = checked(name)
    assert not found and re.search(r"Success|0 errors", said), said


@pytest.mark.slow
def test_going_to_a_definition_ends_in_the_source():
    jedi = pytest.importorskip("jedi", reason='jedi is not installed; pip install ".[types]"')
    code = "import tinyft as ft\nft.vision_learner\nft.ops.conv2d\nft.Learner.predict\n"
    expected = ["build.py", "convolution.py", "learner.py"]
    script = jedi.Script(code, project=jedi.Project(ROOT))
    for line, file in enumerate(expected, 2):
        column = len(code.splitlines()[line - 1])
        (found, *_) = script.goto(line, column, follow_imports=True)
        assert Path(found.module_path).name == file, found
