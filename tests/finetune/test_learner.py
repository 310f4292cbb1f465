"""The learner as a user meets it."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import bits, pictures, small_data, small_learner
from tinyft.data import loader, prepare
from tinyft.data.augment import AugmentDraw, apply
from tinyft.errors import DataError, DeviceError, NonFiniteLossError, ShapeError, WeightsError
from tinyft.nn.head import LinearHead
from tinyft.weights import Preprocess, load_weights, save_weights


@pytest.mark.slow
def test_fine_tuning_learns_the_colours():
    learner = small_learner(small_data(augment=None))
    results = learner.fine_tune(12, base_lr=1e-2, freeze_epochs=0)
    assert len(results) == 12
    assert results[-1].accuracy == 1.0
    assert results[-1].n == 9


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    first, again, other = small_learner(), small_learner(), small_learner(seed=4)
    for learner in (first, again, other):
        learner.fine_tune(1)
    assert bits(first) == bits(again)
    assert bits(first) != bits(other)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 4])
def test_the_bits_do_not_depend_on_the_number_of_threads(threads):
    from tinyft.backends.cpu.runtime.threads import set_num_threads

    results = []
    try:
        for n in (1, threads):
            set_num_threads(n)
            learner = small_learner(device="cpu")
            learner.fine_tune(1)
            results.append(bits(learner))
    finally:
        set_num_threads(2)
    assert results[0] == results[1]


def test_the_loop_may_be_the_readers_own():
    learner, other = small_learner(), small_learner()
    plan = learner.plan(1)
    records = list(learner.steps(plan))
    other.fine_tune(1)
    assert bits(learner) == bits(other)
    assert [r.step for r in records] == list(range(plan.steps))
    assert [r.epoch for r in records] == [0, 0, 0, 1, 1, 1]
    assert [r.validation is not None for r in records] == [False, False, True] * 2
    for record, phase in zip((records[0], records[3]), plan.phases, strict=True):
        assert [g.lr for g in record.groups] == phase.lr[0].tolist()
    assert sorted(np.concatenate([r.ids for r in records[:3]])) == list(range(24))


def test_dropout_is_the_fastai_heads_and_is_refused_elsewhere():
    rates = [layer.probability for layer in small_learner(dropout=0.2).dropouts]
    assert rates == [0.1, 0.2]
    assert [layer.probability for layer in small_learner().dropouts] == [0.25, 0.5]
    for head, name in (("linear", "'linear'"), (ft.nn.LinearHead(64, 3), "a Module of your own")):
        assert small_learner(head=head).dropouts == []
        with pytest.raises(ValueError, match=f"dropout=0.2 is for head='fastai'.*{name}"):
            small_learner(head=head, dropout=0.2)
    with pytest.raises(ValueError, match=r"dropout probability .* below 1; got 1.0"):
        small_learner(dropout=1.0)


def test_a_copy_trains_as_the_learner_itself():
    learner = small_learner()
    learner.fine_tune(0)
    copied = copy.deepcopy(learner)
    for each in (learner, copied):
        each.fit_one_cycle(1)
    assert bits(copied) == bits(learner)


def test_planning_changes_nothing():
    learner = small_learner()
    before = bits(learner), [g.frozen for g in learner.groups], learner.step
    text = str(learner.plan(3))
    assert (bits(learner), [g.frozen for g in learner.groups], learner.step) == before
    assert "Phase 1: head alone" in text and "Phase 2: everything" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_loss_that_is_no_number_stops_before_any_weight_changes():
    learner = small_learner()
    learner.unfreeze()
    learner.model.head.linear2.weight.data[:] = np.inf
    before = bits(learner)
    batch = next(learner.data.train_batches(0, learner.preprocess))
    with (
        np.errstate(all="ignore"),
        pytest.raises(NonFiniteLossError, match=r"step 0 is nan.*head 1\.00e-03.*smaller learning"),
    ):
        learner.train_step(batch, "by hand")
    after = bits(learner)
    parameters = dict(learner.model.named_parameters())
    assert all(before[name] == after[name] for name in parameters)


def test_evaluation_counts_every_picture_and_ignores_the_batch_size():
    learner = small_learner()
    results = [learner.evaluate(small_data(batch_size=n)) for n in (2, 4, 24)]
    assert {r.n for r in results} == {9}
    assert {r.accuracy for r in results} == {results[0].accuracy}
    np.testing.assert_allclose([r.loss for r in results], results[0].loss, rtol=1e-5)


def test_prediction_of_one_and_of_several():
    learner = small_learner()
    x, _ = pictures()
    one = learner.predict(x[0])
    several = learner.predict([x[0], x[1]])
    assert one.label in learner.classes
    assert one.probability == max(one.probabilities)
    np.testing.assert_allclose(one.probabilities.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(several[0].probabilities, one.probabilities, atol=1e-6)


def test_predict_agrees_with_evaluate():
    learner = small_learner()
    x, y = pictures()
    right = sum(learner.classes[y[i]] == learner.predict(x[i]).label for i in range(9))
    assert right / 9 == learner.evaluate().accuracy


@pytest.mark.parametrize("head", ["fastai", "linear"])
def test_a_saved_learner_predicts_the_same_bits(tmp_path, head):
    learner = small_learner(head=head)
    learner.fine_tune(1)
    learner.save(tmp_path / "learner.h5")
    loaded = ft.load_learner(tmp_path / "learner.h5")
    assert bits(loaded) == bits(learner)
    assert loaded.classes == learner.classes
    x, _ = pictures()
    expected = learner.predict(x[5]).probabilities
    np.testing.assert_array_equal(loaded.predict(x[5]).probabilities, expected)
    assert loaded.evaluate(small_data()) == learner.evaluate()


def test_weights_are_no_learner(tmp_path):
    from tinyft.weights import Preprocess, Weights, save_weights

    model = ft.cifar_resnet20(seed=1)
    arrays = {n: np.ascontiguousarray(a) for n, a in model.state_dict().items()}
    path = tmp_path / "weights.h5"
    preprocess = Preprocess.for_architecture("cifar_resnet20")
    save_weights(path, Weights("cifar_resnet20", arrays, None, preprocess))
    with pytest.raises(WeightsError, match="no learner; use vision_learner"):
        ft.load_learner(path)
    with pytest.raises(WeightsError, match=r"is a folder; a run's learner is its file learner\.h5"):
        ft.load_learner(tmp_path)
    body = ft.vision_learner(small_data(), weights=path).model  # but a learner can start from them
    np.testing.assert_array_equal(body.conv1.weight.data, model.conv1.weight.data)
    assert [g.frozen for g in ft.vision_learner(small_data(), weights=path).groups][-1] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bn": "wrong"}, "bn must be one of fastai, torch, frozen; got 'wrong'"),
        ({"optimizer": "adamw"}, "optimizer must be one of adam, sgd, momentum; got 'adamw'"),
        ({"head": "wrong"}, "head must be one of fastai, linear, or a Module; got 'wrong'"),
        ({"head": LinearHead}, "head must be one of fastai, linear, or a Module; got <class"),
        ({"dtype": "float16"}, "dtype must be float32 or float64; got float16"),
    ],
)
def test_a_wrong_name_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small_learner(**options)


@pytest.mark.parametrize("weights", ["default", None])
def test_a_wrong_architecture_is_refused_before_weights_are_looked_for(weights):
    with pytest.raises(ValueError, match=r"architecture must be one of resnet18, .*; got 'vgg'"):
        ft.vision_learner(small_data(), "vgg", weights=weights)


def test_a_device_that_does_not_work_is_refused_before_weights_are_fetched(monkeypatch):
    monkeypatch.setattr("tinyft.finetune.build.load_weights", None)
    with pytest.raises(DeviceError, match="CuPy"):
        ft.vision_learner(small_data(), "resnet18", device="gpu:9")


def test_class_weights_and_label_smoothing_reach_the_loss():
    plain = small_learner().fine_tune(0, freeze_epochs=1)
    weighted = small_learner(class_weights=[1, 2, 3]).fine_tune(0, freeze_epochs=1)
    smoothed = small_learner(label_smoothing=0.2).fine_tune(0, freeze_epochs=1)
    assert len({plain[0].loss, weighted[0].loss, smoothed[0].loss}) == 3


def uneven_data(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    blank = np.zeros((len(labels), 32, 32, 3), np.uint8)
    return ft.ImageArrays((blank, labels), (blank[:3], np.arange(3)), classes=list("abc"))


def test_balanced_classes_weigh_alike_in_the_loss():
    data = uneven_data([6, 3, 3])
    learner = ft.vision_learner(
        data, "cifar_resnet20", weights=None, device="reference", class_weights="balanced"
    )
    assert np.allclose(learner.class_weights, [12 / 18, 12 / 9, 12 / 9])
    assert "classes weighted: a 0.667, b 1.33, c 1.33" in str(learner.plan(1))


def test_where_classes_are_uneven_every_class_counts_alike_beside(capfd):
    x, y = pictures(n=18)
    few = np.flatnonzero(y != 2), np.array([0, *range(1, 18, 3), *range(2, 18, 3)])
    parts = [(x[ids], y[ids]) for ids in few]
    data = ft.ImageArrays(*parts, classes=["blue", "green", "red"], size=24, batch_size=8)
    assert data.uneven and not small_data().uneven
    learner = small_learner(data)
    found, logits = learner.fine_tune(1, progress=True)[-1], []
    learner.evaluate(logits=logits)
    right = np.concatenate(logits).argmax(axis=1) == data.labels["valid"]
    shares = [right[data.labels["valid"] == label].mean() for label in range(3)]
    assert found.balanced_accuracy == pytest.approx(np.mean(shares))
    assert found.accuracy == pytest.approx(right.mean())
    out = capfd.readouterr().out
    assert "accuracy  balanced  time" in out and f"{found.balanced_accuracy:.6f}" in out
    assert f", balanced {found.balanced_accuracy:.4f}, loss " in str(learner.history[-1])


def test_classes_that_cannot_be_balanced():
    with pytest.raises(DataError, match="needs training pictures of b; add some"):
        ft.vision_learner(
            uneven_data([6, 0, 3]), "cifar_resnet20", weights=None, class_weights="balanced"
        )


def test_smoothed_loss_is_fastais_to_the_last_bit():
    from tinyft.finetune.records import SmoothLoss

    smooth = SmoothLoss()
    expected = {  # by AvgSmoothLoss of fastai 2.8.12, PyTorch 2.14.1
        "0x1.1ecb26p+0": "0x1.1ecb14p+0", "0x1.439d12p+0": "0x1.3163a4p+0",
        "0x1.a342f0p+1": "0x1.e6b3cap+0", "0x1.d579bap-2": "0x1.878d64p+0",
        "0x1.385ec4p+1": "0x1.b817cep+0", "0x1.787f56p+1": "0x1.eee982p+0",
    }  # fmt: skip
    for loss, mean in expected.items():
        assert smooth.add(float.fromhex(loss)) == float.fromhex(mean)


def test_weight_decay_is_the_optimizers_own_unless_given():
    decays = {name: small_learner(optimizer=name) for name in ("adam", "sgd", "momentum")}
    assert {name: one.weight_decay for name, one in decays.items()} == {
        "adam": 0.01, "sgd": 0.0, "momentum": 0.0
    }  # fmt: skip
    assert small_learner(optimizer="sgd", weight_decay=0.1).plan(1).weight_decay == 0.1


def test_a_plans_weight_decay_stays_as_in_fastai():
    learner = small_learner()
    learner.fit_one_cycle(1, weight_decay=0.3)
    assert learner.weight_decay == learner.plan(1).weight_decay == 0.3


def test_with_stale_gradients_all_that_ever_trained_decays_on():
    """Also what trained before the last step did."""
    learner = small_learner(weight_decay=0.5)
    learner.unfreeze()
    learner.fit_one_cycle(1, 1e-3)
    learner.freeze()
    learner.fit_one_cycle(1, 1e-3)
    before = learner.model.conv1.weight.data.copy()
    learner.fine_tune(0, freeze_epochs=1, stale_gradients=True)
    assert np.linalg.norm(learner.model.conv1.weight.data) < np.linalg.norm(before)


def test_the_optimizer_forgets_when_other_groups_freeze_and_only_then():
    learner = small_learner()

    def steps_remembered():
        return {state["step"] for state in learner.optimizer.state.values()}

    learner.unfreeze()
    first, second = learner.one_cycle_plan(1), None
    learner.execute(first)
    second = learner.one_cycle_plan(1)
    assert "the optimizer starts empty" in str(first)
    assert "the optimizer goes on with what it remembers" in str(second)
    learner.execute(second)
    assert steps_remembered() == {6}
    learner.fit_one_cycle(1, reset_optimizer=True)
    assert steps_remembered() == {3}
    learner.fit_one_cycle(1, first_trainable=2)
    assert steps_remembered() == {3}
    learner.unfreeze()
    assert steps_remembered() == set()
    learner.fit_one_cycle(1)
    learner.fine_tune(1, freeze_epochs=0)
    assert steps_remembered() == {3}


@pytest.mark.slow
def test_the_reference_backend_can_be_forced_on_a_learner(monkeypatch):
    from tinyft.backends.reference import Backend

    learner, calls = small_learner(), []
    original = Backend.conv2d

    def counted(self, *args, **kwargs):
        calls.append(type(self).__name__)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Backend, "conv2d", counted)
    with ft.backends.use("reference"):
        learner.train_step(next(learner.data.train_batches(0, learner.preprocess)), "by hand")
        learner.evaluate()
    assert set(calls) == {"Backend"} and len(calls) > 2 * 20


def test_a_saved_learner_can_be_trained_further(tmp_path):
    first = small_learner()
    first.fine_tune(1)
    first.save(tmp_path / "first.h5")
    second = ft.vision_learner(small_data(), weights=tmp_path / "first.h5")
    np.testing.assert_array_equal(second.model.conv1.weight.data, first.model.conv1.weight.data)


def test_a_run_names_its_weights_from_anywhere(tmp_path, monkeypatch):
    small_learner().save(tmp_path / "first.h5")
    monkeypatch.chdir(tmp_path)
    learner = ft.vision_learner(small_data(), weights="first.h5")
    assert learner.origin.arguments["weights"] == str(tmp_path / "first.h5")


@pytest.mark.slow
def test_settings_that_decide_results_are_saved(tmp_path):
    learner = small_learner(class_weights=[1, 5, 9], label_smoothing=0.1, dtype="float64")
    learner.save(tmp_path / "learner.h5")
    loaded = ft.load_learner(tmp_path / "learner.h5")
    assert loaded.dtype == "float64"
    expected = learner.evaluate().loss
    assert loaded.evaluate(small_data()).loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("augment", "whole"), [("default", True), ("crop", False), (None, False)])
def test_pictures_are_judged_as_training_showed_them(augment, whole, tmp_path):
    """fastai's augmentation shows whole squares, the others what the weights' centre crop shows."""
    learner = small_learner_of_photos(augment)
    expected = Preprocess(resize=64, crop=56, assumed=True, whole_square=whole)
    assert learner.adjusted_preprocess() == expected
    frame = np.full((80, 80, 3), 255, np.uint8)
    frame[10:70, 10:70] = 0
    whole = apply(frame, AugmentDraw(), 56)  # what a draw that changes nothing shows
    white = (prepare(frame, learner.adjusted_preprocess()) > 127).mean()
    assert (white == pytest.approx((whole > 127).mean(), abs=0.02)) == (augment == "default")
    learner.save(tmp_path / "learner.h5")
    loaded = ft.load_learner(tmp_path / "learner.h5")
    for other in ("default", None):  # how the pictures to be judged would be trained on
        data = small_learner_of_photos(other).data
        assert loaded.evaluate(data) == learner.evaluate()
    again = ft.vision_learner(learner.data, weights=tmp_path / "learner.h5")
    assert again.preprocess.resize == 64  # training starts from the larger picture, as before


def test_judged_pictures_are_as_sharp_as_training_shows_them(monkeypatch):
    """Resized straight to 56 pixels, fine stripes would stay that training has smoothed away."""
    stripes = np.zeros((80, 80, 3), np.uint8)
    stripes[:, ::4] = 255
    x = np.stack([stripes] * 8), np.array([0, 1, 2, 0, 1, 2, 0, 1])
    data = ft.ImageArrays(x, x, ["blue", "green", "red"], size=56, batch_size=8)
    learner = ft.vision_learner(data, "resnet18", weights=None)
    monkeypatch.setitem(
        loader.AUGMENTATIONS, "default", lambda x, _, size: apply(x, AugmentDraw(), size)
    )
    shown = next(data.train_batches(0, learner.preprocess)).images[0]
    judged = next(data.valid_batches(learner.adjusted_preprocess())).images[0]
    np.testing.assert_array_equal(judged, shown)
    np.testing.assert_array_equal(prepare(stripes, learner.adjusted_preprocess()), shown)


def test_an_older_learner_is_judged_as_it_was(tmp_path):
    """Its file says `whole_squares` beside a preprocessing that does not."""
    path = saved_with(tmp_path / "learner.h5", whole_squares=True)
    weights = load_weights(path)
    older = Preprocess(resize=64, crop=56, assumed=True)
    save_weights(path, replace(weights, preprocess=older))
    assert ft.load_learner(path).adjusted_preprocess() == replace(older, resize=56)


def small_learner_of_photos(augment: str | None) -> ft.Learner:
    x, y = pictures(side=80)
    sides = {"classes": ["blue", "green", "red"], "size": 56, "batch_size": 8}
    data = ft.ImageArrays((x, y), (x[:9], y[:9]), augment=augment, **sides)
    return ft.vision_learner(data, "resnet18", weights=None)


def saved_with(path, **changed):
    """A learner's file in which these settings were changed by hand."""
    small_learner().save(path)
    weights = load_weights(path)
    settings = json.dumps(json.loads(weights.extra["learner"]) | changed)
    save_weights(path, replace(weights, extra={"learner": settings}))
    return path


