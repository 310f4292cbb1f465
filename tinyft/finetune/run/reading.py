"""A run's folder, read back, whatever a kill or another program left in it.

What run.json and a checkpoint's state have to look like is declared in one place, below. A damaged
or edited file is an error that names the place, and nothing is filled in for what is missing.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyft.data import ImageFolder, ImageTable
from tinyft.data.folder import MovedPictures
from tinyft.data.loader import PictureData
from tinyft.data.picture import printable
from tinyft.display import beside, did_you_mean, first_few
from tinyft.errors import DataError, RunError

FORMAT = "tinyft-run"
CHECKPOINT = "tinyft-checkpoint"
PICTURES = "pictures.csv"
LARGEST = 2**62  # no count of anything is larger, and machine integers hold it


def read_description(run: Path) -> dict[str, Any]:
    """Read run.json. Raises: RunError if there is none or it cannot be read"""
    path = run / "run.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if not run.exists():
            meant = did_you_mean(str(run), beside(run))
            raise RunError(f"there is no run {printable(run)}{meant}") from None
        raise RunError(
            f"{run} is no run, or was stopped before its first step: it has no run.json; start it "
            "anew, or give a folder that finetune wrote"
        ) from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    if wrong := mistake(description, DESCRIPTION, "it"):
        raise RunError(f"{path} is damaged: {wrong}")
    return description


def listing_sha256(listing: str) -> str:
    """The one hash by which run.json knows all pictures: that of pictures.csv."""
    return hashlib.sha256(listing.encode("utf-8", "backslashreplace")).hexdigest()


def read_checkpoint(
    path: Path, description: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the values of a checkpoint of the run that is described.

    Raises: RunError if it is another run's or another step's; WeightsError if it is damaged;
    OSError if the system refuses
    """
    from tinyft.weights import read_arrays

    arrays, _, texts = read_arrays(path, CHECKPOINT)
    values = parsed(texts.get("state"))
    if wrong := mistake(values, STATE, "its state"):
        raise RunError(wrong)
    if values["run"] != description["id"]:
        raise RunError(f"its run is {values['run']}, this one {description['id']}")
    begun = values["step"] > description["first_step"]
    if values["step"] != int(path.stem) or (begun and not values["phase_digests"]):
        raise RunError(f"its state is that of step {values['step']}, or of none")
    return arrays, values


def parsed(text: object) -> Any:
    """What a text says as JSON; None for what is none."""
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):  # lists within lists a thousand deep are the latter
        return None


def checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of the run at `run` by how many steps were made, the oldest first.

    What others put beside them, as `000039 (conflicted copy).h5`, is none.
    Raises: OSError if the system does not list them; `glob` would find none
    """
    folder = run / "checkpoints"
    files = [folder / name for name in os.listdir(folder)] if folder.exists() else []
    names = (file for file in files if file.suffix == ".h5" and file.stem.isdecimal())
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


def read_metrics(path: Path) -> dict[str, Any]:
    """The columns of a metrics.csv, none if it is missing or empty: of `phase` a list of texts,
    else float arrays with NaN for what a step did not measure.

    Raises: as metrics_lines
    """
    head, *rows = metrics_lines(path) or [[]]
    columns = zip(*rows, strict=True) if rows else [()] * len(head)
    return {
        name: list(cells) if name == "phase" else np.array([_number(cell) for cell in cells])
        for name, cells in zip(head, columns, strict=True)
    }


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


# -------------------------------------------------------------------------------- its pictures


# A run's pictures: None where they were; a folder that they were moved to; or given as they are.
MaybeMoved = PictureData | str | os.PathLike[str] | None
OPENED = {"folder": ImageFolder, "table": ImageTable}  # by what run.json says of them


def pictures_of_run(
    path: str | os.PathLike[str],
    data: MaybeMoved = None,
    *,
    otherwise: str = "",
    without: Collection[str] = (),
    skip_lost: bool = False,
    **options: Any,
) -> PictureData:
    """The pictures of the run at `path`: its folder, opened as it was but for `options`; or `data`:
    the folder where they are now, under any names, or the arrays in memory that the run was made
    from.

    Of a folder those called `without` are left out, and with `skip_lost` those that are gone or
    have changed; see `MovedPictures`. `otherwise` is an error's remedy if they have changed.
    Raises: RunError if the pictures have changed, or are arrays that were not given; DataError or
    OSError if the folder cannot be opened
    """
    path = Path(path)
    recorded = read_description(path)["data"]
    if isinstance(data, ImageFolder) and (without or skip_lost):
        data = data.path
    if data is None or isinstance(data, str | os.PathLike):
        if recorded.get("kind") not in OPENED:
            raise RunError(
                f"{path} was trained on arrays in memory, which only Python can bring back: pass "
                "them there as data="
            )
        arguments, folder = recorded["arguments"] | options, Path(recorded["arguments"]["path"])
        if data is None and not folder.is_dir():
            raise DataError(
                f"{path} began with the pictures in {printable(folder)}, which is no longer there; "
                "put them back, or say where they are: --data DIR (in Python data=DIR)"
            )
        pictures: PictureData | None = None
        if data is None and not (without or skip_lost):
            with contextlib.suppress(DataError):  # which would not say what else is gone
                pictures = OPENED[recorded["kind"]](**arguments)
        if pictures is None:
            for name in ("path", "labels", "label_regex"):
                arguments.pop(name, None)
            arguments |= {"without": without, "skip_lost": skip_lost}
            pictures = MovedPictures(data or folder, _lines(path)[1:], **arguments)
    else:
        pictures = data
    if changed := changed_pictures(path, pictures):
        summary = f"the pictures of {path} have changed since it began{changed}"
        raise RunError(summary, remedy=otherwise, on_error="skip")
    return pictures


def left_out(description: dict[str, Any], step: int = LARGEST) -> list[str]:
    """Name the pictures without which a run went on, when it was resumed before `step`."""
    return [name for name, since in description.get("left_out", {}).items() if since <= step]


def changed_pictures(path: Path, data: PictureData) -> str:
    """Name the pictures of the run at `path` that are others, new or gone, as " (1 of them:
    cat/0.png)"; "" if all are as they were.
    """
    listing, recorded = data.listing(), read_description(path)["data"]["sha256"]
    if listing_sha256(listing) == recorded:
        return ""
    try:
        before = set(_lines(path))
    except RunError as error:
        return f" (which ones is not known: {error})"
    now = set(map(tuple, csv.reader(io.StringIO(listing, newline=""))))
    others = {line[2:] for line in before} ^ {line[2:] for line in now}
    names = sorted({line[-1] for line in others or before ^ now})  # or only classes, or the split
    return f" ({len(names)} of them: {first_few(names)})"


def _lines(path: Path) -> list[tuple[str, ...]]:
    """The lines (split, class, sha256, name) of the pictures.csv of the run at `path`, head first.

    Raises: RunError if it is not as the run wrote it
    """
    try:
        text = (path / PICTURES).read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        text = ""
    if listing_sha256(text) != read_description(path)["data"]["sha256"]:
        raise RunError(f"{path / PICTURES} is gone, or not as the run wrote it")
    return [*map(tuple, csv.reader(io.StringIO(text, newline="")))]


def learnt_by(path: Path, data: PictureData) -> int:
    """Count the validation pictures of `data` that the run at `path` was trained on, by their
    bytes; 0 if the run does not say what its pictures were.
    """
    try:
        before = (path / PICTURES).read_text("utf-8", "replace")
    except OSError:
        return 0
    trained, judged = (
        {line[2] for line in csv.reader(io.StringIO(text, newline="")) if line[:1] == [split]}
        for text, split in ((before, "train"), (data.listing(), "valid"))
    )
    return len(trained & judged)


# ------------------------------------------------------------------ what a plain value has to be


@dataclass(frozen=True)
class Kind:
    """A requirement of a plain value, in words and as a check."""

    words: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class IfThere:
    """The kind of a name that may be missing."""

    kind: Any


def optional(kind: Any) -> Callable[[Any], Any]:
    """Null, or a value of a kind."""
    return lambda value: ANY if value is None else kind


def one_of(values: tuple[str, ...]) -> Kind:
    """One of these texts."""
    return Kind(f"one of {', '.join(values)}", lambda value: value in values)


def whole(least: int = 0) -> Kind:
    """A whole number that is not less than `least`."""
    return Kind(f"a whole number from {least}", lambda v: type(v) is int and least <= v <= LARGEST)


def number(least: float = -math.inf, most: float = math.inf) -> Kind:
    """A finite number from `least` to `most`."""
    limits = "" if least == -math.inf else f" from {least:g}"
    limits += "" if most == math.inf else f" to {most:g}"

    def fits(value: Any) -> bool:
        # whole numbers beyond the floats' are finite too, and no float can be made of them
        is_number = type(value) is float or (type(value) is int and abs(value) <= LARGEST)
        return is_number and math.isfinite(value) and least <= value <= most

    return Kind(f"a finite number{limits}", fits)


TEXT = Kind("a text", lambda value: isinstance(value, str))
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
ANY = Kind("anything", lambda value: True)


def mistake(value: Any, kind: Any, where: str) -> str:
    """The first place at which a value is not of its kind, in words; "" if it is.

    A kind is a `Kind`; {"name": kind}, names that have to be there unless they are `IfThere`,
    beside others; {str: kind}, any names; [kind], a list; a tuple of kinds, a list of as many
    values; or a function that finds the kind for the value.
    """
    if isinstance(kind, IfThere):
        return mistake(value, kind.kind, where)
    if callable(kind):
        return mistake(value, kind(value), where)
    if isinstance(kind, dict):
        return _mistake_in_names(value, kind, where)
    if isinstance(kind, list | tuple):
        return _mistake_in_list(value, kind, where)
    return "" if kind.fits(value) else _other(value, kind.words, where)


def _mistake_in_names(value: Any, kinds: dict, where: str) -> str:
    if not isinstance(value, dict):
        return _other(value, "a set of names and values", where)
    free = kinds.get(str)
    for name in value if free else kinds:
        kind = free or kinds[name]
        if name in value:
            if wrong := mistake(value[name], kind, f"{where}: {name}"):
                return wrong
        elif not isinstance(kind, IfThere):
            return f"{where} has no {name}"
    return ""


def _mistake_in_list(value: Any, kinds: list | tuple, where: str) -> str:
    if not isinstance(value, list):
        return _other(value, "a list", where)
    if isinstance(kinds, tuple) and len(value) != len(kinds):
        return _other(value, f"a list of {len(kinds)}", where)
    each = zip(value, kinds if isinstance(kinds, tuple) else kinds * len(value), strict=True)
    mistakes = (mistake(v, kind, f"{where}[{i}]") for i, (v, kind) in enumerate(each))
    return next(filter(None, mistakes), "")


def _other(value: Any, words: str, where: str) -> str:
    return f"{where} should be {words}, and is {value!r:.60}"


# ------------------------------------------------------------------------------------- the schemas


_FOLDER = {
    **dict.fromkeys(("path", "on_error"), TEXT),
    "valid_fraction": number(0, 1),
    "exif_transpose": SWITCH,
    "classes": optional([TEXT]),
}
_TABLE = _FOLDER | dict.fromkeys(("labels", "label_regex"), optional(TEXT))
_ARRAYS = {"classes": [TEXT]}


def _data(value: Any) -> Any:
    """Pictures of a folder, arrays, or a caller's own kind, of which nothing is known."""
    known: dict[str, dict[str, Any]] = {"folder": _FOLDER, "table": _TABLE, "arrays": _ARRAYS}
    kind = value.get("kind") if isinstance(value, dict) else None
    arguments = {}
    if isinstance(kind, str) and kind in known:
        arguments = known[kind] | {
            "size": optional(whole(1)),
            "batch_size": whole(1),
            "shuffle": SWITCH,
            "augment": optional(TEXT),
            "seed": whole(),
        }
    n = IfThere(whole())
    return {"kind": TEXT, "arguments": arguments, "sha256": TEXT, "n_train": n, "n_valid": n}


