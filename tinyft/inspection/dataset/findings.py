"""What `check` found in a data set: facts, sentences, and a page with pictures side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyft.data.folder import whole_picture
from tinyft.data.loader import UNEVEN
from tinyft.data.picture import resize_to
from tinyft.display import counted, first_few, fitted, terminal_width
from tinyft.errors import DataError
from tinyft.inspection.html import Markup, escape, page, picture, table
from tinyft.inspection.report.learned import wilson
from tinyft.weights.files import write_page

FEWEST = 5  # pictures of a class below which it is too small, and its labels are not judged
WIDE = 0.2  # of an interval at 95 %: a validation part that allows no narrower one proves little
SHOWN = 2  # files named in a sentence
MOST_GROUPS, MOST_OF_A_GROUP, MOST_SUSPECTS = 40, 6, 60  # shown; the rest is counted
WIDTH = 150  # CSS pixels of a picture
STYLE = f"""<style>
.shown, .group {{ display: flex; flex-wrap: wrap; gap: 0.8rem; }}
.shown figure {{ margin: 0; width: {WIDTH}px; font-size: 0.85rem; overflow-wrap: anywhere; }}
.group {{ padding: 0.6rem; background: var(--panel); border-radius: 8px; }}
.file {{ overflow-wrap: anywhere; }}
.bar {{ display: inline-block; height: 0.7em; background: var(--series-1); border-radius: 2px; }}
</style>"""
COPIES = {
    "labels": ("under several labels", "At most one of them is right."),
    "split": ("on both sides of the split", "What was learned by heart is not judged by it."),
    "repeated": ("there more than once", "They count more than others."),
}


class Picture(NamedTuple):
    """One file. `split` is "train" or "valid"; sizes are pixels, as it is seen."""

    file: str
    source: Path | np.ndarray
    label: int
    split: str
    width: int = 0
    height: int = 0

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8. Raises: DataError for a file that cannot be read"""
        return self.source if isinstance(self.source, np.ndarray) else whole_picture(self.source)


class Suspect(NamedTuple):
    """A picture whose label is doubtful: its place, the class that it looks like, and by how much
    that is ahead.
    """

    picture: int
    looks_like: int
    margin: float