@pytest.mark.parametrize(
    ("name", "value"),
    [("bn", "x"), ("bn", []), ("head", []), ("dtype", "y"), ("seed", "1"), ("seed", None),
     ("seed", -1), ("class_weights", "1"), ("class_weights", ["a"]), ("label_smoothing", None),
     ("whole_squares", 1), ("weight_decay", float("nan"))],
)  # fmt: skip
def test_a_file_with_settings_that_no_learner_has_is_refused(name, value, tmp_path):
    path = saved_with(tmp_path / "learner.h5", **{name: value})
    with pytest.raises(WeightsError, match=f"its learner: {name}.* should be .*, and is"):
        ft.load_learner(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("label_smoothing", 5), ("weight_decay", -1), ("class_weights", [1])],
)
def test_a_file_of_which_no_learner_can_be_made_is_refused(name, value, tmp_path):
    path = saved_with(tmp_path / "learner.h5", **{name: value})
    with pytest.raises(WeightsError, match=f"learner.h5: no learner can be made .* {name}"):
        ft.load_learner(path)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 9999 + "]" * 9999])
def test_a_file_whose_settings_are_no_json_object_is_refused(text, tmp_path):
    small_learner().save(tmp_path / "learner.h5")
    weights = load_weights(tmp_path / "learner.h5")
    save_weights(tmp_path / "learner.h5", replace(weights, extra={"learner": text}))
    with pytest.raises(WeightsError, match="its learner should be a set of names and values"):
        ft.load_learner(tmp_path / "learner.h5")


