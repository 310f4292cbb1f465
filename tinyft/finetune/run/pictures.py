"""The pictures that a run was trained with, opened again and checked to be the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tinyft.data import ImageFolder
from tinyft.data.loader import PictureData
from tinyft.data.picture import printable
from tinyft.display import first_few
from tinyft.errors import DataError, RunError
from tinyft.finetune.run.reading import (
    listing_lines,
    listing_sha256,
    read_description,
    read_listing,
)


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
    if changed := changed_pictures(path, data):
        raise RunError(f"the pictures of {path} have changed since it began{changed}{otherwise}")
    return data


def changed_pictures(path: Path, data: PictureData) -> str:
    """Which pictures of the run at `path` are others, new or gone: " (1 of them: cat/0.png)"; "" if
    all are as they were.
    """
    listing, recorded = data.listing(), read_description(path)["data"]["sha256"]
    if listing_sha256(listing) == recorded:
        return ""
    before = read_listing(path, recorded)
    if before is None:
        return " (which ones is not known: its pictures.csv is gone)"
    now = listing_lines(listing)
    others = {line[2:] for line in before} ^ {line[2:] for line in now}
    names = sorted({line[-1] for line in others or before ^ now})  # or only classes, or the split
    return f" ({len(names)} of them: {first_few(names)})"
