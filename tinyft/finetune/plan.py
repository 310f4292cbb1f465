"""The plan: everything that training will do, as data, before it does it. The learner executes it
and decides nothing. `planning.py` makes plans, `in_words.py` explains them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinyft.data.loader import PictureData
from tinyft.display import Displayed, aligned, counted, first_few, paragraph
from tinyft.finetune.schedule import Phase
from tinyft.finetune.training import RANDOM, Origin
from tinyft.weights.preprocess import Preprocess

TABLE = ("group", "state", "lr start", "lr peak", "lr end", "momentum", "parameters that train")
REMEMBERS = "goes on with what it remembers"


@dataclass(frozen=True)
class GroupState:
    """One group in one phase: how many of its parameters get a gradient, of how many, and what its
    batch norms do, in words.
    """

    name: str
    frozen: bool
    trainable: int
    total: int
    batch_norms: str
    in_head: bool


@dataclass(frozen=True)
class Subject:
    """The network that a plan trains, after `steps_made` steps, and the pictures."""

    arch: str
    parameters: int
    dtype: str
    classes: list[str]
    origin: Origin
    steps_made: int
    n_train: int
    n_valid: int
    batch_size: int
    augment: str | None
    preprocess: Preprocess
    optimizer: str
    label_smoothing: float
    mirrored: bool
    class_weights: list[float] | None

    @property
    def random_body(self) -> bool:
        return self.steps_made == 0 and self.origin.random_body

    @property
    def random_head(self) -> bool:
        return self.steps_made == 0 and self.origin.head_state == RANDOM

    def lines(self) -> list[str]:
        """Network, head, data and input, a line each."""
        origin, p = self.origin, self.preprocess
        state = (
            f"after {counted(self.steps_made, 'step')}" if self.steps_made else origin.head_state
        )
        head = origin.head or "of the caller's own"
        dropped = "; the trained one of the weights is dropped: " + origin.head_dropped
        square = f"the middle square at {p.crop} px"
        if p.resize > p.crop and p.whole_square:
            square += f", sampled from {p.resize} px as augmentation does"
        elif p.resize > p.crop:
            square = f"the middle {p.crop} px of a short side of {p.resize} px"
        return [
            f"network: {self.arch}, {self.parameters:,} parameters, {self.dtype}; "
            f"body: {origin.weights}",
            f"head: {head}, {state}, {len(self.classes)} classes"
            + (dropped if origin.head_dropped else ""),
            f"data: {counted(self.n_train, 'picture')} to train on, {self.n_valid} to validate, "
            f"batches of {self.batch_size}; augmentation: {self.augment or 'none'}",
            f"input: {square}, mean {p.mean}, std {p.std} "
            f"({'assumed' if p.assumed else 'from the weights file'})",
            *self.unusual(),
        ]

    def unusual(self) -> list[str]:
        """The optimizer, the loss and the answers, where they are not Adam, plain cross-entropy and
        of the picture alone.
        """
        lines = [] if self.optimizer == "adam" else [f"optimizer: {self.optimizer}"]
        if self.mirrored:
            lines.append("answers: means over each picture and its mirror image")
        loss = f", labels smoothed by {self.label_smoothing:g}" if self.label_smoothing else ""
        if self.class_weights:
            weights = zip(self.classes, self.class_weights, strict=True)
            loss += ", classes weighted: " + first_few([f"{n} {w:.3g}" for n, w in weights])
        return [*lines, f"loss: cross-entropy{loss}"] if loss else lines


@dataclass(frozen=True)
class Plan(Displayed):
    """Phases in order; `states[i][g]` says what group g does in phase i. `first_step` is the number
    of its first step, as metrics.csv and the ledger count.
    """

    phases: list[Phase]
    states: list[list[GroupState]]
    cached_bytes: list[int]  # per phase: features of the body that are kept, 0 for none
    weight_decay: float
    bn: str
    subject: Subject
    stale_gradients: bool = False
    reset_optimizer: bool = True  # at the start of each phase
    first_step: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)  # to make it again; see `remade`
    data: PictureData | None = field(default=None, compare=False, repr=False)

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    def at(self, step: int) -> tuple[int, int]:
        """Find the phase that makes a step of the plan, and which of its steps that is, from 0.

        Raises: ValueError if the plan has no such step
        """
        if not 0 <= step < self.steps:
            raise ValueError(
                f"step should be from 0 to {self.steps - 1}, the plan's last; got {step}"
            )
        number = 0
        while step >= self.phases[number].steps:
            step -= self.phases[number].steps
            number += 1
        return number, step

    @property
    def switches(self) -> dict[str, Any]:
        """The arguments of `Training.enter` beside the phase."""
        return {
            "weight_decay": self.weight_decay,
            "stale_gradients": self.stale_gradients,
            "reset_optimizer": self.reset_optimizer,
        }

    def __str__(self) -> str:
        lines = [_wrapped(line) for line in self.subject.lines()]
        first = self.first_step
        each = zip(self.phases, self.states, self.cached_bytes, strict=True)
        for number, (phase, states, cached_bytes) in enumerate(each, 1):
            last = first + phase.steps - 1
            lines += [
                "",
                f"Phase {number}: {phase.name}, {counted(phase.epochs, 'epoch')} of "
                f"{counted(phase.steps_per_epoch, 'step')} (steps {first} to {last})",
                f"  the optimizer {'starts empty' if self.reset_optimizer else REMEMBERS}",
                *_table(phase, states, self.stale_gradients),
                *_batch_norm_lines(states),
            ]
            if cached_bytes:
                size = f"{cached_bytes / 1e6:.0f} MB"
                lines.append(f"  features of the body are kept ({size}): each picture passes "
                             "through it once")  # fmt: skip
            first = last + 1
        decay = f"weight decay {self.weight_decay:g}, times the learning rate; none on batch norms"
        stale = "; frozen weights that once trained decay on" if self.stale_gradients else ""
        return "\n".join([*lines, "", _wrapped(decay + " and biases" + stale)])


def _table(phase: Phase, states: list[GroupState], stale: bool) -> list[str]:
    """One line a group: whether it is frozen, start, peak and end of its learning rate and of
    momentum (whose peak is its lowest), what trains. Where nothing moves, a rate means nothing.
    """
    m = phase.momentum
    momentum = f"{m[0]:.2f} {m.min():.2f} {m[-1]:.2f}" if m.any() else "none"
    rows: list[tuple[str, ...]] = [TABLE]
    for state, lr in zip(states, phase.lr.T, strict=True):
        cells = [f"{rate:.2e}" for rate in (lr[0], lr.max(), lr[-1])] + [momentum]
        if not state.trainable and not stale:
            cells = ["-"] * 4
        count = f"{state.trainable:,} of {state.total:,}"
        rows.append((state.name, "frozen" if state.frozen else "trains", *cells, count))
    return aligned(rows, indent="  ")


def _batch_norm_lines(states: list[GroupState]) -> list[str]:
    """Tell what the batch norms do, groups that do the same together."""
    by_text: dict[str, list[str]] = {}
    for state in states:
        by_text.setdefault(state.batch_norms, []).append(state.name)
    return [
        _wrapped(f"  batch norms of {', '.join(names)}: {text}") for text, names in by_text.items()
    ]


def _wrapped(line: str) -> str:
    return paragraph(line, rest="    ")
