"""The forecast multiplies what it measured by the right counts: on a clock that only steps move."""

from __future__ import annotations

import re
import sys

import pytest

from tests.finetune.conftest import bits, small_data, small_learner
from tinyft import backends
from tinyft.data import prefetch
from tinyft.finetune import trials as module

FULL, NEW, KEPT, JUDGED, FOLDED = 100.0, 40.0, 1.0, 7.0, 3.0  # seconds; JUDGED: of a picture


@pytest.fixture
def clock(monkeypatch):
    """Learners take these many seconds for their steps; the list holds the time."""
    now = [0.0]

    class Clock:
        perf_counter = staticmethod(lambda: now[0])

    def train_step(learner, batch, phase, *, norms=False):
        cache = learner.cache
        if cache is None:
            now[0] += FULL
        else:
            now[0] += KEPT if set(batch.ids) <= set(cache.kept) else NEW
            cache.kept.update(dict.fromkeys(batch.ids.tolist()))

    def judge_batch(learner, network, batch):
        now[0] += JUDGED * len(batch.ids)

    def fold(model, **_):
        now[0] += FOLDED
        return model

    monkeypatch.setattr(module, "time", Clock)
    monkeypatch.setattr(module, "judge_batch", judge_batch)
    monkeypatch.setattr(module, "fold", fold)
    monkeypatch.setattr("tinyft.finetune.training.Training.train_step", train_step)
    return now


def test_every_step_costs_the_same_without_kept_features(clock):
    learner = small_learner()
    found = learner.forecast(learner.plan(2))
    assert found.training_seconds == 3 * FULL + 6 * FULL
    assert found.validation_seconds == 3 * (FOLDED + 9 * JUDGED)  # three epochs, batches of 8 and 1


def test_with_kept_features_one_epoch_passes_through_the_body(clock):
    learner = small_learner(small_data(augment=None), bn="frozen")
    plan = learner.plan(2, freeze_epochs=5)
    found = learner.forecast(plan)
    assert found.training_seconds == (3 * NEW + 12 * KEPT) + 6 * FULL
    assert found.validation_seconds == 3 * (FOLDED + 9 * JUDGED)


@pytest.mark.parametrize(("size", "judged"), [(9, 9), (4, 9), (3, 9), (2, 10)])
def test_a_short_last_batch_is_not_taken_for_a_full_one(clock, size, judged):
    data = small_data(batch_size=size)  # 9 pictures in 1, 3, 3 and 5 batches
    learner = small_learner(data)
    found = learner.forecast(learner.plan(0, freeze_epochs=1))
    assert found.validation_seconds == FOLDED + judged * JUDGED


def test_one_batch_is_enough(clock):
    learner = small_learner(small_data(augment=None, batch_size=24), bn="frozen")
    found = learner.forecast(learner.plan(0, freeze_epochs=4))
    assert found.training_seconds == NEW + 3 * KEPT
    assert found.validation_seconds == FOLDED + 9 * JUDGED


@pytest.mark.slow
def test_memory_that_is_yet_to_be_filled_is_added(monkeypatch):
    pytest.importorskip("resource")
    learner = small_learner(small_data(augment=None), bn="frozen")
    plan = learner.plan(1)
    found = learner.forecast(plan)
    so_far = backends.get("cpu").peak_bytes()
    assert found.peak_bytes <= so_far + plan.cached_bytes[0] + learner.data.cache.bytes_of(33)
    assert found.peak_bytes >= plan.cached_bytes[0]
    picture = 24 * 24 * 3
    assert learner.data.cache.used % picture == 0
    assert learner.data.cache.bytes_of(33) == 33 * picture
    learner.data.cache.budget = 10 * picture
    assert learner.data.cache.bytes_of(33) == 10 * picture


def test_what_would_not_fit_into_memory_is_not_tried(monkeypatch):
    learner = small_learner(small_data(size=1000))
    plan = learner.plan(1)
    monkeypatch.setattr(module, "free_memory", lambda: 2 * 10**9)
    monkeypatch.setattr("tinyft.finetune.training.Training.train_step", None)  # nor is any other
    found = learner.forecast(plan)
    # 16 channels in the 14 outputs of stem and first stage, of 4 bytes, for each of 8 pictures
    assert found.peak_bytes > 8 * 1000 * 1000 * 16 * 14 * 4
    words = r"forecast: a step takes about \d+\.\d GB of memory, and 2\.0 GB are free, so none was"
    assert re.match(words, str(found))
    frozen = small_learner(small_data(size=1000), bn="frozen")
    alone = module.step_bytes(frozen, frozen.plan(0, freeze_epochs=1))
    assert alone < found.peak_bytes / 4


def test_free_memory_is_that_of_the_container(tmp_path):
    for name, text in (("max", "5000"), ("current", "3000"), ("stat", "anon 1\ninactive_file 70")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert prefetch.free_in_container(tmp_path) == 2070
    (tmp_path / "memory.max").write_text("max")
    assert prefetch.free_in_container(tmp_path) == sys.maxsize
    assert 0 < prefetch.free_memory() <= prefetch.free_on_machine()


def test_nothing_is_left_of_it():
    learner, other = small_learner(), small_learner()
    learner.weight_decay, plan = 0.3, learner.plan(2, weight_decay=0.2)
    found = learner.forecast(plan)
    assert found.training_seconds > 0 and found.validation_seconds > 0
    assert str(found).startswith("forecast: about ") and "of validation" in str(found)
    assert bits(learner) == bits(other) and learner.history == [] and learner.step == 0
    assert [g.frozen for g in learner.groups] == [g.frozen for g in other.groups]
    assert learner.weight_decay == 0.3
