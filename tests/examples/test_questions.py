"""The answers to the three questions at the end of each example: said here, and proved."""

import numpy as np
import pytest

import tinyft
from tinyft.finetune import Group, layer_groups, one_cycle_phase
from tinyft.finetune.schedule import fine_tune_phases, per_group


def test_cross_entropy_questions():
    """To nothing: moving all logits alike changes no share. log 8. Smaller where the network is
    right, larger where it is wrong: it is surer of both.
    """

    def loss_and_gradient(rows, labels):
        logits = tinyft.Tensor(np.array(rows, np.float64), requires_grad=True)
        loss = tinyft.ops.cross_entropy(logits, np.array(labels))
        loss.backward()
        return loss.item(), logits.grad

    sums = loss_and_gradient([[2.0, 1.0, -1.0], [0.5, 0.5, 0.0]], [0, 2])[1].sum(axis=1)
    np.testing.assert_allclose(sums, 0, atol=1e-15)
    assert loss_and_gradient(np.full((1, 8), 3.0), [5])[0] == pytest.approx(np.log(8))
    for label, sure_is_better in ((0, True), (1, False)):
        mild, sure = (loss_and_gradient([[k * 0.2, k * 0.1]], [label])[0] for k in (1, 10))
        assert (sure < mild) == sure_is_better


def test_batch_norm_questions():
    """Zero: the mean takes any constant away. The result stays, dx is a hundredth. No."""
    rng = np.random.default_rng(0)
    x, dout = rng.normal(size=(2, 6, 3))
    one, none = np.ones(3), np.zeros(3)

    def out_and_dx(x, dout, *statistics):
        x, scale, shift = tinyft.Tensor(x, requires_grad=True), *map(tinyft.Tensor, (one, none))
        if statistics:
            y = tinyft.ops.batch_norm_eval(x, scale, shift, *statistics)
        else:
            y = tinyft.ops.batch_norm(x, scale, shift, eps=1e-12)[0]
        y.backward(dout)
        return y.data, x.grad

    out, dx = out_and_dx(x, dout)
    np.testing.assert_allclose(dx.sum(axis=0), 0, atol=1e-12)
    larger_out, larger_dx = out_and_dx(100 * x, dout)
    np.testing.assert_allclose(larger_out, out, atol=1e-9)
    np.testing.assert_allclose(larger_dx, dx / 100, atol=1e-9)
    others = np.concatenate([x[:1], 5 * x[1:]])
    for statistics, same in (((none, one), True), ((), False)):
        first = [out_and_dx(batch, dout, *statistics)[1][0] for batch in (x, others)]
        assert np.array_equal(*first) == same


def test_schedule_questions():
    """Never: it would be that of the step behind the last. By the cube root of 100. All double."""
    _, everything = fine_tune_phases(2, 5, n_groups=3)
    assert everything.lr[-1, 2] > 1000 * 1e-3 / 1e5
    peaks = np.array(per_group(slice(1e-3 / 100, 1e-3), 4))
    np.testing.assert_allclose(peaks[1:] / peaks[:-1], 100 ** (1 / 3))
    for once, twice in zip(
        fine_tune_phases(2, 5, 3, base_lr=1e-3),
        fine_tune_phases(2, 5, 3, base_lr=2e-3),
        strict=True,
    ):
        np.testing.assert_allclose(2 * once.lr, twice.lr, rtol=1e-14)
        assert (once.momentum == twice.momentum).all()


def test_adam_questions():
    """They stay, but for eps. As far as one: 0.1 / 0.1. It shrinks by rate times decay, and both
    averages stay 0: the decay is beside them.
    """

    def steps(gradients, weight_decay=0.0):
        parameter = tinyft.Tensor(np.ones(1), requires_grad=True)
        group = Group("all", {"p": parameter}, {}, frozenset(), weight_decay=weight_decay)
        optimizer = tinyft.Adam([group])
        for gradient in gradients:
            before = parameter.data[0]
            parameter.grad = np.array([gradient])
            optimizer.step()
        return (before - parameter.data[0]) / group.lr, optimizer.state["p"]

    few = np.array([1.0, -2.0, 0.5])
    assert steps(1000 * few)[0] == pytest.approx(steps(few)[0], rel=1e-4)
    assert steps([0.0] * 1000 + [1.0])[0] == pytest.approx(1, rel=1e-3)
    shrunk, state = steps([0.0], weight_decay=0.1)
    assert shrunk == pytest.approx(0.1)
    assert state["average"] == state["average_square"] == 0


@pytest.mark.slow
def test_unfreezing_questions():
    """The running statistics: no gradient moves them, and bn="frozen" lets no batch move them.
    Scales, shifts and running statistics of its batch norms, all others not. No: what is frozen
    are always the first groups, so that backward can end before them.
    """
    pictures = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8), np.arange(8) % 2
    data = tinyft.ImageArrays(pictures, pictures, ["even", "odd"], size=32, batch_size=4)
    steps = data.steps_per_epoch
    for bn in ("frozen", "fastai"):
        learner = tinyft.vision_learner(data, "resnet10s", bn=bn, seed=0)
        phases = [
            one_cycle_phase(f"from {i}", 1, steps, 1e-3, 3, first_trainable=i) for i in (2, 0)
        ]
        proofs = [r.proof for r in learner.steps(learner.plan_of(phases)) if r.proof]
        if bn == "frozen":
            assert proofs[-1].identical and all(".running_" in n for n in proofs[-1].identical)
        body = {n for n in learner.model.state_dict() if not n.startswith("head.")}
        of_norms = {f"{n}.{part}" for g in learner.groups for n in g.batch_norms
                    for part in ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
        moved = set(proofs[0].moved) & body
        assert moved == (of_norms & body if bn == "fastai" else set())
    with pytest.raises(ValueError, match="in the order of the network"):
        layer_groups(
            tinyft.vision_learner(data, "resnet10s").model,
            {"head": ["head"], "body": ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]},
        )
