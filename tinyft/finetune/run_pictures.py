"""The pictures that a run was trained with, opened again and checked to be the same.

Next: tinyft/finetune/resume.py
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tinyft.data import ImageFolder
from tinyft.data.loader import PictureData
from tinyft.data.prepare import printable
from tinyft.errors import DataError, RunError
from tinyft.finetune.run_reading import read_description


def pictures_of_run(
    path: str | os.PathLike[str],
    data: PictureData | None = None,
    *,
    otherwise: str = "",
    **options: Any,
) -> PictureData:
    """The pictures of the run at `path`: its folder, opened as it was but for `options`; or `data`,
    which is needed where the run was made from arrays in memory.

    `otherwise` says in an error what follows if they are no longer the same.
    Raises: RunError if the pictures have changed, or are arrays that were not given; DataError or
    OSError if the folder cannot be opened
    """
    path = Path(path)
    recorded = read_description(path)["data"]
    if data is None:
        if recorded.get("kind") != "folder":
            raise RunError(
                f"{path} was trained on arrays in memory, which only Python can bring back: pass "
                "them there as data="
            )
        folder = Path(recorded["arguments"]["path"])
        if not folder.is_dir():
            raise DataError(
                f"{path} began with the pictures in {printable(folder)}, which is no longer there; "
                "put them back"
            )
        data = ImageFolder(**recorded["arguments"] | options)
    if data.describe()["sha256"] != recorded.get("sha256"):
        raise RunError(f"the pictures of {path} have changed since it began{otherwise}")
    return data