@dataclass(frozen=True, repr=False)
class DatasetCheck:
    """What `check` found. Places in `pictures` stand for pictures in `copies` and `suspects`.

    `margins` ranks all labels, the most doubtful first where it is largest; -inf: not judged.

    Shapes:  margins (N,) float64, or None without a network
    """

    name: str
    classes: list[str]
    pictures: list[Picture]
    unusable: dict[str, str]  # file: why
    notes: list[str]  # what was passed over
    has_split: bool
    copies: list[list[int]] = field(default_factory=list)  # groups of one picture
    suspects: list[Suspect] = field(default_factory=list)
    margins: np.ndarray | None = None
    agree: np.ndarray | None = None  # (N,) bool: out of fold, the features say the label
    network: str = ""  # in words

    def counts(self, split: str | None = None) -> np.ndarray:
        """Count the usable pictures of each class: (K,) int64"""
        labels = [p.label for p in self.pictures if split in (None, p.split)]
        return np.bincount(np.array(labels, np.int64), minlength=len(self.classes))

    def copies_by_kind(self) -> dict[str, list[list[int]]]:
        """Divide the groups of copies: under several "labels", else on both sides of the "split",
        else merely "repeated".
        """
        kinds: dict[str, list[list[int]]] = {kind: [] for kind in COPIES}
        for group in self.copies:
            members = [self.pictures[i] for i in group]
            several = "split" if len({p.split for p in members}) > 1 else "repeated"
            kinds["labels" if len({p.label for p in members}) > 1 else several].append(group)
        return kinds

    def baselines(self) -> dict[str, tuple[int, int]]:
        """Return what needs no training, as (right, of): "features" compared, out of fold, and
        always saying the "largest" class.
        """
        total = len(self.pictures)
        rates = {"largest": (int(self.counts().max(initial=0)), total)} if total else {}
        if self.agree is not None and len(self.classes) > 1:
            rates["features"] = (int(self.agree.sum()), total)
        return rates

    def sentences(self) -> dict[str, str]:
        """Say each finding in a sentence, by its kind, what hurts most first."""
        said = {}

        def say(kind: str, noun: str, text: str, found: Sequence[str]) -> None:
            if found:
                said[kind] = f"{counted(len(found), noun)} {text}: {first_few(found, SHOWN)}"

        reasons = [f"{file} ({why})" for file, why in self.unusable.items()]
        text = "cannot be used, and would stop a run without --on-error skip"
        say("unusable", "file", text, reasons)
        for kind, groups in self.copies_by_kind().items():
            where = COPIES[kind][0]
            if kind == "split":
                made = "" if self.has_split else " that finetune makes"
                where += f"{made}, so that accuracy comes out too high"
            names = [" = ".join(self.pictures[i].file for i in group[:3]) for group in groups]
            say(kind, "picture", where, names)
        doubtful = [
            f"{self.pictures[s.picture].file} looks like {self.classes[s.looks_like]}"
            for s in self.suspects
        ]
        say("wrong", "label", "may be wrong", doubtful)
        train, valid = self.counts("train"), self.counts("valid")
        each = list(zip(self.classes, train, valid, strict=True))
        if only := [name for name, t, v in each if v and not t]:
            said["strange"] = f"only the validation part has {first_few(only)}; finetune refuses"
        if empty := [name for name, t, v in each if not t + v]:
            said["empty"] = f"there is no usable picture of {first_few(empty)}"
        if len(self.classes) == 1:
            said["one"] = f"there is only one class, {self.classes[0]}; training needs two"
        return said | concerns(self.classes, train, int(valid.sum()))

    def remarks(self) -> list[str]:
        """Say what a trained network has to be better than, and what was passed over."""
        found, n_valid, said = self.baselines(), int(self.counts("valid").sum()), []
        if n_valid and "valid" not in self.sentences():
            said.append(f"validation: {what_it_proves(n_valid)}")
        if "features" in found:
            right, of = found["features"]
            said.append(
                f"without training, comparing features gets {100 * right / of:.1f} % right "
                f"({_span(*wilson(right, of))}): ridge regression, out of fold; {self.network}"
            )
        if "largest" in found:
            (right, of), name = found["largest"], self.classes[int(self.counts().argmax())]
            said.append(f"without training, always saying {name} gets {100 * right / of:.1f} %")
        return said + self.notes

    def __str__(self) -> str:
        return "\n".join(fitted(line, terminal_width() or 80) for line in self._lines())

    def _lines(self) -> Iterator[str]:
        train, valid = (int(self.counts(split).sum()) for split in ("train", "valid"))
        total, classes = counted(len(self.pictures), "picture"), counted(len(self.classes), "class")
        yield f"{self.name}: {total} of {classes}, {train} to train on, {valid} to validate"
        sentences = self.sentences()
        yield from (f"- {text}" for text in sentences.values())
        if not sentences:
            yield "nothing was found that training would suffer from"
        yield from self.remarks()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON holds it."""

        def files(groups: list[list[int]]) -> list[list[str]]:
            return [[self.pictures[i].file for i in group] for group in groups]

        by_split = (self.counts(split).tolist() for split in ("train", "valid"))
        return {
            "name": self.name,
            "classes": {
                name: {"train": train, "valid": valid}
                for name, train, valid in zip(self.classes, *by_split, strict=True)
            },
            "has_split": self.has_split,
            "findings": self.sentences(),
            "unusable": self.unusable,
            "copies": {kind: files(groups) for kind, groups in self.copies_by_kind().items()},
            "suspects": [
                {
                    "file": self.pictures[s.picture].file,
                    "label": self.classes[self.pictures[s.picture].label],
                    "looks_like": self.classes[s.looks_like],
                    "margin": s.margin,
                }
                for s in self.suspects
            ],
            "baselines": {name: right / of for name, (right, of) in self.baselines().items()},
            "network": self.network,
            "notes": self.notes,
        }

    def _repr_html_(self) -> str:
        return body(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a self-contained HTML page; an old file of that name is replaced whole."""
        text = page(f"{self.name}: before training", body(self))
        write_page(path, text)


def concerns(classes: Sequence[str], train: np.ndarray, n_valid: int) -> dict[str, str]:
    """Say by kind what counts alone tell: classes too small, uneven, a validation part too small.

    Shapes:  train (K,) int, the training pictures of each class
    """
    said, there = {}, train[train > 0]
    few = [f"{name} {n}" for name, n in zip(classes, train.tolist(), strict=True) if 0 < n < FEWEST]
    if few:
        which = f"{counted(len(few), 'class')} {'has' if len(few) == 1 else 'have'}"
        said["few"] = f"{which} fewer than {FEWEST} pictures to learn from: {first_few(few)}"
    if there.size and there.max() >= UNEVEN * there.min():
        least = classes[int(np.where(train, train, there.max() + 1).argmin())]
        said["uneven"] = (
            f"uneven classes: {there.max()} pictures of {classes[int(train.argmax())]} to learn "
            f"from, {there.min()} of {least}; --class-weights balanced makes them count alike"
        )
    low, high = wilson(round(0.9 * n_valid), n_valid)
    if n_valid > 0 and high - low > WIDE:
        said["valid"] = f"the validation part proves little: {what_it_proves(n_valid)}"
    return said


def what_it_proves(n: int) -> str:
    """Say what an accuracy on `n` pictures allows to claim at 95 %."""
    low, high = wilson(round(0.9 * n), n)
    share = 100 * round(0.9 * n) / n
    return f"{share:.0f} % right of {counted(n, 'picture')} would mean {_span(low, high)}"


