"""Builds the book: the pages of docs/, TOUR and README, the examples as notebooks that were run,
the source files that they lead to, and every public name, as static pages that need nothing else.

    pip install ".[docs]"
    python docs/book/build.py                     # build/book/index.html
    python docs/book/build.py --notebooks OUT     # only the examples as notebooks, not run

A link that leads nowhere, and an example that fails, end it with an error.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = {
    "Learn": ["docs/learn", "TOUR", "docs/derivations", "docs/gradients", "docs/glossary"],
    "Examples": [],  # all that are numbered
    "Use": ["docs/index", "docs/measurements", "weights/README", "CHANGELOG"],
    "The source": ["docs/architecture", "docs/reading", "docs/deviations", "docs/api",
                   "docs/names", "tinyft/backends/cpu/README", "CONTRIBUTING"],
}  # fmt: skip
LINK = re.compile(r"\]\(([^()#:\s]+)(#[^)\s]*)?\)")  # no brackets in it: code has `a[1](f(x))`


# ------------------------------------------------------------------------------------- notebooks


def notebook(source: str) -> dict:
    """An example as a notebook: its docstring and its comments at the margin become text, the
    statements between two of them a cell.
    """
    body = ast.parse(source).body
    title, *rest = ast.get_docstring(ast.parse(source)).split("\n", 1)
    cells = [_cell("markdown", f"# {title}\n{''.join(rest)}")]
    source = source.replace("parse_args()", "parse_args([])")  # a notebook's own are others
    lines, code, at = source.splitlines(), [], body[0].end_lineno
    for statement in body[1:]:
        first = min([statement, *getattr(statement, "decorator_list", [])], key=_line).lineno
        between = [line for line in lines[at : first - 1] if line.strip()]
        if between and all(line.startswith("# ") for line in between):
            cells += [_cell("code", "\n".join(code).strip("\n"))] if code else []
            cells.append(_cell("markdown", "\n".join(line[2:] for line in between)))
            code, at = [], first - 1
        code += lines[at : statement.end_lineno]
        at = statement.end_lineno
    cells.append(_cell("code", "\n".join([*code, *lines[at:]]).strip("\n")))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": about, "cells": cells}


def _line(node: ast.stmt) -> int:
    return node.lineno


def _cell(kind: str, text: str) -> dict:
    cell = {
        "cell_type": kind,
        "id": f"{kind}-{abs(hash(text)) % 10**12}",
        "metadata": {},
        "source": text,
    }
    return cell | ({"outputs": [], "execution_count": None} if kind == "code" else {})


def write_notebooks(folder: Path) -> list[str]:
    """Write every numbered example as a notebook, with what it reads beside it; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "examples", folder, dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("[0-9]*.py", "__pycache__", "*.md"))  # fmt: skip
    names = []
    for example in sorted((ROOT / "examples").glob("[0-9]*.py")):
        made = json.dumps(notebook(example.read_text()), indent=1)
        (folder / f"{example.stem}.ipynb").write_text(made)
        names.append(f"examples/{example.stem}")
    return names


# ----------------------------------------------------------------------------------------- pages


def write_pages(tree: Path) -> None:
    """Lay out all pages as the repository does, so that links between them stay as they are."""
    parts = dict(PARTS, Examples=write_notebooks(tree / "examples"))
    (tree / "docs").mkdir()
    shutil.copytree(ROOT / "docs" / "figures", tree / "docs" / "figures")
    (tree / "docs" / "names.md").write_text(public_names())
    for page in [
        page for part in parts.values() for page in part if (ROOT / f"{page}.md").exists()
    ]:
        write_page(tree, Path(f"{page}.md"), Path(f"{page}.md"))
    write_page(tree, Path("README.md"), Path("index.md"))
    with (tree / "index.md").open("a") as index:
        for title, pages in parts.items():
            listed = "\n".join(pages)
            index.write(f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{listed}\n```\n")


def write_page(tree: Path, page: Path, name: Path) -> None:
    """Copy a page; what it leads to becomes a page too if it is source."""

    def moved(link: re.Match) -> str:
        here = (ROOT / page.parent / link[1]).resolve()
        if not here.is_relative_to(ROOT) or not here.exists():
            return link[0]
        path, anchor = here.relative_to(ROOT), link[2] or ""
        if path == Path("README.md"):
            path = Path("index.md")
        elif path == Path("examples"):
            path = min((tree / "examples").glob("[0-9]*.ipynb")).relative_to(tree)
        elif path.match("examples/[0-9]*.py"):
            path = path.with_suffix(".ipynb")
        elif here.is_file() and path.suffix not in (".md", ".svg"):
            path = write_source(tree, path)
        return f"](/{path}{anchor})"

    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).write_text(LINK.sub(moved, (ROOT / page).read_text()))


def write_source(tree: Path, path: Path) -> Path:
    """Write a page that shows a source file; where it is."""
    page = Path(f"{path}.md")
    kind = {".py": "python", ".cu": "cuda", ".toml": "toml"}.get(path.suffix, "text")
    (tree / page).parent.mkdir(parents=True, exist_ok=True)
    text = (ROOT / path).read_text()
    (tree / page).write_text(f"---\norphan: true\n---\n\n# {path}\n\n````{kind}\n{text}\n````\n")
    return page


def public_names() -> str:
    """Every public name, with what `help` says of it."""
    import tinyft as ft

    parts = ["# Every public name\n", "As `help` shows them; [an overview](api.md) is shorter.\n"]
    for module in (ft, ft.ops, ft.nn, ft.data, ft.weights, ft.finetune, ft.inspection, ft.testing):
        title = module.__name__.replace("tinyft", "ft")
        parts.append(f"## `{title}`\n")
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value):
                parts.append(f"### `{title}.{name}`\n\n````text\n{_help(name, value)}\n````\n")
    return "\n".join(parts)


def _help(name: str, value: object) -> str:
    try:
        signature = str(inspect.signature(value))
    except (TypeError, ValueError):
        signature = "(...)"
    functions = inspect.getmembers(value, inspect.isfunction) if inspect.isclass(value) else []
    methods = [
        f".{n}{inspect.signature(f)}\n    {inspect.getdoc(f).splitlines()[0]}"
        for n, f in functions
        if not n.startswith("_") and inspect.getdoc(f)
    ]
    return "\n\n".join([f"{name}{signature}", inspect.getdoc(value) or "", *methods])


# ------------------------------------------------------------------------------------------ main


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "build" / "book")
    parser.add_argument("--notebooks", action="store_true", help="only the examples, not run")
    parser.add_argument("--unrun", action="store_true", help="the examples without what they print")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if args.notebooks:
        print(*(f"{args.out / name}.ipynb" for name in write_notebooks(args.out)), sep="\n")
        return 0
    from sphinx.cmd.build import build_main

    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "pages"
        write_pages(tree)
        run = ["-D", "nb_execution_mode=off"] if args.unrun else []
        options = [
            *run,
            "-q",
            "-W",
            "--keep-going",
            "-c",
            str(ROOT / "docs" / "book"),
            "-b",
            "html",
        ]
        failed = build_main([*options, str(tree), str(args.out)])
    print(f"{args.out / 'index.html'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
