"""A pretrained ResNet-18 on four photographs of 64 pixels: the GPU backend, the CPU backend, and
the reference in float64.

A ReLU's gradient jumps: where its input is so near 0 that rounding decides the side, two backends
that are both right differ by a whole unit, and by 1e-3 in the gradients of all layers below. So
gradients are compared twice: as they are, and with one backend's decisions for both; the units that
decided otherwise are counted, and must have been near 0.
"""

from __future__ import annotations

import numpy as np
import pytest

import tinyft as ft
from tests.backends.gpu.test_end_to_end import first_batch, relative
from tinyft import backends
from tinyft.engine.tensor import Tensor

pytestmark = pytest.mark.slow

# The largest relative distance of logits, and of any gradient where decisions are equal (the
# study's bounds), and of any gradient as it is; the most ReLUs that may turn over, and how far from
# 0 their inputs may be.
BOUNDS = {
    "fp32": {
        "logits": 1e-4, "equal": 1e-4, "as it is": 1e-2, "turned": 5, "near": 1e-5,
    },
    "tf32": {
        "logits": 3e-2, "equal": 2e-2, "as it is": 0.3, "turned": 200, "near": 5e-2,
    },
}  # fmt: skip


class Decisions:
    """What each ReLU of a forward pass let through, and which pixels the max pool took. Going back,
    those of `forced` are used, if given.
    """

    def __init__(self, forced: Decisions | None = None):
        self.forced = forced
        self.xs: list = []
        self.outs: list = []
        self.inputs: list[np.ndarray] = []
        self.places: list[np.ndarray] = []

    @property
    def passed(self) -> list[np.ndarray]:
        return [backends.host(out) > 0 for out in self.outs]

    def turned(self, other: Decisions) -> list[tuple[int, float]]:
        """(number of the ReLU, its input here) for each unit that decided otherwise."""
        pairs = enumerate(zip(self.passed, other.passed, strict=True))
        return [(i, float(x)) for i, (a, b) in pairs for x in self.inputs[i][a != b]]

    def imposed(self, x):
        """The result of the batch norm of x, with the signs of `forced`."""
        number = next(i for i, normalised in enumerate(self.xs) if normalised is x)
        values = backends.host(self.outs[number]).copy()
        passed = self.forced.passed[number]
        values[passed & (values <= 0)] = 1
        values[~passed] = 0
        return backends.place_like(values, x)


class _Watching:
    """A backend whose ReLUs are noted, and overruled."""

    def __init__(self, backend, decisions):
        self._backend, self._decisions = backend, decisions

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def batch_norm_train(self, *arguments, residual=None, relu=False):
        compute = self._backend.batch_norm_train
        results = compute(*arguments, residual=residual, relu=relu)
        if relu:
            before = compute(*arguments, residual=residual)[0]
            self._decisions.xs.append(arguments[0])
            self._decisions.outs.append(results[0])
            self._decisions.inputs.append(backends.host(before).copy())
        return results

    def batch_norm_train_grad(self, *arguments, **relu):
        if self._decisions.forced and any(array is not None for array in relu.values()):
            relu = {"out": self._decisions.imposed(arguments[1])}
        return self._backend.batch_norm_train_grad(*arguments, **relu)

    def max_pool2d(self, x, **options):
        out, place = self._backend.max_pool2d(x, **options)
        self._decisions.places.append(backends.host(place).copy())
        return out, place

    def max_pool2d_grad(self, dout, place, *arguments, **options):
        if self._decisions.forced:  # there is one max pool
            forced = self._decisions.forced.places[0].astype(place.dtype)
            place = backends.place_like(forced, place)
        return self._backend.max_pool2d_grad(dout, place, *arguments, **options)


def learn(shared, device):
    data = ft.ImageFolder(shared / "data" / "animals8", size=64, batch_size=4, augment=None)
    weights = shared / "data" / "resnet18_imagenet_pq.pth"
    return ft.vision_learner(data, weights=weights, device=device, head="linear", seed=1)


