"""What run.json and a checkpoint's state have to look like, declared in one place.

Whoever reads them, reads them through `reading.py`, which refuses what does not fit: a damaged
or edited file is then an error that names the place, and nothing is filled in for what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LARGEST = 2**62  # no count of anything is larger, and machine integers hold it


@dataclass(frozen=True)
class Kind:
    """What a plain value has to be, in words and as a check."""

    words: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Optional:
    """Null, or a value of a kind."""

    kind: Any


@dataclass(frozen=True)
class IfThere:
    """What a name has to be that may be missing."""

    kind: Any


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
FORMAT = "tinyft-run"


def mistake(value: Any, kind: Any, where: str) -> str:
    """The first place at which a value is not of its kind, in words; "" if it is.

    A kind is a `Kind`, an `Optional`; {"name": kind}, names that have to be there unless they are
    `IfThere`, beside others; {str: kind}, any names; [kind], a list; a tuple of kinds, a list of as
    many values; or a function that finds the kind for the value.
    """
    if isinstance(kind, Optional):
        return "" if value is None else mistake(value, kind.kind, where)
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
            if found := mistake(value[name], kind, f"{where}: {name}"):
                return found
        elif not isinstance(kind, IfThere):
            return f"{where} has no {name}"
    return ""


def _mistake_in_list(value: Any, kinds: list | tuple, where: str) -> str:
    if not isinstance(value, list):
        return _other(value, "a list", where)
    if isinstance(kinds, tuple) and len(value) != len(kinds):
        return _other(value, f"a list of {len(kinds)}", where)
    each = zip(value, kinds if isinstance(kinds, tuple) else kinds * len(value), strict=True)
    found = (mistake(v, kind, f"{where}[{i}]") for i, (v, kind) in enumerate(each))
    return next(filter(None, found), "")


def _other(value: Any, words: str, where: str) -> str:
    return f"{where} should be {words}, and is {value!r:.60}"


# ------------------------------------------------------------------------------------- the schemas


_FOLDER = {
    **dict.fromkeys(("path", "on_error"), TEXT),
    "valid_fraction": number(0, 1),
    "exif_transpose": SWITCH,
    "classes": Optional([TEXT]),
}
_ARRAYS = {"classes": [TEXT]}


def _data(value: Any) -> Any:
    """Pictures of a folder, arrays, or a caller's own kind, of which nothing is known."""
    known = {"folder": _FOLDER, "arrays": _ARRAYS}
    kind = value.get("kind") if isinstance(value, dict) else None
    arguments = {}
    if isinstance(kind, str) and kind in known:
        arguments = known[kind] | {
            "size": Optional(whole(1)),
            "batch_size": whole(1),
            "shuffle": SWITCH,
            "augment": Optional(TEXT),
            "seed": whole(),
        }
    n = IfThere(whole())
    return {"kind": TEXT, "arguments": arguments, "sha256": TEXT, "n_train": n, "n_valid": n}


def _plan(value: Any) -> Any:
    """The arguments of the method that makes the plan again; none for a caller's own."""
    epochs, stale = {"epochs": whole()}, {"stale_gradients": SWITCH}
    methods = {
        "plan": epochs | stale | {"base_lr": number(0), "freeze_epochs": whole()},
        "one_cycle_plan": epochs
        | {"lr_max": [number(0)], "first_trainable": whole(), "reset_optimizer": SWITCH},
        "plan_of": stale | {"phases": ANY, "reset_optimizer": SWITCH},  # see Phase.from_dict
    }
    method = value.get("method") if isinstance(value, dict) else None
    if not isinstance(method, str) or method not in methods:
        return {} if value == {} else {"method": Kind(" or ".join(methods), lambda _: False)}
    schedule = dict.fromkeys(("lr_mult", "pct_start", "div", "div_final"), IfThere(number(0)))
    schedule["moms"] = IfThere((number(0, 1),) * 3)
    return {"weight_decay": number(0), **methods[method], **schedule}


_LEARNER = {
    **dict.fromkeys(("arch", "weights", "head"), Optional(TEXT)),
    **dict.fromkeys(("bn", "device", "optimizer", "dtype"), TEXT),
    "seed": whole(),
    "dropout": Optional(number(0, 1)),
    "label_smoothing": number(0, 1),
    "class_weights": Optional([number(0)]),
    "weight_decay": Optional(number(0)),
    "groups": IfThere(Optional({str: [TEXT]})),
}

DESCRIPTION = {
    "format": Kind(repr(FORMAT), lambda value: value == FORMAT),
    "id": TEXT,
    "settings": {"command": IfThere([TEXT])},
    "arch": TEXT,
    "weights_sha256": TEXT,
    "learner": Optional(_LEARNER),
    "data": _data,
    "plan": _plan,
    "first_step": whole(),
    "random_body": IfThere(SWITCH),
    "random_head": IfThere(SWITCH),
    "steps": whole(1),
    "plan_text": TEXT,
    "classes": [TEXT],
    "versions": {str: TEXT},
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
    "validation": Optional({"n": whole(), "accuracy": number(0, 1), "loss": number()}),
    "groups": [(number(0), number(0, 1), number(0))],
    "best_accuracy": number(-1, 1),
    "seconds": number(0),
    "epoch_steps": [whole()],
}
