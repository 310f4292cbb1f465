"""The tape of a step: what ran, what it kept, which gradients came, and where they stopped."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import small_data, small_learner
from tests.inspection.conftest import everything
from tinyft import backends
from tinyft.inspection.step.moment import Moment
from tinyft.inspection.trace.recorder import trace_step
from tinyft.nn.layers import BatchNorm, Conv2d

DRAW = np.random.default_rng(0)


def leaf(*shape):
    return ft.Tensor(DRAW.standard_normal(shape).astype(np.float32), requires_grad=True)


def norm(array):
    return np.linalg.norm(np.asarray(array, np.float64))


@pytest.fixture(scope="module")
def frozen_step():
    """A step of the head alone, body frozen but for the scales and shifts of its batch norms."""
    learner = small_learner()
    moment = Moment.of(learner, learner.plan(1), 0)
    gradients = {}
    zero_grad = learner.optimizer.zero_grad

    def keep_then_zero():
        for group in learner.groups:
            for name, p in group.parameters.items():
                gradients[name] = None if p.grad is None else p.grad.copy()
        zero_grad()

    learner.optimizer.zero_grad = keep_then_zero
    return trace_step(moment, open=[3]), gradients, learner


def test_every_op_in_order_with_its_layer_and_place():
    x, weight = ft.Tensor(np.ones((2, 3), np.float32)), leaf(4, 3)
    with ft.trace() as trace:
        hidden = ft.ops.relu(ft.ops.linear(x, weight))
        loss = ft.ops.sum(hidden * 2.0)
        loss.backward()
    assert [node.op for node in trace] == ["linear", "relu", "mul", "sum"]
    assert [node.number for node in trace] == [0, 1, 2, 3] and len(trace) == 4
    assert trace[0].shape == (2, 4) and trace[3].shape == ()
    assert [i.name for i in trace[0].inputs] == ["x", "weight"]
    assert trace[1].inputs[0].made_by == 0 and trace[2].inputs[0].made_by == 1
    assert trace[0].source.startswith("tinyft/ops/convolution.py:")
    assert trace[2].source.startswith("tinyft/engine/primitives.py:")
    first = [int(node.call.rpartition(":")[2]) for node in trace]
    assert all("tests/inspection/test_microscope.py:" in node.call for node in trace)
    assert first == [first[0], first[0], first[0] + 1, first[0] + 1]
    assert "each output is a weighted sum" in trace[0].formula
    assert trace[0].derivative.startswith("out = x @ weight.T + bias; so: dx = dout @ weight")


@pytest.mark.slow
def test_norms_are_those_of_the_gradients(frozen_step):
    trace, gradients, _ = frozen_step
    seen = set()
    for node in trace:
        for given in node.inputs:
            if given.label in gradients:
                seen.add(given.label)
                expected = gradients[given.label]
                if expected is None:
                    assert given.gradient_norm is None and given.stop == "frozen"
                else:
                    assert given.gradient_norm == pytest.approx(norm(expected), rel=1e-6)
    assert seen == set(gradients)
    head = trace["head.bn1"]
    both = [gradients["head.bn1.weight"], gradients["head.bn1.bias"]]
    assert head.parameter_gradient_norm == pytest.approx(np.hypot(*map(norm, both)))
    assert trace["conv1"].parameter_gradient_norm is None


def test_what_arrives_at_a_node_is_what_the_ones_behind_it_sent(frozen_step):
    trace, _, _ = frozen_step
    users = {}
    for node in trace:
        for given in node.inputs:
            users.setdefault(given.made_by, []).append(given)
    alone = [n for n in trace if len(users.get(n.number, ())) == 1 and n.backward is not None]
    assert len(alone) > 20
    for node in alone:
        assert node.gradient_norm == users[node.number][0].gradient_norm


def test_a_backward_that_began_elsewhere_is_seen_as_its_sum():
    x = leaf(5)
    with ft.trace() as trace:
        y = x * 2.0
        ft.ops.sum(y + y * 3.0).backward()
    assert trace[0].gradient_norm == pytest.approx(norm(np.full(5, 4.0)))
    assert trace[0].inputs[0].gradient_norm == pytest.approx(norm(x.grad))


def test_bytes_are_counted_once_and_without_parameters():
    conv, bn = Conv2d(3, 16, 3, padding=1), BatchNorm(16)
    conv.name, bn.name = "conv", "bn"
    conv.weight.data[...] = DRAW.standard_normal(conv.weight.shape)
    x = ft.Tensor(DRAW.standard_normal((2, 8, 8, 3)).astype(np.float32))
    with ft.trace() as trace:
        rectified = bn(conv(x), relu=True)
        out = ft.ops.relu(ft.ops.conv2d(rectified, leaf(16, 16, 1, 1)))
        ft.ops.sum(out).backward()
    picture, features = 2 * 8 * 8 * 3 * 4, 2 * 8 * 8 * 16 * 4
    assert trace["conv"].kept_bytes == picture
    # x and the result, mean and variance; its weight is a parameter
    assert trace["bn"].kept_bytes == 2 * features + 2 * 16 * 4
    assert trace[2].kept_bytes == 0  # its x is the result that the batch norm keeps
    assert trace[3].kept_bytes == features  # relu's own result
    assert trace.kept_bytes == picture + 3 * features + 2 * 16 * 4


def test_a_frozen_convolution_keeps_nothing(frozen_step):
    trace, _, _ = frozen_step
    assert trace["layer1.0.conv1"].kept_bytes == 0
    assert trace["conv1"].recorded is False and trace["conv1"].backward is None


def test_where_backward_stopped_with_trained_batch_norms(frozen_step):
    trace, _, _ = frozen_step
    boundary = [(n.number, i.name, i.stop) for n, i in trace.stops() if i.made_by is not None]
    assert boundary == [(1, "x", "nothing before it trains")]
    frozen = {i.label for _, i in trace.stops() if i.stop == "frozen"}
    assert "layer3.2.conv2.weight" in frozen and "bn1.weight" not in frozen
    said = str(trace)
    assert "at node 1 (bn1), x from node 0: nothing before it trains" in said
    assert f"frozen ({len(frozen)}): layer1.0.conv1.weight" in said


@pytest.mark.slow
def test_the_frozen_boundary_is_said():
    learner = small_learner(bn="torch")
    trace = trace_step(Moment.of(learner, learner.plan(1), 0))
    head = trace["head.bn1"]
    boundary = [(n, i) for n, i in trace.stops() if i.made_by is not None]
    assert [(n.number, i.name) for n, i in boundary] == [(head.number, "x")]
    assert all(n.backward is None and n.kept_bytes == 0 for n in trace.nodes[: head.number])
    assert all(n.backward is not None for n in trace.nodes[head.number :])
    said = str(trace)
    made_by = head.number - 1
    assert f"at node {head.number} (head.bn1), x from node {made_by}: nothing before it" in said
    body = sum(not name.startswith("head") for name, _ in learner.model.named_parameters())
    assert f"frozen, in nodes that backward had no reason to visit ({body}): conv1.weight" in said


def test_kernels_say_who_they_are(frozen_step):
    trace, _, _ = frozen_step
    if backends.get("auto").name != "cpu":
        pytest.skip("Numba is not installed")
    assert [c.by for c in trace["conv1"].forward] == ["few channels"]
    assert [c.by for c in trace["layer1.0.conv1"].forward] == ["Winograd"]
    assert [c.by for c in trace["layer2.0.conv1"].backward] == ["Winograd with stride 2"]
    assert [c.by for c in trace["head.linear1"].backward] == ["gemm", "gemm"]
    assert [c.by for c in trace[len(trace) - 1].forward] == ["reference"]
    assert "winograd.convolve_tiles" in trace["layer1.0.conv1"].forward[0].started
    outside = {call.kernel for call in trace.others}
    assert {"images", "adam_step"} <= outside and "conv2d" not in outside


def test_on_the_reference_backend_all_is_the_reference():
    with backends.use("reference"), ft.trace() as trace:
        ft.ops.relu(leaf(64))
    assert [c.by for c in trace[0].forward] == ["reference"] and trace[0].forward[0].started == ()


def test_milliseconds_add_up(frozen_step):
    trace, _, _ = frozen_step
    spent = sum(node.forward_ms + (node.backward_ms or 0) for node in trace)
    assert 0 < spent <= trace.elapsed_ms
    assert all(node.forward_ms > 0 for node in trace)


@pytest.mark.slow
def test_an_evaluation_is_traced_too():
    learner = small_learner()
    with ft.trace(learner.model) as trace:
        learner.evaluate()
    assert trace[0].op == "conv2d" and trace[0].layer.endswith("conv1")
    assert not any(node.recorded for node in trace)
    with ft.no_grad(), ft.trace() as trace:
        (leaf(3) * 2.0) * 3.0
    assert trace[0].inputs[0].stop == "under no_grad nothing is recorded"
    assert trace[1].inputs[0].stop == "under no_grad nothing is recorded"
    assert "there was no backward: nothing was recorded" in str(trace)


def test_what_backward_did_not_reach_is_said():
    x = leaf(3)
    with ft.trace() as trace:
        y = x * 2.0
        x * 5.0
        ft.ops.sum(y).backward()
    assert trace[1].backward is None and trace[1].inputs[0].stop == "backward did not come here"
    assert "it did not come to 1 recorded node: 1" in str(trace)


@pytest.mark.slow
def test_a_trace_changes_no_bit():
    traced, alone = small_learner(), small_learner()
    moment = Moment.of(traced, traced.plan(1), 0)
    other = Moment.of(alone, alone.plan(1), 0)
    found = trace_step(moment, open=[1, 16, 40, 50])
    assert found.loss == other.take().loss
    assert everything(traced) == everything(alone)


@pytest.mark.slow
def test_cached_features_are_shown_as_computed_without_recording():
    data = small_data(augment=None)
    learner = small_learner(data, bn="frozen")
    plan = learner.plan(1, freeze_epochs=2)
    trace = trace_step(Moment.of(learner, plan, 0))
    assert not trace["conv1"].recorded and trace["head.linear1"].backward is not None
    other = small_learner(data, bn="frozen")
    for record in other.steps(plan):
        if record.step == 2:  # the last of the first epoch
            break
    later = trace_step(Moment.of(other, plan, 3))
    assert {node.layer.partition(".")[0] for node in later} == {"head", ""}


def test_without_a_trace_there_is_no_trace_of_it():
    plain = backends.of(np.zeros(1))
    with pytest.raises(RuntimeError), ft.trace() as trace:
        assert backends.of(np.zeros(1)) is not plain
        leaf(3) * 2.0
        raise RuntimeError
    assert backends.of(np.zeros(1)) is plain and len(trace) == 1
    leaf(3) * 2.0
    assert len(trace) == 1
    if plain.name == "cpu":
        from tinyft.backends.cpu.runtime.threads import listeners

        assert listeners == []


def test_other_threads_are_not_traced():
    def elsewhere():
        ft.ops.relu(leaf(70_000))

    with ft.trace() as trace:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert len(trace) == 0 and trace.others == []


def test_a_node_that_is_not_there_is_named():
    with ft.trace() as trace:
        leaf(3) * 2.0
    with pytest.raises(IndexError, match="there is no node 5: the trace has nodes 0 to 0"):
        trace[5]
    with pytest.raises(KeyError, match="no op was called in a layer named 'layer9'"):
        trace["layer9"]


def test_an_op_of_the_readers_own(frozen_step):
    @ft.op
    def cube(x):
        """x ** 3."""
        kept = x.data

        # dx = 3 x ** 2
        def backward(dout):
            return (3 * kept * kept * dout,)

        return kept**3, backward

    with ft.trace(open=[0]) as trace:
        ft.ops.sum(cube(leaf(5))).backward()
    node = trace[0]
    assert node.op == "cube" and node.formula == "x ** 3." and node.derivative == "dx = 3 x ** 2"
    assert node.forward == [] and node.backward == []
    assert len(node.entries) == 3 and max(e.difference for e in node.entries) < 1e-6


@pytest.mark.slow
def test_where_the_first_number_that_is_none_came_from(frozen_step):
    learner = small_learner()
    moment = Moment.of(learner, learner.plan(1), 0)
    learner.model.layer2.state_dict()["0.conv1.weight"][0, 0] = np.inf
    with np.errstate(all="ignore"):
        trace = trace_step(Moment.of(learner, moment.plan, 0))
    broken = next(node for node in trace if not node.is_finite)
    assert broken.layer == "layer2.0.conv1"
    said = str(trace)
    assert "the loss of step 0 is nan" in said and np.isnan(trace.loss)
    number = broken.number
    assert f"the first NaN or infinity came out of node {number} (layer2.0.conv1, conv2d)" in said
    assert "there was no backward" in said
    assert all(node.is_finite for node in frozen_step[0])
    assert "infinity" not in str(frozen_step[0])
