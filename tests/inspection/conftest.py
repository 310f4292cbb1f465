"""Small learners and runs to look into."""

from __future__ import annotations

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import small_data, small_learner


def everything(learner: ft.Learner) -> dict[str, object]:
    """The bits of all that a learner remembers between two steps."""
    state = {name: array.tobytes() for name, array in learner.model.state_dict().items()}
    for name, remembered in learner.optimizer.state.items():
        for key, value in remembered.items():
            whole = value.tobytes() if isinstance(value, np.ndarray) else value
            state[f"optimizer {name} {key}"] = whole
    for group in learner.groups:
        state[group.name] = (group.lr, group.momentum, group.weight_decay, group.frozen)
        for name, p in group.parameters.items():
            grad = None if p.grad is None else p.grad.tobytes()
            state[f"gradient {name}"] = (p.requires_grad, grad)
        for name, norm in group.batch_norms.items():
            state[f"switches {name}"] = (norm.statistics, norm.updates)
    state["decay"] = learner.weight_decay
    counters = (learner.step, learner.epoch, learner.smooth, sorted(learner.trained))
    return state | {"counters": repr(counters), "history": [r.step for r in learner.history]}


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A whole run of plan(2): three steps of the head alone, six of everything."""
    path = tmp_path_factory.mktemp("inspection") / "run"
    small_learner().fine_tune(2, out=path)
    return path


@pytest.fixture
def learner() -> ft.Learner:
    return small_learner()


@pytest.fixture
def data() -> ft.ImageArrays:
    return small_data()
