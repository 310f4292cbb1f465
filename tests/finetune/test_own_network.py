"""A network of the caller's own: trained, asked, saved and loaded, with a head and without."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import bits, pictures, small_data, small_learner
from tinyft import nn, ops
from tinyft.data.picture import prepare
from tinyft.errors import DataError, RunError, WeightsError
from tinyft.finetune import one_cycle_phase
from tinyft.inspection.comparison.snapshots import of_source
from tinyft.inspection.report.report import write_report
from tinyft.inspection.step.moment import Moment
from tinyft.inspection.step.what_if import what_if
from tinyft.nn.layer_table import feature_shape


class TwoConvolutions(nn.Module):
    """Registers a norm behind its convolution and runs it in front: not to be folded."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm(8)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=True)
        self.bn2 = nn.BatchNorm(8)
        self.fc = nn.Linear(12, classes)
        nn.initialise(self, 1)

    def forward(self, x):
        x = self.bn1(self.conv1(x), relu=True)
        x = ops.relu(self.conv2(self.bn2(x)))
        return self.fc(x.mean(axis=(1, 2)))


class WithHead(nn.Module):
    """Its head is registered first, and a Sequential in it can be folded."""

    def __init__(self, classes=3, factor=1):
        super().__init__()
        self.factor = factor
        self.head = nn.LinearHead(12, classes)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm(8))
        self.rest = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        nn.initialise(self, 1)

    def features(self, x):
        return ops.relu(self.rest(ops.relu(self.stem(x))))

    def forward(self, x):
        logits = self.head(self.features(x))
        return logits if self.factor == 1 else logits * self.factor