def _plan(value: Any) -> Any:
    """The arguments of the method that makes the plan again; none for a caller's own."""
    epochs, stale = {"epochs": whole()}, {"stale_gradients": SWITCH}
    methods: dict[str, dict[str, Any]] = {
        "plan": epochs | stale | {"base_lr": number(0), "freeze_epochs": whole()},
        "one_cycle_plan": epochs
        | {"lr_max": [number(0)], "first_trainable": whole(), "reset_optimizer": SWITCH},
        "plan_of": stale | {"phases": ANY, "reset_optimizer": SWITCH},  # see Phase.from_dict
    }
    method = value.get("method") if isinstance(value, dict) else None
    if not isinstance(method, str) or method not in methods:
        return {} if value == {} else {"method": Kind(" or ".join(methods), lambda _: False)}
    schedule = dict.fromkeys(("lr_mult", "pct_start", "div", "div_final"), IfThere(number(0)))
    moms = IfThere((number(0, 1),) * 3)
    return {"weight_decay": number(0), **methods[method], **schedule, "moms": moms}


def _class_weights(value: Any) -> Any:
    return one_of(("balanced",)) if isinstance(value, str) else optional([number(0)])


_LEARNER = {
    **dict.fromkeys(("arch", "weights", "head"), optional(TEXT)),
    **dict.fromkeys(("bn", "device", "optimizer", "dtype"), TEXT),
    "seed": whole(),
    "dropout": optional(number(0, 1)),
    "head_init": IfThere(one_of(("random", "means"))),
    "mirrored": IfThere(SWITCH),
    "label_smoothing": number(0, 1),
    "class_weights": _class_weights,
    "weight_decay": optional(number(0)),
    "groups": IfThere(optional({str: [TEXT]})),
}

