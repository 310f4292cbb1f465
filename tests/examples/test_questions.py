"""The answers to the three questions at the end of each example: said here, and proved."""

import re
from pathlib import Path

import numpy as np
import pytest

import tinyft
from tinyft import backends
from tinyft.bundled import bundled
from tinyft.errors import TinyftError
from tinyft.finetune import Group, layer_groups, one_cycle_phase
from tinyft.finetune.schedule import fine_tune_phases, per_group
from tinyft.nn import LinearHead, attach, cut

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def leaf(values):
    return tinyft.Tensor(np.array(values, np.float64), requires_grad=True)


def noise(per_class, classes, **options):
    """Random pictures of so many classes, the same to train on and to validate."""
    labels = np.repeat(np.arange(classes), per_class)
    pixels = np.random.default_rng(0).integers(0, 255, (len(labels), 32, 32, 3), np.uint8)
    names = [f"class {i}" for i in range(classes)]
    return tinyft.ImageArrays((pixels, labels), (pixels, labels), names, size=32, **options)


def small_network(classes=4):
    """A network in training mode, a batch of four pictures, and their labels."""
    model = cut(tinyft.nn.build("resnet10s", seed=0))
    attach(model, LinearHead(model.num_features, num_classes=classes)).train()
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    return model, tinyft.Tensor(x), np.arange(4) % classes


def gradients(model, x, labels):
    tinyft.ops.cross_entropy(model(x), labels).backward()
    return {name: p.grad for name, p in model.named_parameters()}


# ------------------------------------------------------------------ the engine, the operations


def test_engine_questions():
    """7: 2 * 3 from the product, 1 from the sum. 120 in each. 18: y's own gradient is 2 by then,
    which is passed on and added to the 6 from before; the real one says that its tape is used up.
    """
    page = {}
    exec((EXAMPLES / "00_engine.py").read_text().partition("\n# Three arms")[0], page)
    x = page["Tensor"](3.0)
    (x * x + x).backward()
    assert x.grad == 7
    bias = page["Tensor"](np.zeros(16))
    (page["Tensor"](np.zeros((120, 16))) + bias).sum().backward()
    assert (bias.grad == 120).all()
    x = page["Tensor"](3.0)
    y = x * x
    y.backward()
    y.backward()
    assert x.grad == 18


def test_autograd_questions():
    """168: y = (aa + a)^2, and 2 * 12 * (2a + 1). An error: the tape was freed. None."""
    a = leaf([3.0])
    total = a * a + a
    y = total * total
    y.backward()
    assert a.grad == 168
    with pytest.raises(TinyftError, match="already used"):
        y.backward()
    with tinyft.no_grad():
        assert (a * a).node is None


def test_convolution_questions():
    """The last: no window reaches it. Those of the first filter alone. dweight doubles, dx stays:
    each is made of what it was multiplied by.
    """
    rng = np.random.default_rng(0)
    pictures, filters = rng.normal(size=(2, 6, 6, 3)), rng.normal(size=(4, 3, 3, 3))

    def grads(pictures, dout=(1, 1, 1, 1)):
        x, weight = leaf(pictures), leaf(filters)
        y = tinyft.ops.conv2d(x, weight, stride=2)
        y.backward(dout + np.zeros(y.shape))
        return x.grad, weight.grad

    dx, dweight = grads(pictures)
    assert [i for i in range(6) if not dx[:, i].any()] == [5]
    doubled_dx, doubled_dweight = grads(2 * pictures)
    assert (doubled_dx == dx).all() and np.allclose(doubled_dweight, 2 * dweight)
    first = grads(pictures, dout=(1, 0, 0, 0))[1]
    assert [f for f in range(4) if first[f].any()] == [0]


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
    data = noise(4, 2, batch_size=4)
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


# ------------------------------------------------------------------------------- the network