def gradients(learner, batch, forced=None, dtype=np.float32):
    """Logits, every gradient, and what the ReLUs decided, of one forward and backward."""
    learner.unfreeze()
    learner.model.train()
    learner.optimizer.zero_grad()
    decisions = Decisions(forced)
    backend = "reference" if dtype == np.float64 else learner.device
    images = learner.input(batch.images)
    images = images if images.dtype == dtype else Tensor(images.data.astype(dtype))
    with backends.use(backend), backends.watch(lambda b: _Watching(b, decisions)):
        logits = learner.model(images)
        learner.loss(logits, batch.labels).backward()
    found = {n: backends.host(p.grad).copy() for n, p in learner.model.named_parameters()}
    return backends.host(logits.data), found, decisions


def in_float64(learner):
    for _, parameter in learner.model.named_parameters():
        parameter.data = parameter.data.astype(np.float64)
    for norm in learner.batch_norms:
        norm.running_mean = norm.running_mean.astype(np.float64)
        norm.running_var = norm.running_var.astype(np.float64)
    return learner


def worst(found, right):
    return max(relative(found[name], right[name]) for name in right)


@pytest.fixture(scope="module")
def on_cpu(shared):
    """The learner of the CPU backend, a batch, and what comes of it."""
    learner = learn(shared, "cpu")
    batch = first_batch(learner)
    return learner, batch, gradients(learner, batch)


@pytest.mark.parametrize("precision", BOUNDS)
def test_gradients_where_decisions_are_equal(gpu, shared, on_cpu, monkeypatch, precision):
    """Measured: one of 753,664 units turns over in fp32 (behind layer2.0: +3.7e-7 here, negative on
    the CPU, -1.2e-7 in float64), and moves gradients by 8.7e-4; with that one equal it is 9e-6.
    """
    monkeypatch.setattr(gpu, "precision", precision)
    _, batch, (right_logits, right, decisions) = on_cpu
    learner = learn(shared, "gpu")
    logits, found, decided = gradients(learner, batch)
    turned = decided.turned(decisions)
    places = sum(int((a != b).sum()) for a, b in zip(decided.places, decisions.places, strict=True))
    equal = worst(gradients(learner, batch, decisions)[1], right)
    as_it_is, off = worst(found, right), relative(logits, right_logits)
    nearest = max((abs(x) for _, x in turned), default=0)
    units = sum(x.size for x in decided.inputs)
    print(
        f"\n{precision}: logits {off:.1e}, gradients {as_it_is:.1e}; {len(turned)} of {units:,} "
        f"ReLUs turned over (inputs up to {nearest:.1e}, in {sorted({i for i, _ in turned})}), "
        f"{places} maxima; with decisions equal {equal:.1e}"
    )
    allowed = BOUNDS[precision]
    assert units == 753664
    assert off < allowed["logits"] and equal < allowed["equal"]
    assert len(turned) <= allowed["turned"] and nearest < allowed["near"]
    assert as_it_is < (allowed["as it is"] if turned or places else allowed["equal"])


def test_both_backends_against_float64(gpu, shared, on_cpu, monkeypatch):
    monkeypatch.setattr(gpu, "precision", "fp32")
    here, batch, _ = on_cpu
    _, exact, decisions = gradients(in_float64(learn(shared, "cpu")), batch, dtype=np.float64)
    for learner in (here, learn(shared, "gpu")):
        _, found, decided = gradients(learner, batch, decisions)
        turned = decided.turned(decisions)
        print(f"\n{learner.device}: {worst(found, exact):.1e}, turned over {turned}")
        assert worst(found, exact) < 1e-4
        assert len(turned) <= 5 and all(abs(x) < 1e-5 for _, x in turned)


def test_the_losses_of_three_steps(gpu, shared, monkeypatch):
    """The second loss is the first that depends on a gradient. What TF32 changes is in gradients,
    above.
    """
    monkeypatch.setattr(gpu, "precision", "fp32")
    losses = []
    for learner in (learn(shared, "cpu"), learn(shared, "gpu")):
        learner.unfreeze()
        for group in learner.groups:
            group.lr = 1e-5
        batch = first_batch(learner)
        losses.append([learner.train_step(batch, "by hand").loss for _ in range(3)])
    off = max(abs(a / b - 1) for a, b in zip(*losses, strict=True))
    print(f"\nlosses of 3 steps {off:.1e}")
    assert off < 1e-3