IN_WORDS = {"phases": [dict.fromkeys(("title", "text", "where"), TEXT)], "decay": TEXT}

KEEP = Kind(
    "all, last or a whole number from 1",
    lambda v: v in ("all", "last") or (type(v) is int and 1 <= v <= LARGEST),
)
DESCRIPTION = {
    "format": one_of((FORMAT,)),
    "id": TEXT,
    "settings": {"command": IfThere([TEXT]), "keep": IfThere(KEEP)},
    "arch": TEXT,
    "weights_sha256": TEXT,
    "learner": optional(_LEARNER),
    "data": _data,
    "plan": _plan,
    "first_step": whole(),
    "steps": whole(1),
    "plan_text": TEXT,
    "plan_in_words": IfThere(IN_WORDS),
    "classes": [TEXT],
    "versions": {str: TEXT},
    "left_out": IfThere({str: whole()}),  # from which step on, by the picture's name
    "finished": SWITCH,
    "seconds": IfThere(number(0)),
}

STATE = {
    "run": TEXT,
    **dict.fromkeys(("step", "epoch"), whole()),
    "smooth": {"value": number(), "count": whole()},
    "optimizer_counts": {str: number()},
    "trained": [TEXT],
    "phase_digests": {str: TEXT},
    "validation": optional(
        {
            "n": whole(),
            "accuracy": number(0, 1),
            "loss": number(),
            "balanced_accuracy": IfThere(optional(number(0, 1))),
        }
    ),
    "groups": [(number(0), number(0, 1), number(0))],
    "best_accuracy": number(-1, 1),
    "seconds": number(0),
    "epoch_steps": [whole()],
}