def test_a_loaded_learner_says_that_it_has_no_pictures(tmp_path):
    small_learner().save(tmp_path / "learner.h5")
    loaded, plan = ft.load_learner(tmp_path / "learner.h5"), small_learner().plan(1)
    carry_out, forecast = lambda: next(loaded.steps(plan)), lambda: loaded.forecast(plan)
    for call in (loaded.evaluate, lambda: loaded.plan(1), loaded.lr_find, carry_out, forecast):
        with pytest.raises(DataError, match="has no pictures"):
            call()


def test_one_class_is_nothing_to_learn():
    x, y = pictures()
    one = ft.ImageArrays((x, 0 * y), (x, 0 * y), classes=["blue"])
    with pytest.raises(DataError, match="at least two classes; found only blue"):
        small_learner(one)


def test_evaluation_refuses_other_classes_and_no_pictures():
    learner = small_learner()
    with pytest.raises(DataError, match=r"knows the classes blue.*have a, b, c.*classes="):
        learner.evaluate(small_data(classes=["a", "b", "c"]))
    x, y = pictures()
    empty = ft.ImageArrays((x, y), (x[:0], y[:0]), classes=learner.classes)
    with pytest.raises(DataError, match="no validation pictures"):
        learner.evaluate(empty)
    with pytest.raises(DataError, match="ends with validation, and there are no pictures"):
        small_learner(empty).fine_tune(1)  # before an epoch is lost


