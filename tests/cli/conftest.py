"""The command line within the test's process, in a temporary folder: quick and patchable."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyft.cli.main import main

TINY = ("--weights", "none", "--arch", "cifar_resnet20", "--batch-size", "4", "--epochs", "1")


@dataclass
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The line that says what went wrong: the last one on stderr, and never a traceback."""
        assert self.code in (1, 2, 130), (self.code, self.out, self.err)
        assert "Traceback" not in self.err, self.err
        return self.err.strip().splitlines()[-1]


@pytest.fixture
def tinyft(capfd, tmp_path, monkeypatch):
    """Runs `tinyft ...` in the temporary folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Done:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
        return Done(code, *capfd.readouterr())

    return run


def draw_in(folder: Path, classes: dict[str, int]) -> Path:
    """Draws {"cat": 12, "train/dog": 3, ...}: each class has a colour, each picture its noise."""
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise = np.random.default_rng([number, i]).uniform(-40, 40, (32, 32, 3))
            pixels = (np.eye(3)[number % 3] * 150 + 40 + noise).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def draw(tmp_path):
    """`draw_in` a folder within the temporary one."""
    return lambda classes, folder="pictures": draw_in(tmp_path / folder, classes)


@pytest.fixture
def pictures(draw) -> Path:
    """Two classes of six pictures."""
    return draw({"cat": 6, "dog": 6})


@pytest.fixture(scope="session")
def once_trained(tmp_path_factory) -> Path:
    """A folder with `pictures` and a finished run on them, for `trained` to copy."""
    folder = tmp_path_factory.mktemp("once")
    draw_in(folder / "pictures", {"cat": 6, "dog": 6})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["finetune", str(folder / "pictures"), *TINY]) == 0
    return folder


@pytest.fixture
def trained(tinyft, pictures, once_trained, tmp_path) -> str:
    """The folder of a run that is finished."""
    shutil.copytree(once_trained / "runs", tmp_path / "runs")
    run = "runs/pictures-cifar_resnet20-1"
    described = tmp_path / run / "run.json"
    described.write_text(described.read_text().replace(str(once_trained), str(tmp_path)))
    return run


@pytest.fixture
def tiny() -> tuple[str, ...]:
    """Options of a training run that takes a second."""
    return TINY
