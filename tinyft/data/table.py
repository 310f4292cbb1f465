"""Labels from a table, or from the names of pictures, instead of from their folders.

A table may also say which part a picture belongs to, and which pictures belong together, as those
of one patient or one camera: a group never lies on both sides of the split.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tinyft.data.folder import SHOWN, ImageFolder
from tinyft.data.picture import printable
from tinyft.data.split import TRAIN_NAMES, VALID_NAMES, ByClass, Scan, normalised, pictures_below
from tinyft.display import counted, first_few
from tinyft.errors import DataError

COLUMNS = {
    "file": ("file", "filename", "path", "image"),
    "label": ("label", "class", "category"),
    "split": ("split", "set"),
    "group": ("group",),
}  # and what else they may be called
EXAMPLE = "file,label,split,group (the last two may be left out)"


class Row(NamedTuple):
    """Holds what is known of one picture; `where` says who says so."""

    where: str
    file: str
    label: str
    split: str = ""
    group: str = ""


class ImageTable(ImageFolder):
    """The pictures in the folder `path`, labelled by the CSV file `labels` or by their own names.

    `labels` has the columns file (relative to `path`), label, and optionally split (train, valid or
    test; of all or none) and group. `label_regex` is searched for in each picture's name below
    `path`, as "cats/7.jpg"; its first group, or the one called label, is the label, and groups
    called split and group may stand beside it. The other options are those of `ImageFolder`;
    without splits `valid_fraction` is set aside, whole groups only. Pictures without a row are
    left out, and noted.

    Raises:  DataError for a table, pattern or name that cannot be used, and as `ImageFolder`

    Example:
        ft.ImageTable("photos", "labels.csv")
        ft.ImageTable("photos", label_regex=r"^(.+?)_\\d+")  # great_dane_12.jpg: great_dane
    """

    kind = "table"

    def __init__(
        self,
        path: str | os.PathLike[str],
        labels: str | os.PathLike[str] | None = None,
        *,
        label_regex: str | None = None,
        **options: Any,
    ) -> None:
        if (labels is None) == (label_regex is None):
            raise DataError("give a table of labels, or a label_regex for the names of pictures")
        self.table: Path | None = None if labels is None else Path(labels)
        self.label_regex = label_regex
        super().__init__(path, **options)

    def _arguments(self) -> dict:
        table = None if self.table is None else str(self.table.resolve())
        return {**super()._arguments(), "labels": table, "label_regex": self.label_regex}

    def _listed(self) -> dict[str, ByClass]:
        """Read the rows, and divide the pictures by part and class."""
        if not self.path.is_dir():
            raise DataError(f"{printable(self.path)} is not a folder; expected one of pictures")
        pictures = {self._name(path): path for path in pictures_below(self.path, Scan())}
        if self.table:
            rows = _rows_of_table(self.table)
        else:
            assert self.label_regex is not None  # one of the two was given
            rows = self._rows_of_names(self.label_regex, list(pictures))
        rows = self._usable(rows, pictures)
        if unlabelled := len(pictures) - len({row.file for row in rows}):
            self._found.append(f"{counted(unlabelled, 'picture')} without a label left out")
        parts = self._by_part(rows)
        self._group_of = {pictures[row.file]: row.group for row in rows if row.group}
        if len(parts) > 1:
            _expect_apart(parts)
        return {
            split: _by_class((row.label, pictures[row.file]) for row in part)
            for split, part in parts.items()
        }

    def _rows_of_names(self, regex: str, names: list[str]) -> list[Row]:
        try:
            pattern = re.compile(regex)
        except (re.error, TypeError) as error:
            raise DataError(f"label_regex {regex!r} is no pattern: {error}") from None
        if not pattern.groups:
            raise DataError(f"label_regex {regex!r} has no group; put what is the label in ( )")
        rows, others = [], []
        for name in names:
            if not (match := pattern.search(name)):
                others.append(name)
                continue
            named = {key: text or "" for key, text in match.groupdict().items()}
            given = {"label": match[1] or "", **{c: named[c] for c in COLUMNS if c in named}}
            rows.append(Row(name, **{**given, "file": name}))
        if not rows:
            of = f"of {counted(len(names), 'picture')} below {printable(self.path)}"
            raise DataError(f"label_regex {regex!r} is found in no name {of}: {first_few(names)}")
        self._refuse_or_skip([f"{name} does not match" for name in others], len(names))
        return rows

    def _usable(self, rows: list[Row], pictures: dict[str, Path]) -> list[Row]:
        """Check rows one by one: each of a picture that is there, with a label, once."""
        kept: dict[str, Row] = {}
        wrong = []
        for row in rows:
            file = row.file.replace("\\", "/").removeprefix("./")
            row = row._replace(file=file, label=normalised(row.label))
            if file not in pictures:
                wrong.append(f"{row.where}: there is no picture {file!r}")
            elif not row.label:
                wrong.append(f"{row.where}: {file} has no label")
            elif kept.setdefault(file, row)[1:] != row[1:]:
                wrong.append(f"{row.where}: {file} was {kept[file].label!r} before")
        self._refuse_or_skip(wrong, len(rows))
        if not kept:
            raise DataError(f"no row of {printable(self.table or self.path)} names a picture")
        return list(kept.values())

    def _refuse_or_skip(self, wrong: list[str], number: int) -> None:
        if not wrong:
            return
        summary = f"{len(wrong)} of {counted(number, 'row')} cannot be used: "
        summary += first_few(wrong, SHOWN)
        if self.on_error == "raise":
            remedy = "mend them, or leave them out with {on_error}"
            raise DataError(summary, remedy=remedy, on_error="skip")
        self._found.append(f"skipped: {summary}")

    def _by_part(self, rows: list[Row]) -> dict[str, list[Row]]:
        """Divide the rows as their splits say; all are for training if none says anything."""
        counts = Counter(row.split.lower() for row in rows)
        if set(counts) == {""}:
            return {"train": rows}
        strange = [row for row in rows if row.split.lower() not in (*TRAIN_NAMES, *VALID_NAMES)]
        if strange:
            raise DataError(
                f"{strange[0].where}: the split is {strange[0].split!r}; expected one of "
                f"{', '.join((*TRAIN_NAMES, *VALID_NAMES))} in every row, or in none"
            )
        used = next((name for name in VALID_NAMES if counts[name]), None)
        for name in VALID_NAMES:
            if counts[name] and name != used:
                self._found.append(f"beside {used}, and not used: {counts[name]} of {name}")
        parts = {"train": [row for row in rows if row.split.lower() in TRAIN_NAMES]}
        if not parts["train"]:
            raise DataError(f"{printable(self.table or self.path)} has no rows for training")
        if used:
            parts["valid"] = [row for row in rows if row.split.lower() == used]
        return parts


def _rows_of_table(table: Path) -> list[Row]:
    name = printable(table)
    try:
        text = table.read_text(encoding="utf-8-sig")
        head = text.split("\n", 1)[0]
        delimiter = max(",;\t", key=head.count)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        titles = [title.strip().lower() for title in next(lines, [])]
        places = {
            column: titles.index(title)
            for column, others in COLUMNS.items()
            for title in reversed(others)  # the first of them counts
            if title in titles
        }
        if not {"file", "label"} <= places.keys():
            columns = f"the columns {', '.join(titles)}" if titles else "no header"
            raise DataError(f"{name} has {columns}; expected {EXAMPLE}")
        return [
            Row(
                f"{name}, line {lines.line_num}",
                **{c: cells[at].strip() for c, at in places.items() if at < len(cells)},
            )
            for cells in lines
            if any(map(str.strip, cells))
        ]
    except FileNotFoundError:
        raise DataError(f"there is no table {name}; expected a CSV file: {EXAMPLE}") from None
    except TypeError:
        raise DataError(f"{name} has a line without a label; expected {EXAMPLE}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{name} is no CSV file in UTF-8: {error}; expected {EXAMPLE}") from None


def _by_class(labelled: Iterator[tuple[str, Path]]) -> ByClass:
    pictures: ByClass = {}
    for label, path in sorted(labelled):
        pictures.setdefault(label, []).append(path)
    return pictures


def _expect_apart(parts: dict[str, list[Row]]) -> None:
    """Raises: DataError for a group on both sides of the split"""
    sides = [{row.group for row in part if row.group} for part in parts.values()]
    if both := sorted(set.intersection(*sides)):
        raise DataError(
            f"{counted(len(both), 'group')} in both train and valid: {first_few(both, SHOWN)}; an "
            "accuracy on what is like the training pictures is too high: move them to one side"
        )
