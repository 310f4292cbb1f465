"""Plants each mistake of planted.toml in a copy of the source, and says which test notices it.

    python tests/mutation/plant.py                   every mistake, each against its own tests
    python tests/mutation/plant.py bias_decay ...    these alone
    python tests/mutation/plant.py --quick           without the tests that are marked slow
    python tests/mutation/plant.py --all-tests       each against the whole suite (hours)

A mistake is a text of a file and what to put in its place. If the text is not there exactly once,
the source has moved on and the list must follow: that ends the command as a survivor does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("tinyft", "tests", "weights", "examples", "docs", ".ci")
ALL_TESTS = ["tests", "--ignore=tests/mutation"]  # which looks for what a mistake took the place of
MOST_SECONDS = 600  # for the tests of one mistake; one that makes them hang is noticed, too


def copy_of_the_source(folder: Path) -> Path:
    """The checkout without its history."""
    for name in FOLDERS:
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    for page in (ROOT / "pyproject.toml", *ROOT.glob("*.md")):
        shutil.copy(page, folder)
    return folder


def plant(file: Path, mistake: dict[str, str]) -> str:
    """Put the mistake into the file; the text from before. Raises: SystemExit"""
    text = file.read_text()
    count = text.count(mistake["find"])
    if count != 1:
        raise SystemExit(
            f"{mistake['name']}: its text occurs {count} times in {mistake['file']}, expected "
            f"once; write it anew:\n{mistake['find']}"
        )
    file.write_text(text.replace(mistake["find"], mistake["replace"]))
    return text


def noticed_by(folder: Path, tests: list[str], quick: bool) -> str | None:
    """The first test that fails with the source in `folder`; None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    command += ["-m", "not slow"] if quick else []
    shared = os.environ.get("TINYFT_SHARED", str(ROOT.parent / "shared"))
    environment = {
        "TINYFT_SHARED": shared,
        "PYTHONPATH": str(folder),  # for what tests start in other folders
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=MOST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"more than {MOST_SECONDS} s"
    if done.returncode in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].split(" - ")[0] if lines else (done.stdout + done.stderr)[-300:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of the list; all of it if none is given")
    parser.add_argument("--all-tests", action="store_true", help="not the mistake's own alone")
    parser.add_argument("--quick", action="store_true", help='with -m "not slow"')
    args = parser.parse_args()
    mistakes = tomllib.loads((Path(__file__).with_name("planted.toml")).read_text())["mistake"]
    unknown = set(args.names) - {mistake["name"] for mistake in mistakes}
    if unknown:
        parser.error(f"not in planted.toml: {', '.join(sorted(unknown))}")
    survivors = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy_of_the_source(Path(temporary))
        for mistake in mistakes:
            if args.names and mistake["name"] not in args.names:
                continue
            file = folder / mistake["file"]
            before = plant(file, mistake)
            test = noticed_by(folder, ALL_TESTS if args.all_tests else mistake["tests"], args.quick)
            file.write_text(before)
            print(f"{mistake['name']:32} {test or 'SURVIVES'}", flush=True)
            if test is None:
                survivors.append(mistake["name"])
    print(f"{len(survivors)} survive: {', '.join(survivors)}" if survivors else "all noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
