"""Moments of small float64 learners, in which an answer is known or differences are exact, and an
observer that does what a test asks for.
"""

from __future__ import annotations

from tests.finetune.conftest import small_data, small_learner
from tinyft.inspection.step.moment import Moment

SIDE = 12  # pixels: the reference backend takes its time


def moment_of(step=0, *, plan=None, data=None, **options) -> Moment:
    """Before a step of a learner's plan(1): three steps of the head, three of everything."""
    learner = small_learner(data or small_data(size=SIDE), dtype="float64", **options)
    plan = learner.plan(1, **(plan or {}))
    for record in learner.steps(plan) if step else ():
        if record.step == step - 1:
            break
    return Moment.of(learner, plan, step)


def linear_moment(**plan) -> Moment:
    """Plain gradient descent on a linear head; nothing else moves, nothing is random."""
    plan = {"weight_decay": 0.0, **plan}
    return moment_of(optimizer="sgd", head="linear", bn="frozen", plan=plan)


class AfterStep:
    """Calls a function with the learner and the record of each step."""

    def __init__(self, function):
        self.after_step = function

    def begin(self, learner, plan):
        """Nothing to prepare."""

    def end(self, learner):
        """Nothing to finish."""