def test_what_is_no_data_is_said_to_be_none():
    for call in (ft.vision_learner, small_learner().evaluate):
        with pytest.raises(TypeError, match=r"expected pictures, as ft.ImageFolder\(...\)"):
            call("photos/")
    with pytest.raises(TypeError, match="the first is no snapshot"):
        ft.changed(small_learner(), ft.snapshot(small_learner()))


def test_evaluation_of_other_pictures_is_at_the_learners_size():
    learner = small_learner()
    assert learner.evaluate(small_data(size=None)) == learner.evaluate()


def test_a_step_that_failed_leaves_the_statistics_as_they_were():
    learner = small_learner()
    learner.unfreeze()
    learner.model.conv1.weight.data[:] = np.inf
    before = bits(learner)
    batch = next(learner.data.train_batches(0, learner.preprocess))
    with np.errstate(all="ignore"), pytest.raises(NonFiniteLossError):
        learner.train_step(batch, "by hand")
    assert bits(learner) == before


def test_a_step_after_one_that_failed_has_its_own_gradients():
    stopped, whole = small_learner(), small_learner()
    for learner in (stopped, whole):
        learner.unfreeze()
    batch = next(whole.data.train_batches(0, whole.preprocess))
    stopped.loss(stopped.model(stopped.input(batch.images)), batch.labels).backward()
    for norm, other in zip(stopped.batch_norms, whole.batch_norms, strict=True):
        norm.running_mean, norm.running_var = other.running_mean, other.running_var
    for learner in (stopped, whole):
        learner.model.train()
        for dropout in learner.dropouts:
            dropout.step = 0
        learner.train_step(batch, "by hand")
    assert bits(stopped) == bits(whole)


