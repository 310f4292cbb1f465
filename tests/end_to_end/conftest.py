"""The command line as a user types it: a new process, in a temporary folder."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

# A process that tries to talk to the network ends, and says so.
NO_NETWORK = """
import socket

def refuse(*arguments, **options):
    raise AssertionError(f"the network was used: {arguments}")

for name in ("connect", "connect_ex", "sendto", "sendmsg", "bind"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.create_connection = refuse
"""


@dataclass
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def one_line_error(self) -> str:
        """The last line of stderr, after a failure as it should be."""
        assert self.code in (1, 2), (self.code, self.out, self.err)
        assert "Traceback" not in self.err, self.err
        return self.err.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def no_network(tmp_path_factory) -> Path:
    """A folder whose sitecustomize.py takes the network away from a Python process."""
    folder = tmp_path_factory.mktemp("no_network")
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    return folder


@pytest.fixture(scope="session")
def environment(no_network) -> dict[str, str]:
    """Of the started processes: no network, warnings are errors as in the tests themselves."""
    path = os.pathsep.join([str(no_network), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error", "TERM": "dumb"}


@pytest.fixture(scope="session")
def start_in(environment):
    """Starts `tinyft ...` in a folder; the process."""

    def start(folder: Path, *arguments: object, **options: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "tinyft", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        options = {"env": environment, "text": True, **pipes, **options}
        return subprocess.Popen(command, cwd=folder, **options)

    return start


@pytest.fixture(scope="session")
def run_in(start_in):
    """Runs `tinyft ...` in a folder to its end."""

    def run(folder: Path, *arguments: object, **options: object) -> Done:
        process = start_in(folder, *arguments, **options)
        out, err = process.communicate(timeout=540)
        return Done(process.returncode, out, err)

    return run


@pytest.fixture
def tinyft(run_in, tmp_path):
    """Runs `tinyft ...` in the temporary folder to its end."""
    return functools.partial(run_in, tmp_path)


@pytest.fixture(scope="session")
def draw_into():
    """Draws pictures that a network can tell apart, into a folder a class."""

    def draw(folder: Path, classes: dict[str, int], size: int = 32) -> Path:
        for number, (name, count) in enumerate(classes.items()):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                noise = np.random.default_rng([number, i]).uniform(-40, 40, (size, size, 3))
                pixels = (np.eye(3)[number % 3] * 150 + 40 + noise).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
        return folder

    return draw


@pytest.fixture
def pictures(tmp_path, draw_into) -> Path:
    """Two classes of twelve pictures."""
    return draw_into(tmp_path / "pictures", {"cat": 12, "dog": 12})
