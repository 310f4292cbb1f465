"""What if a layer had put out something else: values, gradients, and nothing left of it."""

from __future__ import annotations

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import bits, pictures, small_learner
from tests.inspection.moments import moment_of
from tinyft import nn, ops
from tinyft.inspection import ablate, clamp, swap
from tinyft.inspection.trace.activations import changing

DRAW = np.random.default_rng(0)
CHANGES = {"ablate": ablate(2), "clamp": clamp(-0.5, 0.7), "swap": swap(0, 3), "any": ops.tanh}
EXPECTED = {
    "ablate": lambda x: np.where(np.arange(4) == 2, 0, x),
    "clamp": lambda x: np.clip(x, -0.5, 0.7),
    "swap": lambda x: x[..., [3, 1, 2, 0]],
    "any": np.tanh,
}


def network():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm(4), nn.Conv2d(4, 2, 3))
    nn.initialise(model, 0)
    return model.astype("float64")


@pytest.mark.parametrize("kind", CHANGES)
def test_values_and_gradients(kind):
    change, x = CHANGES[kind], DRAW.normal(size=(2, 3, 3, 4))
    np.testing.assert_allclose(change(ft.Tensor(x)).data, EXPECTED[kind](x), atol=1e-15)
    assert ft.gradcheck(change, [ft.Tensor(x, requires_grad=True)])
    model, pixels = network(), ft.Tensor(DRAW.normal(size=(2, 4, 4, 3)), requires_grad=True)
    with changing(model, {"1": change}):
        assert ft.gradcheck(model, [pixels])


def test_a_traced_step_runs_on_with_the_change():
    model, x = network(), ft.Tensor(DRAW.normal(size=(2, 4, 4, 3)))
    whole = model(x).data
    with ft.trace(model, change={"0": ablate(1)}) as trace:
        changed = model(x)
        changed.sum().backward()
    assert [(n.op, n.layer) for n in trace][:3] == [
        ("conv2d", "0"), ("mul", "0"), ("batch_norm_train", "1"),
    ]  # fmt: skip
    gradient = dict(model.named_parameters())["0.weight"].grad
    assert not gradient[1].any() and gradient[0].any()
    assert not np.array_equal(changed.data, whole)
    np.testing.assert_array_equal(model(x).data, whole)
    assert "forward" not in vars(dict(model.named_modules())["0"])


@pytest.mark.slow
def test_the_layer_as_it_would_be_with_that_filter_gone():
    moment = moment_of(4)
    before, state = moment.look("evaluation"), bits(moment.learner)
    found = moment.look("evaluation", {"layer1.0.bn1": ablate(7)})
    assert bits(moment.learner) == state and moment.look("evaluation").loss == before.loss
    norm = dict(moment.learner.model.named_modules())["layer1.0.bn1"]
    norm.weight.data[7] = norm.bias.data[7] = 0
    by_hand = moment.look("evaluation")
    assert found.loss == pytest.approx(by_hand.loss, rel=1e-12) != before.loss
    np.testing.assert_allclose(found.probabilities, by_hand.probabilities, rtol=1e-12)


def test_predictions_follow_each_change_and_forget_it():
    learner, image = small_learner(), pictures()[0][0]
    model = learner.model.eval()
    pixels = learner.input(learner.data.source("valid", 0)[None])
    for norm in learner.batch_norms:  # or folding would change nothing of a channel of zeros
        norm.running_mean = DRAW.normal(size=norm.running_mean.shape).astype(np.float32)
    plain = learner.predict(image).probabilities
    seen = []
    for channel in (3, 5, 3):
        with changing(model, {"layer1.0.conv1": ablate(channel)}):
            seen.append(learner.predict(image).probabilities)
            np.testing.assert_allclose(
                nn.fold(model)(pixels).data, model(pixels).data, rtol=1e-3, atol=1e-4
            )
    np.testing.assert_array_equal(seen[0], seen[2])
    assert len({p.tobytes() for p in (plain, *seen)}) == 3
    np.testing.assert_array_equal(learner.predict(image).probabilities, plain)
    with changing(model, {"": lambda scores: 0 * scores}):  # the network as a whole
        assert np.ptp(learner.predict(image).probabilities) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer9": ablate(0)}, "no layer 'layer9'; did you mean layer3"),
        ({"layer1.0": ablate(16)}, "channels 0 to 15; got 16"),
        ({"layer1.0": swap(0, -1)}, "channels 0 to 15; got -1"),
    ],
)
def test_what_is_not_there(change, said):
    learner = small_learner()
    with pytest.raises(ValueError, match=said), changing(learner.model, change):
        learner.model(learner.input(pictures()[0][:2]))
    assert not any("forward" in vars(module) for _, module in learner.model.named_modules())


def test_a_change_of_no_network_is_refused():
    with pytest.raises(ValueError, match=r"ft\.trace\(model, change"), ft.trace(change=CHANGES):
        pass