class Flat(nn.Module):
    """Two linear layers: its features have no places, and no picture has no columns."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(24 * 24 * 3, 5), nn.Linear(5, 3)
        nn.initialise(self, 1)

    def features(self, x):
        return ops.relu(self.hidden(x.reshape(x.shape[0], -1)))

    def forward(self, x):
        return self.head(self.features(x))


IMAGES, _ = pictures()


def test_a_small_network_end_to_end(tmp_path):
    learner = ft.Learner(TwoConvolutions(), small_data(), seed=3)
    assert (learner.arch, learner.classes) == ("TwoConvolutions", ["blue", "green", "red"])
    assert learner.adjusted_preprocess().crop == 24 and learner.preprocess.mean[0] == 0.485
    assert [group.name for group in learner.groups] == ["conv1", "bn1", "conv2", "bn2", "fc"]
    plan = learner.one_cycle_plan(4, 0.02)
    assert "network: TwoConvolutions, 1,163 parameters" in str(plan)
    story = ft.inspection.explain(plan) + ft.finetune.in_words.story(plan)
    assert "pretrained" not in story and "Nothing is removed" in story
    ledger = ft.Ledger()
    found = learner.execute(plan, out=tmp_path / "run", observers=[ledger])
    assert found[-1].loss < found[0].loss and found[-1].accuracy > 0.8
    assert ledger.reading.balance() == [] and len(learner.describe().lines) == 5
    assert learner.evaluate() == found[-1]

    said = learner.predict(IMAGES[:5])
    model = copy.deepcopy(learner.model).eval()
    logits = model(learner.input(prepare(IMAGES[0], learner.adjusted_preprocess())[None])).data
    one = learner.predict(IMAGES[0]).probabilities
    np.testing.assert_allclose(one, np.exp(logits[0]) / np.exp(logits[0]).sum(), rtol=1e-4)
    assert said[0].similarity is None

    path = tmp_path / "mine.h5"
    learner.save(path)
    again = ft.load_learner(path, model=TwoConvolutions())
    assert again.arch == "TwoConvolutions" and bits(again) == bits(learner)
    np.testing.assert_array_equal(again.predict(IMAGES[0]).probabilities, one)
    assert again.evaluate(small_data()).accuracy == found[-1].accuracy
    further = ft.load_learner(path, model=TwoConvolutions(), data=small_data())
    assert bits(further) == bits(learner)
    further.fit_one_cycle(1, 1e-3)
    best = ft.load_learner(tmp_path / "run" / "best.h5", model=TwoConvolutions())
    assert best.evaluate(small_data()).accuracy >= found[-1].accuracy

    with pytest.raises(RunError, match="network, head or optimizer of its own"):
        Moment.of_run(tmp_path / "run", 1, small_data())
    report = write_report(tmp_path / "run").read_text()
    assert "model=TwoConvolutions(...)" in report and "Inside each step" in report


def test_what_is_missing_is_said():
    learner = ft.Learner(TwoConvolutions(), small_data(), bn="frozen")
    for train in (lambda: learner.fine_tune(1), learner.freeze):
        with pytest.raises(ValueError, match=r"name its head's group, groups=\{"):
            train()
    assert learner.plan(1, freeze_epochs=0).steps == 3
    for what, ask in (
        ("embed", lambda: learner.embed(IMAGES[0])),
        ("Grad-CAM", lambda: ft.inspection.grad_cams(learner, IMAGES[:1], np.array([0]))),
        ("Grad-CAM", lambda: learner.answers.ask(learner, IMAGES[:1], maps=True)),
    ):
        with pytest.raises(ValueError, match=f"{what} needs features, and TwoConvolutions has"):
            ask()
    with pytest.raises(TypeError, match="expected a Module"):
        ft.Learner(lambda x: x, small_data())
    with pytest.raises(TypeError, match=r"such as Net\(\); got <class"):
        ft.load_learner("mine.h5", model=TwoConvolutions)
    with pytest.raises(ValueError, match="model= has its head"):
        ft.load_learner("mine.h5", model=WithHead(), head=ft.nn.Linear(4, 3))
    with pytest.raises(DataError, match="has no pictures"):
        ft.Learner(Flat(), None, learner.preprocess, classes="abc", class_weights="balanced")
    with pytest.raises(ValueError, match="give another arch"):
        ft.Learner(TwoConvolutions(), small_data(), arch="resnet18")
    with pytest.raises(ft.errors.ShapeError, match="the network gives 2 numbers"):
        ft.Learner(TwoConvolutions(2), small_data()).fit_one_cycle(1)


def test_a_head_that_is_named_trains_alone():
    groups = {"body": ["conv1", "bn1", "conv2", "bn2"], "head": "fc"}
    learner = ft.Learner(TwoConvolutions(), small_data(), groups=groups, optimizer="sgd")
    before = {n: a.copy() for n, a in learner.model.state_dict().items()}
    learner.fit_one_cycle(1, 0.1, first_trainable=1)
    state = learner.model.state_dict()
    moved = {n for n in state if not np.array_equal(state[n], before[n])}
    assert {n for n in moved if n.startswith(("conv", "fc"))} == {"fc.weight", "fc.bias"}
    learner.fine_tune(1)
    assert [r.phase for r in learner.history][3::3] == ["head alone", "everything"]
    outcomes = what_if(Moment.of(learner, learner.plan(1), 0))
    assert "nothing frozen" in [outcome.name for outcome in outcomes.outcomes]
    for wrong in ({"head": "fc", "body": ["conv1", "bn1", "conv2", "bn2"]}, {"head": "conv1"}):
        with pytest.raises(ValueError, match=r"order of the network|no group"):
            learner.groups = wrong


def test_gradual_unfreezing_of_groups_by_a_function():
    def halves(model):
        parts = [name.split(".")[0] for name, _ in model.named_parameters()]
        return {"first": parts[:2], "second": [*dict.fromkeys(parts)][2:4], "last": "fc"}

    learner = ft.Learner(TwoConvolutions(), small_data(), groups=halves, bn="torch")
    steps, n = learner.data.steps_per_epoch, len(learner.groups)
    phases = [
        one_cycle_phase(f"{n - i} groups", 1, steps, 1e-2, n, first_trainable=i)
        for i in reversed(range(n))
    ]
    learner.execute(learner.plan_of(phases))
    for number, record in enumerate(learner.history):
        assert [group.frozen for group in record.groups] == [
            i < n - 1 - number // steps for i in range(n)
        ]
    last = learner.history[-1].proof
    assert "conv1.weight" in last.moved
    assert "conv1.weight" in learner.history[steps - 1].proof.identical


def test_features_and_a_head_are_found_and_used():
    learner = ft.Learner(WithHead(), small_data(augment=None), bn="frozen")
    assert [group.name for group in learner.groups] == ["body", "head"]
    plan = learner.plan(1)
    assert plan.cached_bytes == [33 * 6 * 6 * 12 * 4, 0]
    learner.execute(plan)
    assert learner.embed(IMAGES[:4]).shape == (4, 12) and learner.embed([]).shape == (0, 12)
    assert ft.inspection.grad_cams(learner, IMAGES[:2], np.array([0, 1])).shape == (2, 6, 6)
    folded = nn.fold(learner.model).network
    assert isinstance(dict(folded.named_modules())["stem.1"], nn.layers.Folded)


def test_a_saved_head_knows_strangers(tmp_path):
    learner = ft.Learner(WithHead(), small_data())
    learner.save(tmp_path / "a.h5")
    again = ft.load_learner(tmp_path / "a.h5", model=WithHead())
    assert again.predict(IMAGES[0]).similarity > 0.99


class Divided(Flat):
    """Counts the columns by a division, which of no pictures is one by 0."""

    def features(self, x):
        return ops.relu(self.hidden(x.reshape(x.shape[0], x.size // x.shape[0])))


class Pair(WithHead):
    """Something else is called `features`."""

    def features(self, x):
        return super().features(x), x

    def forward(self, x):
        return self.head(self.features(x)[0])


@pytest.mark.parametrize(
    ("model", "shape"),
    [(WithHead(), (6, 6, 12)), (WithHead(factor=2), None), (Flat(), (5,)), (nn.Linear(3, 3), None),
     (Divided(), (5,)), (Pair(), None)],
)  # fmt: skip
def test_a_network_is_divided_where_its_forward_is(model, shape):
    assert feature_shape(model, 24) == shape


def test_features_may_be_rows():
    learner = ft.Learner(Flat(), small_data(augment=None, batch_size=12), bn="frozen")
    learner.fine_tune(1)
    assert learner.embed(IMAGES[:3]).shape == (3, 5)
    with pytest.raises(ft.errors.ShapeError, match="needs features at places"):
        ft.inspection.grad_cams(learner, IMAGES[:1], np.array([0]))


def test_a_body_with_dropout_is_not_kept():
    model = WithHead()
    model.rest = nn.Sequential(model.rest, nn.Dropout(0.5))
    learner = ft.Learner(model, small_data(augment=None), bn="frozen")
    assert learner.has_features and learner.plan(1).cached_bytes == [0, 0]


def test_a_network_that_is_not_the_files_is_refused(tmp_path):
    path = tmp_path / "mine.h5"
    data = small_data()
    ft.Learner(TwoConvolutions(), data, arch="mine", optimizer="sgd", dtype="float64").save(path)
    for other, said in ((WithHead(), "missing: head"), (TwoConvolutions(4), r"fc.bias: .*\(4,\)")):
        with pytest.raises(WeightsError, match=said):
            ft.load_learner(path, model=other)
    needed = re.escape("a network of its caller's own: ft.load_learner(path, model=mine(...))")
    for read in (ft.load_learner, ft.load_weights, of_source):
        with pytest.raises(WeightsError, match=needed):
            read(path)
    with pytest.raises(WeightsError, match=needed):
        ft.vision_learner(data, weights=path)
    with pytest.raises(
        DataError, match=r"knows the classes blue, green, red, .* new head with ft.Learner\(mine\("
    ):
        ft.load_learner(path, model=TwoConvolutions(), data=small_data(classes=["a", "b", "c"]))
    learner = ft.load_learner(path, model=TwoConvolutions(), data=data)
    assert type(learner.optimizer) is ft.SGD and learner.model.fc.weight.dtype == np.float64
    small_learner().save(tmp_path / "ours.h5")
    with pytest.raises(WeightsError, match="holds a cifar_resnet20, which tinyft makes by itself"):
        ft.load_learner(tmp_path / "ours.h5", model=TwoConvolutions())


@pytest.mark.slow
def test_one_of_ours_with_its_own_classifier():
    learner = ft.Learner(ft.cifar_resnet20(3), small_data(), class_weights="balanced")
    assert learner.arch == "ResNet" and [g.name for g in learner.groups][-1] == "head"
    learner.fine_tune(1)
