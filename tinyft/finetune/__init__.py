"""Fine-tuning: the recipe, the plan, and the learner that executes it.

Next: tinyft/finetune/build.py
"""

from tinyft.finetune.build import vision_learner
from tinyft.finetune.groups import Group, layer_groups
from tinyft.finetune.learner import Learner
from tinyft.finetune.lr_find import LrFinding
from tinyft.finetune.optim import SGD, Adam, Optimizer
from tinyft.finetune.plan import Plan
from tinyft.finetune.records import Evaluation, Prediction, StepRecord
from tinyft.finetune.save import load_learner

__all__ = [
    "SGD",
    "Adam",
    "Evaluation",
    "Group",
    "Learner",
    "LrFinding",
    "Optimizer",
    "Plan",
    "Prediction",
    "StepRecord",
    "layer_groups",
    "load_learner",
    "vision_learner",
]
