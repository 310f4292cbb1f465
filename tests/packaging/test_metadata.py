"""What is said of the package outside of it: on an index, in a citation, in a conda recipe."""

import os
import re
import tomllib
from pathlib import Path

import pytest

import tinyft
from tinyft.cli.main import build_parser

ROOT = Path(__file__).parents[2]
WHOLE = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = WHOLE["project"]


def test_the_readme_of_an_index_has_no_link_that_leads_nowhere():
    text = (ROOT / "README.md").read_text()
    assert re.search(r"\]\(docs/", text)
    for rule in WHOLE["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert [link for link in targets if not link.startswith(("https://", "#"))] == []
    assert "The body is the pretrained part" in text and "weights/README.md" not in text


def test_citation_and_recipe_say_what_pyproject_says():
    citation = (ROOT / "CITATION.cff").read_text()
    recipe = (ROOT / "recipe" / "recipe.yaml").read_text()
    assert f"version: {tinyft.__version__}\n" in citation
    assert f'version: "{tinyft.__version__}"\n' in recipe and PROJECT["license"] in recipe
    for dependency in PROJECT["dependencies"]:
        name, _, version = dependency.partition(">=")
        assert f"    - {name} >={version}\n" in recipe
    for file in PROJECT["license-files"]:
        assert (ROOT / file).is_file() and f"    - {file}\n" in recipe


def test_a_shell_completes_commands_and_options():
    shtab = pytest.importorskip("shtab", reason="shtab, which writes the completion, is not there")
    for shell in ("bash", "zsh"):
        script = shtab.complete(build_parser(), shell)
        assert "lr-find" in script and "--freeze-epochs" in script


def test_ci_runs_what_a_developer_runs_on_every_python_that_is_named():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    for script in (".ci/run", ".ci/elsewhere"):
        assert f"run: {script}\n" in workflow and os.access(ROOT / script, os.X_OK), script
    classifiers = " ".join(PROJECT["classifiers"])
    assert set(re.findall(r'python: "([\d.]+)"', workflow)) == set(
        re.findall(r"Python :: (3\.\d+)", classifiers)
    )
