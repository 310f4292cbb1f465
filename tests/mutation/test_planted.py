"""The list of mistakes follows the source: what each takes the place of is there, and its tests."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MISTAKES = tomllib.loads(Path(__file__).with_name("planted.toml").read_text())["mistake"]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake["name"] for mistake in MISTAKES])
def test_a_mistake_can_be_planted(mistake):
    assert (ROOT / mistake["file"]).read_text().count(mistake["find"]) == 1
    assert mistake["replace"] != mistake["find"]
    missing = [path for path in mistake["tests"] if not (ROOT / path.split("::")[0]).exists()]
    assert missing == []
