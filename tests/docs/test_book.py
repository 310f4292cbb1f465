"""The book, and the notebooks that its examples become."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
spec = importlib.util.spec_from_file_location("build_book", ROOT / "docs/book/build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_a_notebook_has_the_examples_statements_in_order_and_its_text(example):
    source = example.read_text().replace("parse_args()", "parse_args([])")
    made = build.notebook(source)
    cells = {kind: [c["source"] for c in made["cells"] if c["cell_type"] == kind]
             for kind in ("code", "markdown")}  # fmt: skip
    statements = [ast.unparse(s) for s in ast.parse(source).body[1:]]
    assert [ast.unparse(s) for cell in cells["code"] for s in ast.parse(cell).body] == statements
    assert cells["markdown"][0].startswith("# ")
    assert all(cells["code"]) and all(cells["markdown"])
    assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])


def test_notebooks_are_written_beside_what_they_read(tmp_path):
    names = build.write_notebooks(tmp_path)
    assert len(names) == len(EXAMPLES) and (tmp_path / "animals8").is_dir()
    assert json.loads((tmp_path / f"{EXAMPLES[0].stem}.ipynb").read_text())["nbformat"] == 4


def test_the_page_of_all_names_holds_their_docstrings():
    page = build.public_names()
    assert "### `ft.gradcheck`" in page and "finite differences" in page
    assert "### `ft.ops.conv2d`" in page and ".fine_tune(self, epochs" in page


@pytest.mark.slow
def test_pages_are_laid_out_with_links_that_lead_somewhere(tmp_path):
    tree = tmp_path / "pages"
    build.write_pages(tree)
    links = [
        (page, link) for page in tree.rglob("*.md") for link in build.LINK.findall(page.read_text())
    ]
    assert len(links) > 50
    for page, (target, _) in links:
        path = tree / target[1:] if target.startswith("/") else page.parent / target
        assert path.exists(), f"{page.relative_to(tree)} leads to {target}"


@pytest.mark.slow
def test_the_book_builds_without_a_warning_and_needs_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("myst_nb", reason="the book's generator is not installed (.[docs])")
    pytest.importorskip("furo")
    out = tmp_path / "book"
    made = subprocess.run(
        [sys.executable, ROOT / "docs/book/build.py", "--unrun", out],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    html = (out / "docs" / "derivations.html").read_text()
    assert "<math" in html and 'src="http' not in html