def test_weights_that_an_earlier_step_spoilt_are_said_to_be():
    learner = small_learner()
    learner.model.conv1.weight.data[:] = np.nan
    with np.errstate(all="ignore"), pytest.raises(NonFiniteLossError, match="spoilt by an earlier"):
        list(learner.steps(learner.plan(1)))


def change_bn(learner):
    learner.bn = "frozen"


def change_data(learner):
    learner.data = small_data(batch_size=4)


@pytest.mark.parametrize("change", [change_bn, change_data])
def test_a_plan_is_for_the_learner_that_it_was_made_with(change):
    learner = small_learner()
    plan = learner.plan(1)
    change(learner)
    before = bits(learner)
    with pytest.raises(ValueError, match="now; make a new plan"):
        next(learner.steps(plan))
    assert bits(learner) == before


def test_a_plan_is_carried_out_once():
    learner = small_learner()
    plan = learner.plan(1)
    learner.execute(plan)
    with pytest.raises(ValueError, match=f"from step 0, .* made {plan.steps} steps; make a new"):
        learner.execute(plan)


def test_a_head_that_was_exchanged_would_not_train_and_is_refused():
    learner = small_learner()
    learner.model.head = LinearHead(learner.model.num_features, 3)
    with pytest.raises(ValueError, match="other parameters than when the learner was made"):
        learner.fine_tune(1)


