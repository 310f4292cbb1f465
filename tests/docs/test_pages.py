"""The pages say what is true: their code runs, their commands, files, names and numbers exist."""

import argparse
import ast
import importlib
import os
import re
import subprocess
import sys
from inspect import isfunction
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from PIL import Image

import tinyft
from tinyft import weights
from tinyft.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("README.md", "TOUR.md", "CHANGELOG.md", "CONTRIBUTING.md")
PAGES = [*(ROOT / name for name in NAMES), *(ROOT / "docs").glob("*.md")]
TEXT = {page.name: page.read_text() for page in PAGES}
# The learner's methods that its loop is made of; whoever needs them reads the loop.
PARTS_OF_A_STEP = {
    "adjusted_preprocess", "enter", "expect_features", "input", "logits", "loss", "own_data",
    "set_rates", "train_step",
}  # fmt: skip
CITED = re.compile(r"`(tinyft/[\w/]+\.py): ([\w.]+)`")


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def in_a_new_process(code, folder, **variables):
    variables["PYTHONPATH"] = str(Path(tinyft.__file__).parents[1])
    variables["TINYFT_OFFLINE"] = "1"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def photographs(folder):
    """photos/CLASS/*.png, told apart by their colour, and rose.jpg."""
    rng = np.random.default_rng(0)
    for name, colour in {"daisy": (200, 200, 160), "rose": (160, 0, 40)}.items():
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.clip(rng.normal(colour, 30, (60, 80, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{i}.png")
    Image.fromarray(pixels).save(folder / "rose.jpg")


def published(folder):
    """A random network where the published ResNet-18 is kept once it was fetched."""
    entry = weights.find("resnet18")
    path = folder / "weights" / f"{entry.id.replace('/', '_')}.h5"
    path.parent.mkdir(parents=True)
    recipe = weights.Preprocess.for_architecture("resnet18")
    arrays = tinyft.resnet18(seed=0).state_dict()
    tinyft.save_weights(path, weights.Weights("resnet18", arrays, None, recipe))


@pytest.mark.slow
def test_the_screen_of_code_runs(tmp_path):
    photographs(tmp_path)
    published(tmp_path / "home")
    code = blocks(TEXT["README.md"], "python")[0]
    assert "size=224" in code
    code = code.replace("size=224", "size=64")  # a twelfth of the work
    home = os.environ.get("TINYFT_HOME") or platformdirs.user_cache_dir("tinyft")
    variables = {
        "TINYFT_HOME": str(tmp_path / "home"),
        "NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR") or home,  # its kernels are compiled
    }
    out = in_a_new_process(code, tmp_path, **variables)
    assert "Phase 2: everything, 3 epochs" in out
    assert "Prediction(file='rose.jpg', label=" in out
    assert (tmp_path / "flowers.h5").exists()


@pytest.mark.slow
def test_the_operation_of_the_readme_has_the_right_gradient(tmp_path):
    code = blocks(TEXT["README.md"], "python")[1]
    assert "gradcheck swish: passed" in in_a_new_process(code, tmp_path)
    assert "(1 + x.data * (1 - s))" in code
    wrong = code.replace("(1 + x.data * (1 - s))", "(x.data * (1 - s))")
    with pytest.raises(
        AssertionError, match=r"(?s)gradient of input 0.*the term dout / x \* out is missing"
    ):
        in_a_new_process(wrong, tmp_path)


def test_the_test_of_five_lines_passes_and_names_a_mistake():
    (code,) = blocks(TEXT["gradients.md"], "python")
    page: dict = {}
    exec(code, page)
    page["test_linear"]()
    wrong: dict = {}
    square = code.replace("(5, 4), (4, 3), (3,)", "(3, 3), (3, 3), (3,)")
    exec(square.replace("dout.sum(0)", "dout.sum(1)"), wrong)
    with pytest.raises(AssertionError, match=r"dout\.sum\(1\), and should compute dout\.sum\(0\)"):
        wrong["test_linear"]()


@pytest.mark.slow
def test_the_code_of_the_tour_prints_the_nodes_of_a_step(tmp_path):
    (code,) = blocks(TEXT["TOUR.md"], "python")
    out = in_a_new_process(code, tmp_path)
    assert re.search(r"cross_entropy.*\n.*linear fc.*\n.*global_average_pool", out)


def test_no_python_of_the_pages_goes_untested():
    counts = {name: len(blocks(text, "python")) for name, text in TEXT.items()}
    tested = {"README.md": 2, "TOUR.md": 1, "gradients.md": 1}
    tested["derivations.md"] = 13  # in test_derivations.py
    assert {name: n for name, n in counts.items() if n} == tested


# ------------------------------------------------------------------------------------- commands


def commands(parser):
    """Every command of a parser with those below it: "weights convert"."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield name
                yield from (f"{name} {deeper}" for deeper in commands(below))


def mentioned(text):
    """Commands in inline code and in shell blocks."""
    shell = "".join(blocks(text, "sh"))
    return set(
        re.findall(r"`tinyft ([a-z-]+)", text) + re.findall(r"^tinyft ([a-z-]+)", shell, re.M)
    )


def test_every_command_of_the_pages_exists_and_every_command_is_in_the_readme():
    known = set(commands(build_parser()))
    for text in TEXT.values():
        assert mentioned(text) <= known
    assert {name for name in known if " " not in name} == mentioned(TEXT["README.md"])


def test_the_commands_of_the_readme_can_be_parsed():
    lines = [line for block in blocks(TEXT["README.md"], "sh") for line in block.splitlines()]
    lines = [line.split()[1:] for line in lines if line.startswith("tinyft ")]
    assert len(lines) == 3
    for arguments in lines:
        build_parser().parse_args(arguments)


@pytest.mark.parametrize("name", sorted(commands(build_parser())))
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as left:
        build_parser().parse_args([*name.split(), "--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert f"tinyft {name}" in out
    assert "example" in out or "{" in out  # a group of commands lists them


def test_ci_runs_the_test_command_of_the_readme():
    first, second = (block.strip() for block in blocks(TEXT["README.md"], "sh")[:2])
    script = (ROOT / ".ci" / "run").read_text()
    assert second in script.splitlines()
    assert script.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail\n" in script
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert first == "pip install . && tinyft finetune"  # tests/cli/test_sample.py runs it


# ------------------------------------------------------------------------------- names and files


def test_every_public_name_is_mentioned():
    text = TEXT["README.md"] + TEXT["api.md"]
    missing = [name for name in tinyft.__all__ if not re.search(rf"ft\.{name}\b", text)]
    assert not missing


def test_every_name_of_the_api_page_exists():
    for name in re.findall(r"`ft\.(\w+)", TEXT["api.md"]):
        assert hasattr(tinyft, name), name
    (methods,) = re.findall(r"`ft\.Learner` \| what that returns: (.*) \|", TEXT["api.md"])
    named = set(re.findall(r"`(\w+)`", methods))
    methods = {name for name in dir(tinyft.Learner) if isfunction(getattr(tinyft.Learner, name))}
    assert named <= methods
    assert {name for name in methods - named - PARTS_OF_A_STEP if name[0] != "_"} == set()
    for module, name in re.findall(r"`(tinyft\.[\w.]+)\.(\w+)`", TEXT["api.md"]):
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def defined(tree, prefix=""):
    """The dotted names of all classes, functions and constants of a file."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from defined(node, f"{prefix}{node.name}.")


@pytest.mark.slow
@pytest.mark.parametrize(("page", "least"), [("TOUR.md", 40), ("glossary.md", 30)])
def test_every_name_that_a_page_cites_exists(page, least):
    cited = CITED.findall(TEXT[page])
    assert len(cited) > least
    for file, name in cited:
        assert name in set(defined(ast.parse((ROOT / file).read_text()))), f"{file}: {name}"


def test_the_tour_reaches_every_file_of_the_reading_order():
    order = reading_order()
    assert {file for file, _ in CITED.findall(TEXT["TOUR.md"])} >= {
        file for file in order if not file.endswith("__init__.py")
    }


def reading_order():
    section = TEXT["reading.md"].partition("## One training step")[2].partition("\n## ")[0]
    return [file for file, _ in listed(section)]


def listed(text):
    """Files from the root, and their minutes."""
    found = re.findall(r"^\d+\. \[.*?\]\(\.\./(.*?)\).*\((\d+) min\)$", text, re.M)
    return [(file, int(minutes)) for file, minutes in found]


def test_the_reading_order_is_short_and_its_minutes_fit_the_files():
    assert 10 <= len(reading_order()) <= 18
    found = listed(TEXT["reading.md"])
    assert len(found) == TEXT["reading.md"].count(" min)") > 20
    for file, given in found:
        lines = len((ROOT / file).read_text().splitlines())
        assert abs(lines / 30 - given) <= 1.5, f"{file} has {lines} lines"


@pytest.mark.parametrize("name", TEXT)
def test_every_file_that_a_page_mentions_exists(name):
    page = next(page for page in PAGES if page.name == name)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", TEXT[name]):
        assert (page.parent / target).exists() or (ROOT / target).exists(), target
    for target in re.findall(r"`((?:tinyft|examples|docs)/[\w/.]*)(?::|`)", TEXT[name]):
        assert (ROOT / target).exists(), target


def test_every_term_of_the_glossary_says_where_to_see_it():
    terms = re.findall(r"^### ([^\n]*)\n\n(.*?)(?=\n\n|\n*\Z)", TEXT["glossary.md"], re.M | re.S)
    assert len(terms) == TEXT["glossary.md"].count("### ") > 30
    assert [name for name, _ in terms] == sorted(name for name, _ in terms)
    assert [name for name, text in terms if not re.search(r"See\s`tinyft/", text)] == []


def test_every_heading_that_a_page_links_to_exists():
    """As GitHub makes anchors of headings: small letters, no punctuation, - for a space."""
    links = {
        (name, *link) for name in TEXT for link in re.findall(r"\]\(([^):]*)#([^)]+)\)", TEXT[name])
    }
    assert len(links) > 20
    for name, page, anchor in links:
        headings = re.findall(r"^#+ (.*)$", TEXT[page.rpartition("/")[2] or name], re.M)
        made = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in made, f"{name}: {page}#{anchor}"


def test_deviations_from_fastai_are_marked_in_the_source_and_on_the_page():
    files = {str(path.relative_to(ROOT)): path for path in (ROOT / "tinyft").rglob("*.py")}
    mark = re.compile(r"#.* differs from fastai")
    marked = {name for name, path in files.items() if mark.search(path.read_text())}
    table = TEXT["deviations.md"].partition("## From fastai")[2].partition("\n## ")[0]
    assert marked == set(re.findall(r"`(tinyft/\S+\.py)`", table))


def test_the_changelog_has_the_version():
    assert f"## [{tinyft.__version__}]" in TEXT["CHANGELOG.md"]


# ---------------------------------------------------------------------------------- where to begin


def test_the_paths_of_the_start_page_take_what_they_say():
    """Ten lines of an example a minute, 130 words of a page, what an exercise says of itself."""
    page = TEXT["learn.md"]
    files = (ROOT / "exercises").glob("[0-9]*.py")
    exercises = {re.sub(r"^\d+_", "", path.stem): path.read_text() for path in files}
    minutes = {name: int(re.search(r"(\d+) minutes", text)[1]) for name, text in exercises.items()}
    spent, sums = set(), []
    for part in page.split("\n## ")[1:]:
        total = 0
        for line in re.findall(r"^\d+\. (.*)$", part, re.M):
            given = re.search(r"\((\d+) min\)$", line)
            if not given:
                continue
            total += int(given[1])
            names = re.findall(r"`(\w+)`", line.partition(":")[0]) if "Exercise" in line else ()
            if names:
                assert sum(minutes[name] for name in names) == int(given[1]), line
                spent.update(names)
                continue
            path = re.search(r"\]\((?:\.\./)?([\w./]+)\)", line)[1]
            file = next(f for f in (ROOT / path, ROOT / "docs" / path) if f.exists())
            text = file.read_text()
            right = len(text.splitlines()) / 10 if file.suffix == ".py" else len(text.split()) / 130
            assert abs(right - int(given[1])) <= 1, f"{path}: {right:.0f} minutes"
            spent.add(path)
        sums.append(total)
    assert 90 <= sums[0] <= 120 and sums[0] + sums[1] <= 360, sums
    assert set(minutes) <= spent, set(minutes) - spent
    numbered = {f"examples/{path.name}" for path in (ROOT / "examples").glob("[0-9]*.py")}
    assert numbered - spent <= {path for path in numbered if "gpu" in path}


def test_the_index_leads_to_every_page_and_each_number_has_machine_day_and_command():
    linked = {
        (ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)#]+)\)", TEXT["index.md"])
    }
    assert set(PAGES) - {ROOT / "docs" / "index.md"} <= linked
    text = TEXT["measurements.md"]
    rows = dict(
        re.findall(r"^\| \[([^\]]+)\]\(#.*?\) \| ([^|]*\d [A-Z][^|]*\| `.*) \|$", text, re.M)
    )
    assert list(rows) == re.findall(r"^## (.*)$", text, re.M)
