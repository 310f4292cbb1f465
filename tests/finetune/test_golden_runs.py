"""Three recorded fine-tunings of fastai 2.8.12, followed step by step.

Runs A, B and C have 60 steps in all: two phases, every default, other schedule arguments, stale
gradients. In float64 they go through the reference backend and have to agree far beyond what one
mistake would leave.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import tinyft as ft
from tinyft import nn
from tinyft.backends.cpu.conv.table import switch_winograd
from tinyft.finetune.learner import Learner
from tinyft.weights import Preprocess

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import golden_inputs as inputs  # noqa: E402

pytestmark = pytest.mark.slow


SETTINGS = {
    "A": {"bn": "fastai", "weight_decay": 0.01},
    "B": {"bn": "torch", "weight_decay": 0.1, "label_smoothing": 0.1},
    "C": {"bn": "fastai", "weight_decay": 0.1},
}


def build_learner(run: str, dtype: str) -> Learner:
    """The network, the head and the pictures that fastai was recorded with."""
    classes = ["a", "b", "c", "d"]
    data = ft.ImageArrays(
        train=inputs.make_split("train"),
        valid=inputs.make_split("valid"),
        classes=classes,
        size=64,
        batch_size=8,
        shuffle=False,
        augment=None,
    )
    model = nn.attach(nn.cut(nn.build("resnet18")), nn.FastaiHead(512, 4, dropout=0.0))
    head = {name.replace("lin", "linear"): array for name, array in inputs.make_head().items()}
    model.load_state_dict({**inputs.make_body(), **head})
    preprocess = Preprocess(resize=64, crop=64)
    return Learner(
        model.astype(dtype), data, preprocess, "resnet18", classes, dtype=dtype, **SETTINGS[run]
    )


def running_norms(learner: Learner) -> list[list[float]]:
    """Per group, the norms over all running means and over all running variances."""
    state = learner.model.state_dict()
    return [
        [
            np.sqrt(
                sum(
                    np.square(array, dtype=np.float64).sum()
                    for name, array in state.items()
                    if name.endswith(kind) and inputs.layer_group(name) == group
                )
            )
            for kind in ("running_mean", "running_var")
        ]
        for group in range(3)
    ]


def execute(run: str, dtype: str) -> tuple[Learner, dict[str, np.ndarray]]:
    """All calls of a run; what was recorded of fastai, measured here, under the same names."""
    learner = build_learner(run, dtype)
    calls = json.loads((GOLDEN / "golden_resnet18_run.json").read_text())["runs"][run]["calls"]
    records, running = [], []
    for call in calls:
        plan = learner.plan(**call, stale_gradients=run == "C")
        for record in learner.steps(plan, norms=True):
            records.append(record)
            running.append(running_norms(learner))

    def per_group(name: str) -> np.ndarray:
        return np.array([[getattr(group, name) for group in r.groups] for r in records])

    validations = [r.validation for r in records if r.validation]
    return learner, {
        "lr": per_group("lr"),
        "mom": per_group("momentum"),
        "wd": per_group("weight_decay"),
        "loss": np.array([r.loss for r in records]),
        "smooth_loss": np.array([r.smooth_loss for r in records]),
        "grad_norm": per_group("gradient_norm"),
        "update_norm": per_group("update_norm"),
        "param_norm": per_group("weight_norm"),
        "n_updated": per_group("updated"),
        "running_norm": np.array(running),
        "valid_loss_acc": np.array([[v.loss, v.accuracy] for v in validations]),
    }


def compare(run: str, dtype: str, tolerance: dict[str, float]) -> None:
    """Everything that was recorded, each to its own relative tolerance."""
    learner, found = execute(run, dtype)
    recorded = np.load(GOLDEN / "golden_resnet18_run.npz")
    for what in ("lr", "mom", "wd", "n_updated"):
        np.testing.assert_array_equal(found[what], recorded[f"{run}_{dtype}_{what}"], what)
    for what in ("loss", "grad_norm", "update_norm", "param_norm", "running_norm"):
        expected = recorded[f"{run}_{dtype}_{what}"]
        rtol = tolerance.get(what, tolerance["all"])
        np.testing.assert_allclose(found[what], expected, rtol=rtol, atol=1e-20, err_msg=what)
    for what in ("smooth_loss", "valid_loss_acc"):  # fastai keeps these in float32
        expected = recorded[f"{run}_{dtype}_{what}"]
        rtol = tolerance.get("loss", 1e-5)
        np.testing.assert_allclose(found[what], expected, rtol=rtol, atol=1e-5, err_msg=what)
    names = json.loads((GOLDEN / "golden_resnet18_run.json").read_text())["state_names"]
    state = learner.model.state_dict()
    norms = [np.linalg.norm(state[n.replace("lin", "linear")].astype(np.float64)) for n in names]
    expected = recorded[f"{run}_{dtype}_final_norm"]
    np.testing.assert_allclose(norms, expected, rtol=tolerance.get("final", tolerance["all"]))


@pytest.mark.parametrize("run", ["A", "C"])
def test_float64_runs_with_default_schedule(run):
    compare(run, "float64", {"all": 1e-9})


def test_float64_run_with_other_arguments():
    compare("B", "float64", {"all": 1e-9})


@pytest.mark.parametrize("winograd", [False, True])
def test_float32_run_on_the_fast_backend(winograd):
    """Rounding makes a few ReLUs decide otherwise than in float64, and where maps are small, each
    of them changes a gradient by some 1e-4 (fastai's own gradient norms in float32 are 2e-4 from
    its float64 run): hence the larger tolerance for gradients and updates.
    """
    tolerance = {"loss": 1e-4, "param_norm": 1e-6, "running_norm": 1e-4, "all": 2e-3}
    with switch_winograd(winograd):
        compare("B", "float32", tolerance)


def test_inputs_are_those_that_were_recorded():
    recorded = json.loads((GOLDEN / "golden_resnet18_run.json").read_text())["digests"]
    assert inputs.digests() == recorded