class Tempered(LinearHead):
    def __init__(self, C, classes):
        super().__init__(C, classes)
        self.temperature = ft.Tensor(1.0, requires_grad=True)

    def forward(self, x):
        return super().forward(x) * self.temperature


def test_a_parameter_without_axes_is_saved(tmp_path):
    learner = small_learner(head=Tempered(64, 3))
    learner.fine_tune(1)
    learner.save(tmp_path / "learner.h5")
    assert bits(ft.load_learner(tmp_path / "learner.h5", head=Tempered(64, 3))) == bits(learner)


def test_a_plan_of_no_epochs_is_refused():
    learner = small_learner()
    for make in (lambda: learner.plan(0, freeze_epochs=0), lambda: learner.one_cycle_plan(0)):
        with pytest.raises(ValueError, match="nothing to do: epochs"):
            make()


def test_a_group_that_does_not_exist_cannot_be_frozen():
    with pytest.raises(ValueError, match=r"a whole number from -3 to 3; got 1\.5"):
        small_learner().freeze_to(1.5)
    with pytest.raises(ValueError, match="from -3 to 3; got 4"):
        small_learner().freeze_to(4)
    with pytest.raises(ValueError, match="epochs should be at least 0"):
        small_learner().plan(-1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_lr": -1.0}, "base_lr should be a finite number of at least 0; got -1.0"),
        ({"base_lr": math.nan}, "base_lr should be a finite number"),
        ({"base_lr": slice(1e-3)}, "base_lr should be"),
        ({"lr_mult": 0}, "lr_mult should be a finite number above 0; got 0"),
        ({"div": -3}, "div should be a finite number above 0"),
        ({"div_final": 0}, "div_final should be"),
        ({"pct_start": 2}, "pct_start should be a finite number from 0 to 1; got 2"),
        ({"moms": 0.9}, "moms should be three momentums"),
        ({"moms": (1.5, 0.9, 0.9)}, "a momentum should be a finite number from 0 to 1; got 1.5"),
        ({"moms": (1, 1, 1)}, "a momentum should be below 1"),
        ({"weight_decay": math.nan}, "weight_decay should be"),
        ({"epochs": 1.5}, "both whole numbers; got 1.5"),
    ],
)
def test_numbers_of_the_recipe_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        small_learner().plan(**{"epochs": 1} | options)


