"""Parts of a run's folder, read back, whatever a kill or another program left in it.

Next: tinyft/finetune/run_pictures.py
"""

from __future__ import annotations

import csv
from pathlib import Path

from tinyft.errors import RunError


def checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of the run at `run` by how many steps were made, the oldest first.

    What others put beside them, as `000039 (conflicted copy).h5`, is none.
    """
    found = (run / "checkpoints").glob("*.h5")
    return dict(sorted((int(file.stem), file) for file in found if file.stem.isdecimal()))


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