def _span(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {100 * high:.0f} %"


# -------------------------------------------------------------------------------------- as a page


def body(facts: DatasetCheck) -> Markup:
    """Draw all of it as HTML."""
    copies = [_copies(facts, kind) for kind in COPIES]
    sections = [*copies[:2], _suspects(facts), *copies[2:], _classes(facts), _unusable(facts)]
    return Markup("\n".join([STYLE, _head(facts), *sections]))


def _head(facts: DatasetCheck) -> str:
    tiles = [(f"{len(facts.pictures):,}", "usable pictures"), (len(facts.classes), "classes")]
    for split, text in {"train": "to train on", "valid": "to validate"}.items():
        tiles.append((int(facts.counts(split).sum()), text))
    words = {"features": "by comparing features", "largest": "by always saying one class"}
    for name, (right, of) in facts.baselines().items():
        tiles.append((f"{100 * right / of:.0f} %", words[name]))
    row = "".join(f'<div class="tile"><b>{a}</b>{escape(b)}</div>' for a, b in tiles)
    said = list(facts.sentences().values()) or ["nothing that training would suffer from"]
    items = "".join(f"<li>{escape(text)}</li>" for text in said)
    lines = "<br>".join(map(escape, facts.remarks()))
    return (
        f'<h1 class="file">{escape(facts.name)}</h1><div class="shown">{row}</div>'
        f'<ul class="file">{items}</ul><p class="soft file">{lines}</p>'
    )


def _suspects(facts: DatasetCheck) -> str:
    figures = []
    for suspect in facts.suspects[:MOST_SUSPECTS]:
        shown, other = facts.pictures[suspect.picture], escape(facts.classes[suspect.looks_like])
        label = escape(facts.classes[shown.label])
        caption = Markup(f"{label}? looks like <b>{other}</b> ({suspect.margin:.2f})")
        figures.append(_figure(shown, caption))
    words = (
        "By the regression of all others, these features belong to another class; the number is by "
        "how much. Some labels are right, and the pictures merely unlike the others of their class."
    )
    return _section("Labels that may be wrong", words, figures, len(facts.suspects))


def _copies(facts: DatasetCheck, kind: str) -> str:
    groups, drawn = facts.copies_by_kind()[kind], []
    for group in groups[:MOST_GROUPS]:
        members = [facts.pictures[i] for i in group[:MOST_OF_A_GROUP]]
        figures = [_figure(p, escape(f"{facts.classes[p.label]}, {p.split}")) for p in members]
        rest = len(group) - len(members)
        figures += [f"<p>and {rest} more</p>"] if rest else []
        drawn.append(f'<div class="group">{"".join(figures)}</div>')
    return _section(f"Pictures {COPIES[kind][0]}", COPIES[kind][1], drawn, len(groups))


def _section(title: str, words: str, drawn: list[str], total: int) -> str:
    """A section of pictures, which is left out where there are none."""
    if not drawn:
        return ""
    more = f"<p>... and {total - len(drawn)} more, in the JSON.</p>" if total > len(drawn) else ""
    return f'<h2>{title}</h2><p>{words}</p><div class="shown">{"".join(drawn)}</div>{more}'


def _figure(shown: Picture, caption: Markup) -> str:
    """A picture, shrunk, with its caption and file; in words if it cannot be read any more."""
    try:
        pixels = shown.pixels()
        height, width = pixels.shape[:2]
        across, down = (max(1, round(n * WIDTH / max(height, width))) for n in (width, height))
        small = resize_to(pixels, (across, down))
        drawn = picture(small, "", lossless=False)
    except DataError as error:
        drawn = escape(f"(not shown: {error})")
    return (
        f"<figure>{drawn}<figcaption>{caption}<br>"
        f"{escape(shown.file)}, {shown.width}x{shown.height}</figcaption></figure>"
    )


def _classes(facts: DatasetCheck) -> str:
    rows, most = [], max(1, int(facts.counts().max(initial=0)))
    train, valid = facts.counts("train").tolist(), facts.counts("valid").tolist()
    for k, name in enumerate(facts.classes):
        here = [i for i, p in enumerate(facts.pictures) if p.label == k]
        pairs = [(p.width, p.height) for p in map(facts.pictures.__getitem__, here)]
        sizes = [f"{w}x{h}" for w, h in sorted(pairs, key=min)]
        spans = [sizes[0], sizes[len(sizes) // 2], sizes[-1]] if sizes else [None] * 3
        agree = None if facts.agree is None or not here else facts.agree[here].mean()
        shown = None if agree is None else f"{100 * agree:.0f} %"
        bar = Markup(f'<span class="bar" style="width:{120 * len(here) / most:.0f}px"></span>')
        rows.append([name, train[k], valid[k], bar, *spans, shown])
    head = ["class", "train", "valid", "", "smallest", "median", "largest", "features agree"]
    return f"<h2>Classes</h2>{table(head, rows)}"


def _unusable(facts: DatasetCheck) -> str:
    if not facts.unusable:
        return ""
    words = "<p>They would stop a run; <code>--on-error skip</code> leaves them out.</p>"
    listed = table(["file", "why"], list(facts.unusable.items()))
    return f"<h2>Files that cannot be used</h2>{words}{listed}"
