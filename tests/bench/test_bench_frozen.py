"""`tinyft bench --frozen`: what is compared, and that both sides do the same."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

import tinyft as ft
from tinyft.bench import frozen as bench_frozen
from tinyft.bench import measure as bench
from tinyft.bench.frozen import FrozenCase, Spent
from tinyft.cli.photos import PRESETS
from tinyft.errors import TinyftError
from tinyft.finetune.feature_cache import FeatureCache

without_torch = pytest.mark.skipif(not bench.installed("torch"), reason="PyTorch is not installed")
OPTIONS = {"arch": "cifar_resnet20", "weights": None}


def case(bn, *, shuffle=True, **options):
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(20) % 2
    valid = pictures[:6], labels[:6]
    settings = {"size": 32, "batch_size": 8, "augment": None, "shuffle": shuffle, "workers": 0}
    data = ft.ImageArrays((pictures, labels), valid, **settings)
    return FrozenCase(data, bn, 3, OPTIONS | options)


@pytest.fixture
def ticking(monkeypatch):
    """A clock that goes on by a second whenever it is looked at."""
    seconds = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(seconds), sleep=lambda pause: None)
    monkeypatch.setattr(bench_frozen, "time", clock)


@pytest.mark.slow
def test_validation_is_counted_apart(ticking):
    spent = bench_frozen.our_phase(case("frozen"))
    assert (spent.validation, spent.training) == (3, 4)  # 3 epochs
    assert spent.total == 7


@pytest.mark.slow
@pytest.mark.parametrize("bn", PRESETS)
def test_our_phase(bn, monkeypatch):
    plans = []
    execute = ft.Learner.execute

    def executed(self, plan, **options):
        plans.append(plan)
        return execute(self, plan, **options)

    monkeypatch.setattr(ft.Learner, "execute", executed)
    spent = bench_frozen.our_phase(case(bn))
    assert spent.training > 0
    assert spent.validation > 0
    assert spent.accuracy in np.arange(7) / 6
    (plan,) = plans
    assert [(phase.name, phase.epochs) for phase in plan.phases] == [("head alone", 3)]
    assert any(plan.cached_bytes) == (bn == "frozen")


def test_why():
    # 16 of 20 pictures an epoch, the same ones; 6 to validate
    assert "looks at 22 pictures instead of 66" in bench_frozen.why(case("frozen", shuffle=False))
    assert "nothing can be kept" in bench_frozen.why(case("fastai"))


@pytest.mark.slow
def test_the_pictures_that_pass_are_counted_beforehand(monkeypatch):
    """16 of 20 in the first epoch; the 4 others, which the second brings, fill up a batch of 8."""
    passed, keep = [], FeatureCache._keep
    monkeypatch.setattr(
        FeatureCache, "_keep", lambda self, batch: passed.extend(batch.ids) or keep(self, batch)
    )
    shuffled = case("frozen")
    shuffled.learner().fine_tune(0, freeze_epochs=shuffled.epochs)
    assert bench_frozen.computed_once(shuffled) == len(passed) == 24


def test_sides_take_turns_and_ratios_are_of_medians(monkeypatch):
    calls = []
    times = {"ours": iter([(1, 1), (2, 2), (9, 9)]), "theirs": iter([(8, 2), (7, 5), (6, 6)])}

    def side(name):
        def phase(case):
            assert case.data.cache.used  # pictures were decoded before
            calls.append(name)
            return Spent(*next(times[name]), 0.5)

        return phase

    monkeypatch.setattr(bench_frozen, "PAUSE", 0)
    monkeypatch.setattr(bench_frozen, "our_phase", side("ours"))
    monkeypatch.setattr(bench_frozen, "their_phase", side("theirs"))
    found = bench_frozen.measure(case("frozen"), 3, alone=False)
    assert calls == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert found["ratio"] == 12 / 4
    assert found["training_ratio"] == 7 / 2
    assert len(found["sides"]["tinyft"]["runs"]) == 3


@pytest.mark.slow
def test_alone(monkeypatch):
    monkeypatch.setattr(bench_frozen, "our_phase", lambda case: Spent(1, 1, 0.5))
    found = bench_frozen.measure(case("frozen"), 1, alone=True)
    assert list(found["sides"]) == ["tinyft"]
    assert "ratio" not in found


@pytest.mark.slow
def test_every_picture_is_decoded_before_the_time_begins():
    frozen = case("frozen")
    bench_frozen.decode_all(frozen)
    decoded = frozen.data.cache.used
    bench_frozen.our_phase(frozen)
    assert frozen.data.cache.used == decoded > 0


@without_torch
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("bn", ["frozen", "fastai", "everything"])
def test_pytorch_trains_as_we_do(bn, layout):
    from tinyft.bench.pytorch import TorchLearner

    frozen = case("fastai" if bn == "everything" else bn, dropout=0.0, weight_decay=10.0)
    learner = frozen.learner()
    plan = learner.plan(3, freeze_epochs=0 if bn == "everything" else 3)
    phase = plan.phases[0]
    learner.enter(phase, **plan.switches)
    draw = np.random.default_rng(1)
    for norm in learner.batch_norms:  # not 0 and 1, as in a new network
        norm.running_mean = draw.uniform(-0.1, 0.1, norm.running_mean.shape).astype(np.float32)
        norm.running_var = draw.uniform(0.5, 2, norm.running_var.shape).astype(np.float32)
    before = {name: our.data.copy() for name, our in learner.model.named_parameters()}
    theirs = TorchLearner(learner, layout)
    for i, batch in enumerate([*frozen.data.train_batches(0, learner.preprocess)] * 2):
        learner.set_rates(phase, i)
        loss = learner.train_step(batch, phase.name).loss
        assert theirs.step(batch, phase, i) == pytest.approx(loss, rel=1e-4)
    assert theirs.evaluate(frozen.data) == learner.evaluate().accuracy
    for name, our in learner.model.named_parameters():
        moved, found = our.data - before[name], theirs.parameters[name].detach().numpy()
        apart = np.linalg.norm(found - our.data)
        assert apart <= 0.05 * np.linalg.norm(moved), name
        assert our.requires_grad == bool(moved.any()), name


@without_torch
def test_their_phase(ticking):
    spent = bench_frozen.their_phase(case("frozen"))
    assert (spent.training, spent.validation) == (3, 3)


@without_torch
def test_another_network_is_not_compared(monkeypatch):
    from tinyft.bench.pytorch import TorchLearner

    logits = TorchLearner.logits
    monkeypatch.setattr(TorchLearner, "logits", lambda self, batch: 1.1 * logits(self, batch))
    with pytest.raises(TinyftError, match="channels_last computes something else"):
        bench_frozen.their_phase(case("frozen"))
