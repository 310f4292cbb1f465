"""What `--resume` accepts beside it: nothing that contradicts how the run began. Another
`--backend` does not: files do not know on which device they were made.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from tinyft.cli.failures import RequestError
from tinyft.cli.options import DATA, LEARNER, RECIPE, given


def refuse_contradictions(args: argparse.Namespace, path: Path) -> None:
    """Raises: RequestError for the first option that is not what run.json says; RunError if it
    cannot be read
    """
    from tinyft.finetune.run.reading import read_description

    recorded = _recorded(read_description(path)) | {"out": str(path.resolve())}
    for name, value in _asked(args).items():
        if name in recorded and value != recorded[name]:
            option = "DIR" if name == "dir" else "--" + name.replace("_", "-")
            raise RequestError(
                f"{option} {value} contradicts {path}, which began with {recorded[name]}; "
                f"resume it without options, or start a new run"
            )


def resume_command(path: Path) -> str:
    return shlex.join(["tinyft", "finetune", "--resume", str(path)])


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, as run.json would say them."""
    asked = given(args, ("dir", "out", *DATA, *LEARNER, *RECIPE))
    if "dir" in asked:
        asked["dir"] = str(Path(asked["dir"]).resolve())
    if "out" in asked:
        asked["out"] = str(Path(asked["out"]).resolve())
    if Path(asked.get("weights", "")).is_file():
        asked["weights"] = str(Path(asked["weights"]).resolve())
    return asked


def _recorded(description: dict[str, Any]) -> dict[str, Any]:
    """What run.json says, under the names of the options."""
    data = description["data"]["arguments"]
    learner, plan = description["learner"] or {}, description["plan"]
    recorded = {name: data[name] for name in DATA if name in data}
    recorded |= {name: learner[name] for name in LEARNER if name in learner}
    recorded |= {"epochs": plan.get("epochs"), "freeze_epochs": plan.get("freeze_epochs")}
    recorded |= {"lr": plan.get("base_lr")}
    recorded |= {"dir": data.get("path"), "arch": description.get("arch")}
    absent = {"size": "the size of the weights file", "head": "the head of the weights file"}
    return {n: absent.get(n, "none") if value is None else value for n, value in recorded.items()}
