"""Parts of a run's folder, read back, whatever a kill or another program left in it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from tinyft.errors import RunError
from tinyft.finetune.run.schema import DESCRIPTION, STATE, mistake

CHECKPOINT = "tinyft-checkpoint"
PICTURES = "pictures.csv"


def read_description(run: Path) -> dict[str, Any]:
    """What run.json says. Raises: RunError if there is none or it cannot be read"""
    path = run / "run.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{run} is no run, or was stopped before its first step: it has no run.json; start it "
            "anew"
        ) from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    if found := mistake(description, DESCRIPTION, "it"):
        raise RunError(f"{path} is damaged: {found}")
    return description


def random_parts(description: dict[str, Any]) -> dict[str, bool]:
    """Whether the run began with random weights in its body, and in its head; of a run whose
    run.json does not say so, what its learner's arguments tell.
    """
    learner = description["learner"] or {"weights": "", "head": None}
    begun = description["first_step"] == 0
    told = {"random_body": learner["weights"] is None, "random_head": learner["head"] is not None}
    return {name: description.get(name, begun and random) for name, random in told.items()}


def listing_sha256(listing: str) -> str:
    """The one hash by which run.json knows all pictures: that of pictures.csv."""
    return hashlib.sha256(listing.encode("utf-8", "backslashreplace")).hexdigest()


def read_listing(run: Path, sha256: str) -> set[tuple[str, ...]] | None:
    """The lines of pictures.csv; None if there is none, or not the one that run.json knows."""
    try:
        listing = (run / PICTURES).read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None
    return listing_lines(listing) if listing_sha256(listing) == sha256 else None


def listing_lines(listing: str) -> set[tuple[str, ...]]:
    """(split, class, sha256, name) of each picture, and the head."""
    return set(map(tuple, csv.reader(io.StringIO(listing, newline=""))))


def read_checkpoint(
    path: Path, description: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the values of a checkpoint of the run that is described.

    Raises: RunError if it is another run's or another step's; WeightsError if it is damaged;
    OSError if the system refuses
    """
    from tinyft.weights import read_arrays

    arrays, _, texts = read_arrays(path, CHECKPOINT)
    try:
        values = json.loads(texts.get("state", ""))
    except (ValueError, TypeError, RecursionError):
        values = None
    if found := mistake(values, STATE, "its state"):
        raise RunError(found)
    if values["run"] != description["id"]:
        raise RunError(f"its run is {values['run']}, this one {description['id']}")
    begun = values["step"] > description["first_step"]
    if values["step"] != int(path.stem) or (begun and not values["phase_digests"]):
        raise RunError(f"its state is that of step {values['step']}, or of none")
    return arrays, values


def checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of the run at `run` by how many steps were made, the oldest first.

    What others put beside them, as `000039 (conflicted copy).h5`, is none.
    Raises: OSError if the system does not list them; `glob` would find none
    """
    folder = run / "checkpoints"
    found = [folder / name for name in os.listdir(folder)] if folder.exists() else []
    names = (file for file in found if file.suffix == ".h5" and file.stem.isdecimal())
    return dict(sorted((int(file.stem), file) for file in names))


def metrics_lines(path: Path) -> list[list[str]]:
    """The cells of each line of a metrics.csv, its head first; none if it is missing or empty.

    A line that a kill cut off is left out.
    Raises: RunError if it is no text; OSError if the system refuses
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [line for line in csv.reader(file) if line]
    except FileNotFoundError:
        return []
    except (UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    return [line for line in lines if len(line) == len(lines[0])]