@pytest.mark.slow
def test_pretrained_resnet_questions():
    """Running means and variances of twelve batch norms, which no gradient moves. Seven: it was
    trained on other numbers. Yes: each batch norm then compares it with them.
    """
    weights = tinyft.load_weights("resnet10s")
    model = tinyft.nn.build("resnet10s", num_classes=200, seed=None)
    model.load_state_dict(weights.arrays)
    others = set(weights.arrays) - {name for name, _ in model.named_parameters()}
    assert len(weights.arrays) == 62 and len(others) == 24
    assert all(".running_" in name for name in others)
    kinds = sorted(bundled("examples/animals8/valid").iterdir())
    photos = [min(kind.glob("*.jpg")) for kind in kinds]
    recipe = weights.preprocess
    shares = np.stack([tinyft.data.prepare(p, recipe) for p in photos]).astype(np.float32) / 255
    x = (shares - np.float32(recipe.mean)) / np.float32(recipe.std)

    def scores(x, training=False):
        with tinyft.no_grad():
            return model.train(training)(tinyft.Tensor(x)).data

    best = scores(x).argmax(axis=1)
    assert (best != scores(shares).argmax(axis=1)).sum() == 7
    np.testing.assert_allclose(scores(x)[:2], scores(x[:2]), atol=1e-3)
    assert abs(scores(x, True)[:2] - scores(x[:2], True)).max() > 0.1


@pytest.mark.slow
def test_cut_and_head_questions():
    """(N, 2, 2, 512), and none: a filter does not know how large the picture is. 5,130. The linear
    head: a mean of scores is the score of the mean.
    """
    body = cut(tinyft.resnet18(seed=None))
    with tinyft.no_grad():
        assert body.eval()(tinyft.Tensor(np.zeros((2, 64, 64, 3), "f4"))).shape == (2, 2, 2, 512)
    head = LinearHead(512, num_classes=10)
    assert head.count_parameters() == 5130
    features = tinyft.Tensor(np.random.default_rng(0).normal(size=(2, 3, 3, 512)).astype("f4"))
    linear = head.linear
    places = tinyft.ops.linear(features.reshape(18, 512), linear.weight, linear.bias)
    mean = places.data.reshape(2, 9, 10).mean(axis=1)
    np.testing.assert_allclose(mean, head.eval()(features).data, atol=1e-4)


@pytest.mark.slow
def test_freeze_and_groups_questions():
    """Weights of convolutions. Only under "frozen": otherwise they depend on the batch and its
    scales. The running statistics: they ask for no learning rate.
    """
    data = noise(4, 2, batch_size=4, augment=None)
    for bn in ("frozen", "torch", "fastai"):
        learner = tinyft.vision_learner(data, "resnet10s", weights=None, bn=bn)
        assert (learner.plan(1).cached_bytes[0] > 0) == (bn == "frozen")
    frozen = [name for group in learner.groups[:2] for name in group.parameters]
    rest = set(frozen).difference(*(group.norm_parameters for group in learner.groups))
    assert len(frozen) == 36 and len(rest) == 12
    assert all("conv" in name or "downsample.0" in name for name in rest)
    still = one_cycle_phase("still", 1, data.steps_per_epoch, [0, 0, 1e-3], 3, first_trainable=0)
    records = list(learner.steps(learner.plan_of([still])))
    body = [name for name in records[-1].proof.moved if not name.startswith("head.")]
    assert len(body) == 24 and all(".running_" in name for name in body)


@pytest.mark.slow
def test_two_steps_questions():
    """The sum of both. To the pictures: the body's gradients come through the head. No."""
    whole = gradients(*small_network())
    model, x, labels = small_network()
    once = gradients(model, x, labels)["head.linear.bias"].copy()
    assert np.allclose(gradients(model, x, labels)["head.linear.bias"], 2 * once, atol=1e-6)
    for frozen, reached in ((0, False), (2, True)):
        model, x, labels = small_network()
        groups = layer_groups(model)
        for parameter in groups[frozen].parameters.values():
            parameter.requires_grad = False
        part = gradients(model, x, labels)
        assert (part["conv1.weight"] is not None) == reached
        for name, gradient in part.items():
            assert (gradient is None) == (name in groups[frozen].parameters)
            assert gradient is None or np.array_equal(gradient, whole[name]), name


# ------------------------------------------------------------------------------- fine-tuning


