"""Fine-tuning: the recipe, the plan, and the learner that executes it.

Importing this loads none of it: an optimizer comes without what reads pictures and weights.
"""

from typing import TYPE_CHECKING

from tinyft.lazy import looked_up_in

if TYPE_CHECKING:  # the same names for editors, which do not run the look-up
    from tinyft.finetune.build import RECIPES as RECIPES
    from tinyft.finetune.build import load_learner as load_learner
    from tinyft.finetune.build import vision_learner as vision_learner
    from tinyft.finetune.groups import Group as Group
    from tinyft.finetune.groups import layer_groups as layer_groups
    from tinyft.finetune.learner import Learner as Learner
    from tinyft.finetune.optim import SGD as SGD
    from tinyft.finetune.optim import Adam as Adam
    from tinyft.finetune.optim import Optimizer as Optimizer
    from tinyft.finetune.plan import Plan as Plan
    from tinyft.finetune.records import Evaluation as Evaluation
    from tinyft.finetune.records import Prediction as Prediction
    from tinyft.finetune.records import StepRecord as StepRecord
    from tinyft.finetune.schedule import Phase as Phase
    from tinyft.finetune.schedule import one_cycle_phase as one_cycle_phase
    from tinyft.finetune.trials import LrFinding as LrFinding

_HOME = {
    "RECIPES": "build",
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

if not TYPE_CHECKING:  # or every name would seem to be there
    __all__ = [*_HOME]
    __getattr__, __dir__ = looked_up_in(__name__, _HOME)