@pytest.mark.parametrize("lr_max", [-1e-2, math.inf, slice(-1e-3, 1e-3), [1e-3, "2", 1e-3], "1e-3"])
def test_rates_that_cannot_be(lr_max):
    with pytest.raises(ValueError, match="a learning rate should be a finite number"):
        small_learner().one_cycle_plan(1, lr_max)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_weights": "even"}, "class_weights must be 'balanced' or numbers; got 'even'"),
        ({"class_weights": [1.0]}, "class_weights should be 3 numbers, one for each class"),
        ({"class_weights": [1.0, 1.0, -1.0]}, "a class weight should be .* got -1.0"),
        ({"class_weights": [1.0, 1.0, 0.0]}, "a class weight should be .* above 0; got 0.0"),
        ({"label_smoothing": 2}, "label_smoothing should be a finite number from 0 to 1"),
        ({"weight_decay": -1}, "weight_decay should be"),
    ],
)
def test_losses_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        small_learner(**options)


def test_a_plan_in_which_nothing_trains_is_refused():
    learner = small_learner(bn="torch")
    learner.freeze_to(3)
    with pytest.raises(ValueError, match="'one cycle' nothing would train"):
        learner.one_cycle_plan(1)


def test_what_is_frozen_within_a_phase_is_the_plans():
    learner = small_learner()
    with pytest.raises(ValueError, match=r"within the phase 'head alone'; .* is the plan's"):
        for _ in learner.steps(learner.plan(1)):
            learner.unfreeze()


def test_data_of_other_classes_is_refused_before_a_step():
    learner = small_learner()
    plan = learner.plan(1)
    learner.data = small_data(classes=["three", "other", "names"])
    with pytest.raises(DataError, match="the pictures have three, other, names"):
        learner.fine_tune(1)
    with pytest.raises(DataError, match="the pictures have three, other, names"):
        next(learner.steps(plan))
    assert learner.step == 0


@pytest.mark.parametrize("outputs", [2, 4])
def test_a_head_for_another_number_of_classes_is_refused_before_a_step(outputs):
    learner = small_learner(head=LinearHead(64, outputs))
    with pytest.raises(ShapeError, match=f"gives {outputs} numbers .* there are 3 classes"):
        learner.fine_tune(1)
    assert learner.step == 0


def test_a_plan_of_more_steps_than_can_have_a_rate_is_refused():
    learner = small_learner()
    for make in (learner.plan, learner.one_cycle_plan):
        with pytest.raises(ValueError, match="2,147,483,648 epochs of 3 steps are more than the"):
            make(2147483648)


def test_gradients_may_be_changed_before_the_update():
    learner = small_learner()
    learner.freeze()
    before = {name: array.copy() for name, array in learner.model.state_dict().items()}
    seen = set()

    def nothing(parameters):
        seen.update(parameters)
        for parameter in parameters.values():
            parameter.grad = np.zeros_like(parameter.grad)

    plan = learner.one_cycle_plan(1, weight_decay=0.0)
    for _ in learner.steps(plan, gradients=nothing):
        pass
    trained = {name for name, p in learner.model.named_parameters() if p.requires_grad}
    assert seen == trained < set(before)
    after = learner.model.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in seen)
