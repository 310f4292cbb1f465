"""Printing: results to stdout, all else to stderr."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import re
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

from tinyft.display import first_few, fitted, terminal_width
from tinyft.progress import is_terminal, shown

if TYPE_CHECKING:
    from tinyft.finetune import Plan, StepRecord
    from tinyft.finetune.groups import Proof
    from tinyft.finetune.records import Evaluation
    from tinyft.finetune.training import Training

# All that str.splitlines breaks at, or a tab, with the spaces around.
_BREAK = re.compile(r" *[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+ *")


def say(text: str) -> None:
    """A line on stderr, above bars. That nobody reads it is no reason to stop."""
    text = fitted(text, terminal_width(sys.stderr))
    if display := shown():
        display.line(text)
        return
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def result(text: str) -> None:
    """A line on stdout; on a terminal several, where it is too long for one."""
    print(fitted(text, terminal_width()), flush=True)


def json_result(value: Any) -> None:
    """One line of JSON on stdout. Records become objects, arrays lists, NaN and infinity null."""
    print(json.dumps(plain(value), allow_nan=False), flush=True)


def answer(args: argparse.Namespace, text: str, value: Any) -> None:
    """The result in words, or with --json its value."""
    if args.json:
        json_result(value)
    elif text:
        result(text)


def plain(value: Any) -> Any:
    """Return what JSON can hold: of records objects, of arrays lists, of NaN and infinity null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def one_line(text: str) -> str:
    """Text with line breaks and tabs as spaces and other control characters spelt out: a file's
    name may hold any. All other spaces stay, or a command that is printed names another file.
    """
    return "".join(_printable(c) for c in _BREAK.sub(" ", text.strip("\r\n")))


def _printable(character: str) -> str:
    is_space = unicodedata.category(character) == "Zs"  # only the plain one counts as printable
    return character if character.isprintable() or is_space else repr(character)[1:-1]


def write(file: str, text: str) -> None:
    """Write a page or a table whole, or leave an old one as it is."""
    from tinyft.weights.files import write_page

    write_page(file, text)
    say(f"written: {one_line(file)}")


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def has_terminal() -> bool:
    """Say if bars and colours are welcome."""
    return is_terminal(sys.stdout, sys.stderr)


def accuracies(judged: Evaluation) -> str:
    """ "accuracy 90.00 %", and where classes are uneven ", balanced 75.00 %" """
    fair = judged.balanced_accuracy
    beside = "" if fair is None else f", balanced {percent(fair)}"
    return f"accuracy {percent(judged.accuracy)}{beside}"


class RunLines:
    """An observer of a run: a line after each epoch and each phase."""

    def begin(self, learner: Training, plan: Plan) -> None:
        self.plan = plan

    def after_step(self, learner: Training, record: StepRecord) -> None:
        if record.validation:
            validation, display = record.validation, shown()
            left = f"; {display.works[0].left()}" if display else ""
            say(
                f"epoch {record.epoch + 1} of {self.plan.epochs} ({record.phase}): "
                f"loss {record.smooth_loss:.4f}, valid loss {validation.loss:.4f}, "
                f"{accuracies(validation)}{left}"
            )
        if record.proof:
            say(_proof(record.phase, record.proof))

    def end(self, learner: Training) -> None:
        """Everything has been said."""


def _proof(phase: str, proof: Proof) -> str:
    """Tell which tensors the phase left as they were, by the hashes of their bits."""
    names = proof.identical
    total = len(names) + len(proof.moved)
    if not names:
        return f"{phase}: all {total} tensors changed, as planned"
    return one_line(
        f"{phase}: proved unchanged, {len(names)} of {total} tensors: {first_few(names, 2)}"
    )