@pytest.mark.slow
def test_fine_tune_questions(tmp_path):
    """No: chance alone spreads by 3 points, and 20 % is 1.6 of these below. All of the body's, to
    the bit. Nearly nothing: the gradient is the guess less the truth, and fades.
    """
    guessed = np.random.default_rng(0).binomial(200, 0.25, 10_000) / 200
    assert 0.028 < guessed.std() < 0.034 and (guessed <= 0.20).mean() > 0.05
    body = cut(tinyft.nn.build("resnet10s", seed=5)).state_dict()
    recipe = tinyft.weights.Preprocess.for_architecture("resnet10s")
    file = tmp_path / "body.h5"
    tinyft.save_weights(file, tinyft.weights.Weights("resnet10s", body, None, recipe))
    state = tinyft.vision_learner(noise(4, 2, batch_size=4), weights=file).model.state_dict()
    assert {name for name in state if not name.startswith("head.")} == set(body)
    assert all(np.array_equal(state[name], array) for name, array in body.items())
    sure = leaf(20 * np.eye(4))
    tinyft.ops.cross_entropy(sure, np.arange(4)).backward()
    assert abs(sure.grad).max() < 1e-8


def test_pretrained_or_not_questions():
    """One, of 16, and 8 wait for another epoch's order: ten steps are all there is. 8; chance is 5
    for each. Dividing a row by a number moves all its scores alike: the largest stays.
    """
    data = noise(3, 8)
    assert (data.n_train, data.batch_size, data.steps_per_epoch) == (24, 16, 1)
    assert round(0.889 * 216) - round(0.852 * 216) == 8
    assert [round((216 * p * (1 - p)) ** 0.5) for p in (0.889, 0.852)] == [5, 5]
    rng = np.random.default_rng(0)
    features, means = rng.normal(size=(50, 16)), rng.normal(size=(16, 8))
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    assert ((features @ means).argmax(1) == (features / lengths @ means).argmax(1)).all()


def test_look_inside_questions():
    """Yes: what it leaves out grows with the square of the step. Every forward: only the
    tape is missing. In the first block behind them, at its first convolution.
    """
    rng = np.random.default_rng(0)
    start, labels = rng.normal(size=(8, 4)), np.arange(8) % 4
    logits = leaf(start)
    loss = tinyft.ops.cross_entropy(logits, labels)
    loss.backward()
    left_out = []
    for rate in (1, 10):
        moved = tinyft.ops.cross_entropy(leaf(start - rate * logits.grad), labels).item()
        left_out.append(moved - loss.item() + rate * (logits.grad**2).sum())
    assert left_out[1] > 50 * left_out[0] > 0

    class Listener:
        def __init__(self):
            self.heard = []

        def after_forward(self, node):
            self.heard.append(node.layer)

        def after_backward(self, node, gradient, input_gradients):
            self.heard.append(node.layer)

    model, x, labels = small_network()
    with tinyft.no_grad(), tinyft.observe(listener := Listener()):
        model(x)
    assert len(listener.heard) > 20 and listener.heard[0] == "conv1"
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.split(".")[0] not in ("conv1", "bn1")
    with tinyft.observe(listener):
        gradients(model, x, labels)
    assert listener.heard[-1] == "layer1.0.conv1"


@pytest.mark.slow
def test_gpu_questions(tmp_path):
    """All three. Itself: it is there already. Nothing."""
    drawn = []
    for seed in (0, 1):
        data = noise(8, 2, batch_size=4, seed=seed)
        learner = tinyft.vision_learner(data, "resnet10s", weights=None, seed=seed)
        head = learner.model.head.linear1.weight.data.ravel()[:4].tolist()
        order = next(data.train_batches(0, learner.preprocess)).ids.tolist()
        ones = np.ones(16, np.float32)
        mask = backends.get("cpu").dropout(ones, 0.5, seed=seed, stream=(0, 0)).tolist()
        drawn.append((head, order, mask))
    assert all(a != b for a, b in zip(*drawn, strict=True))
    assert backends.host(ones) is ones
    learner.save(tmp_path / "one.h5")
    assert b"device" not in (tmp_path / "one.h5").read_bytes()


def test_every_example_ends_in_three_questions_that_a_test_here_answers():
    for example in EXAMPLES.glob("[0-9]*.py"):
        head, _, questions = example.read_text().rpartition("\n# Three questions, answered by ")
        named = re.match(r"(test_\w+) in tests/examples/test_questions.py:\n", questions)
        assert head and named and named[1] in globals(), example.name
        assert len(re.findall(r"^#   [123]\. .*\?$", questions, re.M)) == 3, example.name
