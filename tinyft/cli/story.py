"""A fine-tuning run in a few sentences, for somebody who sees one for the first time."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

from tinyft.cli.output import percent
from tinyft.display import counted, first_few

if TYPE_CHECKING:
    from tinyft.data.loader import PictureData
    from tinyft.finetune import Learner, Plan

WIDTH = 96
HEAD_TEXTS = {
    "fastai": "both pools, batch norm, dropout, 512 numbers, ReLU, batch norm, dropout, {} classes",
    "linear": "average pool, {} classes",
}
BODY_FROZEN = (
    "The pretrained layers are frozen: the weights of their convolutions get no gradient, so what "
    "they know is safe from the head's first, random errors."
)
ALL_TRAIN = (
    "The early layers hardly move, as edges and textures serve any photo; later ones move more."
)
RANDOM_FROZEN = "The body's layers are frozen and know nothing: their weights are random."
RANDOM_TRAIN = "Everything is learnt from these photos alone."


def beginning(learner: Learner, plan: Plan) -> str:
    """What is about to happen: the pictures, the network, the cut, and each phase."""
    data, facts = learner.data, learner.facts
    known = facts.get("metadata", {}).get("training") or facts.get("weights", "")
    body = sum(group.count for group in learner.groups if not group.in_head)
    head = HEAD_TEXTS.get(facts.get("head", ""), "a module of the caller's, {} classes")
    paragraphs = {
        "pictures": f"{data.n_train} to learn from and {data.n_valid} to be tested on, of "
        f"{len(data.classes)} classes: {first_few(data.classes)}.",
        "network": f"{learner.arch}, {body:,} numbers without its last layer. {known}.",
        "cut": f"{_cut(facts)}: {head.format(len(data.classes))}.",
    }
    for number, phase in enumerate(plan.phases, 1):
        epochs = counted(phase.epochs, "epoch")
        what = _phase(plan, number - 1, pretrained="metadata" in facts)
        paragraphs[f"phase {number}"] = f"{phase.name}, {epochs}. {what}"
    return "\n".join(_paragraph(name, text) for name, text in paragraphs.items())


def _cut(facts: dict[str, Any]) -> str:
    from tinyft.finetune.plan import KEPT  # here, so that help stays quick

    if facts.get("head_state") == KEPT:
        return "The trained head is kept, since its classes are these"
    removed = f"{facts.get('cut', 'The last layer')} is removed"
    return f"{removed}, and a new head of random numbers put there"


def _phase(plan: Plan, index: int, pretrained: bool) -> str:
    """What trains, how fast, and what the batch norms do."""
    phase, states = plan.phases[index], plan.states[index]
    peaks = phase.lr.max(axis=0)
    rates = ", ".join(
        f"{state.name} {peak:.1e}".replace(".0e", "e").replace("e-0", "e-")
        for state, peak in zip(states, peaks, strict=True)
        if not state.frozen
    )
    if not states[0].frozen:
        text = ALL_TRAIN if pretrained else RANDOM_TRAIN
        return f"{text} Largest learning rates: {rates}."
    text = BODY_FROZEN if pretrained else RANDOM_FROZEN
    return f"{text} Their batch norms: {states[0].norms}. Largest learning rate: {rates}."


def _paragraph(name: str, text: str) -> str:
    indent = " " * 10
    return textwrap.fill(
        text, WIDTH, initial_indent=f"{name:10}", subsequent_indent=indent, break_on_hyphens=False
    )


def comparison(metrics: dict[str, Any], accuracy: float, data: PictureData) -> str:
    """The accuracy beside that of the head alone and that of guessing, or of always naming the
    largest class, from all of a run's `read_metrics`; "" if there is nothing to compare.
    """
    from tinyft.finetune.recipe import HEAD_ALONE

    judged = zip(metrics["phase"], metrics["valid_accuracy"], strict=True)
    of_head = [found for phase, found in judged if phase == HEAD_ALONE and not math.isnan(found)]
    if not of_head or metrics["phase"][-1] == HEAD_ALONE:
        return ""
    before, chance = of_head[-1], 1 / data.num_classes
    name, largest = data.always_largest()
    nothing = f"guessing: {percent(chance)}"
    if largest > chance:
        nothing = f"always naming {name}, the largest class: {percent(largest)}"
    return (
        f"the head alone had {percent(before)}; training everything made it {percent(accuracy)} "
        f"({nothing})"
    )
