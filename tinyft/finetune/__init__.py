"""Fine-tuning: the recipe, the plan, and the learner that executes it.

Importing this loads none of it: an optimizer comes without what reads pictures and weights.
"""

from tinyft.lazy import looked_up_in

_HOME = {
    "SGD": "optim",
    "Adam": "optim",
    "Evaluation": "records",
    "Group": "groups",
    "Learner": "learner",
    "LrFinding": "trials",
    "Optimizer": "optim",
    "Phase": "schedule",
    "Plan": "plan",
    "Prediction": "records",
    "StepRecord": "records",
    "layer_groups": "groups",
    "load_learner": "build",
    "one_cycle_phase": "schedule",
    "vision_learner": "build",
}

__all__ = [*_HOME]
__getattr__ = looked_up_in(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
