"""A small ResNet on the GPU backend against the CPU backend: everything that training does."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import tinyft as ft
from tests.backends.gpu import standin
from tests.finetune.conftest import pictures
from tinyft import backends
from tinyft.cli.main import main
from tinyft.errors import DeviceError, NonFiniteLossError, RunError
from tinyft.finetune.run.folder import Run
from tinyft.finetune.run.resume import resume
from tinyft.finetune.run.state import capture, restore
from tinyft.inspection.step.moment import Moment
from tinyft.inspection.step.why import explain_step
from tinyft.inspection.trace.recorder import trace_step

pytestmark = pytest.mark.slow


def resnet(device, **options):
    """Half a ResNet-18 at 32 pixels, on pictures of noise."""
    x, y = pictures(16, 3, 32)
    data = ft.ImageArrays((x, y), (x[:5], y[:5]), ["a", "b", "c"], size=32, batch_size=8)
    options = {"weights": None, "seed": 3, "head": "fastai", **options}
    return ft.vision_learner(data, "resnet10s", device=device, **options)


def small_data(**options):
    """Two batches of tiny pictures of noise; five for validation."""
    x, y = pictures(16, 3, 8)
    defaults = {"classes": ["a", "b", "c"], "size": 8, "batch_size": 8}
    return ft.ImageArrays((x, y), (x[:5], y[:5]), **{**defaults, **options})


def small_learner(data=None, **options):
    options = {"weights": None, "seed": 3, **options}
    return ft.vision_learner(data or small_data(), "cifar_resnet20", **options)


def bits(learner):
    state = learner.model.state_dict()
    return {name: backends.host(array).tobytes() for name, array in state.items()}


def first_batch(learner):
    return next(learner.data.train_batches(0, learner.preprocess))


def gradients(learner, batch):
    """Logits, loss and every gradient of one forward and backward, on the host."""
    learner.unfreeze()
    learner.model.train()
    for dropout in learner.dropouts:
        dropout.step = 5
    with backends.use(learner.device):
        logits = learner.model(learner.input(batch.images))
        loss = learner.loss(logits, batch.labels)
        loss.backward()
    found = {n: backends.host(p.grad) for n, p in learner.model.named_parameters()}
    return backends.host(logits.data), loss.item(), found


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def worst_of(found, expected):
    """The largest relative L2 distance: of the logits, the loss, any gradient."""
    (logits, loss, grads), (right_logits, right_loss, right_grads) = found, expected
    worst = max(relative(grads[n], right_grads[n]) for n in right_grads)
    return relative(logits, right_logits), abs(loss / right_loss - 1), worst


def test_logits_loss_and_gradients(gpu):
    here, there = resnet("cpu"), resnet("gpu")
    batch = first_batch(here)
    found = worst_of(gradients(there, batch), gradients(here, batch))
    print("\nfp32: logits {:.1e}, loss {:.1e}, gradients {:.1e}".format(*found))
    assert max(found) < 1e-4


def test_tf32_stays_near(gpu, monkeypatch):
    """How near depends on the network: batch norms of random weights over few pixels amplify
    rounding. test_conv2d.py shows that nothing but the factors is rounded.
    """
    monkeypatch.setattr(gpu, "precision", "tf32")
    here, there = resnet("cpu"), resnet("gpu")
    batch = first_batch(here)
    logits, loss, grads = worst_of(gradients(there, batch), gradients(here, batch))
    print(f"\ntf32: logits {logits:.1e}, loss {loss:.1e}, gradients {grads:.1e}")
    assert 1e-5 < logits < 3e-2 and loss < 1e-2 and 1e-4 < grads < 0.3


def test_the_losses_of_fine_tuning_are_the_cpus(gpu):
    here, there = small_learner(device="cpu"), small_learner(device="gpu")
    results = here.fine_tune(2), there.fine_tune(2)
    losses = [[record.loss for record in learner.history] for learner in (here, there)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    deviation = max(abs(a / b - 1) for a, b in zip(*losses, strict=True))
    print(f"\nlosses of {len(losses[0])} steps: {deviation:.1e}")
    assert [r.accuracy for r in results[0]] == [r.accuracy for r in results[1]]
    smooth = [[record.smooth_loss for record in learner.history] for learner in (here, there)]
    assert smooth[1] == pytest.approx(smooth[0], rel=1e-2)
    x, _ = pictures(6, 3, 8)
    expected = here.predict([x[0], x[5]])
    for found, wanted in zip(there.predict([x[0], x[5]]), expected, strict=True):
        assert found.label == wanted.label
        np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-2)


def test_two_runs_give_the_same_bits(gpu):
    learners = [small_learner(device="gpu") for _ in range(2)]
    for learner in learners:
        learner.fine_tune(1)
    assert bits(learners[0]) == bits(learners[1])


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_a_step_waits_for_nothing(gpu, optimizer):
    learner = small_learner(device="gpu", optimizer=optimizer)
    learner.unfreeze()
    batches = gpu.uploads(learner.data.train_batches(0, learner.preprocess))
    learner.train_step(next(batches), "by hand")  # step 0 reads its loss, and compiles
    standin.waits.clear()
    standin.launches.clear()
    record = learner.train_step(next(batches), "by hand")
    assert not standin.waits
    assert standin.launches.count("adam") + standin.launches.count("sgd") == 1
    assert not record.is_fetched
    assert record.loss > 0 and record.is_fetched  # now somebody reads it
    assert sum(standin.waits.values()) == 1


def test_nothing_is_computed_below_the_frozen_boundary(gpu):
    learner = resnet("gpu", bn="torch")
    learner.freeze_to(2)
    batch = first_batch(learner)
    learner.train_step(batch, "by hand")
    for frozen in (2, 1, 0):
        learner.freeze_to(frozen)
        standin.launches.clear()
        learner.train_step(batch, "by hand")
        passes = standin.launches.count("weight_grad") + standin.launches.count("turn")
        norms = standin.launches.count("batch_norm_gradient")
        in_head = 2  # its batch norms
        print(f"\n{frozen} groups frozen: {passes} convolution gradients, {norms} batch norms'")
        assert norms - in_head == {2: 0, 1: 6, 0: 12}[frozen]
        assert (passes > 0) == (frozen < 2)


@pytest.mark.parametrize("bn", ["fastai", "torch", "frozen"])
def test_frozen_bits_stay(gpu, bn):
    learner = small_learner(device="gpu", bn=bn)
    before = bits(learner)
    learner.fine_tune(0, freeze_epochs=1)  # proves it itself; and once more:
    after = bits(learner)
    moved = {name for name in before if before[name] != after[name]}
    body = {name for name in moved if not name.startswith("head.")}
    norms = {n for n in body if ".bn" in n or n.startswith("bn") or "downsample" in n}
    assert moved and body == norms
    if bn == "torch":
        assert all("running" in name for name in body)
    if bn == "frozen":
        assert not body


def test_moving_there_and_back_is_exact(gpu):
    learner = small_learner(device="cpu")
    learner.fine_tune(1)
    before, saved = bits(learner), capture(learner)
    grad = learner.groups[0].parameters["conv1.weight"]
    grad.grad = backends.get("cpu").zeros_like(grad.data)
    assert learner.to("gpu") is learner and learner.to("gpu").device == "gpu:0"
    assert learner.model.conv1.weight.data.strides == grad.data.strides
    assert backends.device_of(grad.grad) == "gpu:0"
    state = learner.optimizer.state["conv1.weight"]
    assert backends.device_of(state["average"]) == "gpu:0"
    arrays, values = capture(learner)
    assert values == saved[1]
    assert all(np.array_equal(arrays[name], saved[0][name]) for name in saved[0])
    learner.to("cpu")
    assert bits(learner) == before
    assert type(learner.model.conv1.weight.data) is np.ndarray
    restore(learner.to("gpu"), *saved)
    assert bits(learner) == before


def test_training_goes_on_on_another_device(gpu):
    stays, moves = small_learner(device="cpu"), small_learner(device="cpu")
    for learner, devices in ((stays, ["cpu"] * 6), (moves, ["cpu", "gpu", "gpu"] * 2)):
        plan = learner.plan(2)
        for record, device in zip(learner.steps(plan), devices, strict=True):
            learner.to(device)
            assert record.loss > 0
    losses = [[record.loss for record in learner.history] for learner in (stays, moves)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert moves.history[-1].proof is not None


def test_a_run_may_change_the_device(gpu, tmp_path):
    """Interrupted on one, resumed on the other: files do not know where they came from."""

    class StopAfter:
        def __init__(self, run):
            self.run = run

        def begin(self, learner, plan):
            pass

        def after_step(self, learner, record):
            self.run.stop_requested = record.step >= 2

        def end(self, learner):
            pass

    learner = small_learner(device="gpu")
    run = Run.create(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        learner.execute(learner.plan(2), observers=[StopAfter(run), run])
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 and all(",nan," not in row for row in rows)
    again, plan, run, start, notices = resume(tmp_path / "run", small_data(), device="cpu")
    assert start == 3 and again.device == "cpu"
    assert any("backend was gpu:0" in notice and "bits may differ" in notice for notice in notices)
    assert bits(again) == bits(learner)
    again.execute(plan, observers=[run], start=start)
    whole = small_learner(device="gpu")
    whole.fine_tune(2)
    losses = [[r.loss for r in whole.history[3:]], [r.loss for r in again.history]]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    again.to("gpu").save(tmp_path / "there.h5")
    again.to("cpu").save(tmp_path / "here.h5")
    loaded = [ft.load_learner(tmp_path / f"{n}.h5", device="cpu") for n in ("there", "here")]
    assert bits(loaded[0]) == bits(loaded[1]) == bits(again)


def test_kept_features_move_too(gpu):
    learner = small_learner(small_data(augment=None), bn="frozen", device="gpu")
    plan = learner.plan(0, freeze_epochs=3)
    losses = []
    for record in learner.steps(plan):
        losses.append(record.loss)
        if record.step == 2:
            learner.to("cpu")
        where = {backends.device_of(a) for a in learner.cache.kept.values()}
        assert where == {"cpu" if record.step >= 2 else "gpu:0"}
    other = small_learner(small_data(augment=None), bn="frozen", device="cpu")
    assert [r.loss for r in other.steps(plan)] == pytest.approx(losses, rel=1e-3)


def test_a_loss_that_is_no_number_is_seen_when_losses_are_read(gpu):
    learner = small_learner(device="gpu")
    learner.unfreeze()
    batch = first_batch(learner)
    learner.train_step(batch, "by hand")
    before = bits(learner)
    learner.model.head.linear2.weight.data[...] = float("nan")
    learner.train_step(batch, "by hand")  # nobody has looked yet
    with pytest.raises(NonFiniteLossError, match=r"step 1 is nan.*seen before step 2: the weights"):
        learner.read_losses()
    assert bits(learner) != before
    learner.step = gpu.steps_between_reads  # a step that looks is taken back
    saved = [norm.running_mean for norm in learner.batch_norms]
    with pytest.raises(NonFiniteLossError, match=r"step 50 is nan.*spoilt by an earlier step"):
        learner.train_step(batch, "by hand")
    assert all(a is norm.running_mean for a, norm in zip(saved, learner.batch_norms, strict=True))
    learner.step = 51
    learner.train_step(batch, "by hand")
    with pytest.raises(NonFiniteLossError):  # no checkpoint of spoilt weights
        capture(learner)


def test_rates_are_found_and_everything_is_put_back(gpu):
    learner, other = small_learner(device="gpu"), small_learner(device="cpu")
    before = bits(learner)
    found, expected = (x.lr_find(num_it=10, stop_div=False) for x in (learner, other))
    assert bits(learner) == before
    np.testing.assert_allclose(found.losses[:6], expected.losses[:6], rtol=1e-2)
    assert learner.forecast(learner.plan(1)).peak_bytes > 0
    assert bits(learner) == before


def test_shortcuts_without_weights_move(gpu):
    """The CIFAR networks' shortcut is a constant that no file holds."""
    model = ft.cifar_resnet20(seed=1)
    selection = getattr(model.layer2, "0").downsample
    assert list(model.to("gpu").state_dict()) == list(model.to("cpu").state_dict())
    assert backends.device_of(selection.selection) == "cpu"
    model.to("gpu")
    assert backends.device_of(selection.selection) == "gpu:0"


def test_tensors_on_two_devices_are_refused_by_name(gpu):
    x, weight = ft.Tensor(np.ones((1, 4, 4, 8))), ft.Tensor(np.ones((8, 8, 3, 3)))
    message = r"conv2d: x is on gpu:0, weight is on cpu; move one of them with \.to\(\)"
    with pytest.raises(DeviceError, match=message):
        ft.ops.conv2d(x.to("gpu"), weight)
    with pytest.raises(DeviceError, match="add: a is on cpu, b is on gpu:0"):
        _ = x + x.to("gpu")
    with pytest.raises(DeviceError, match=r"concatenate: tensors\[0\] .* tensors\[2\] is on gpu:0"):
        ft.ops.concatenate(x, x, x.to("gpu"))
    with pytest.raises(DeviceError, match="batch_norm_eval: expected arrays on gpu:0, got one"):
        bn = ft.nn.BatchNorm(8).eval()
        ones, x = (ft.Tensor(np.ones(s, np.float32)).to("gpu") for s in (8, (1, 4, 4, 8)))
        ft.ops.batch_norm_eval(x, ones, ones, bn.running_mean, bn.running_var)


def test_numbers_and_arrays_join_a_tensor_where_it_is(gpu):
    x = ft.Tensor(np.array([1.0, 2.0]), requires_grad=True)
    there = x.to("gpu")
    out = (2 * there + np.array([1.0, 1.0])) / 4
    assert backends.device_of(out.data) == "gpu:0" and out.dtype == np.float64
    (out * out).backward(backends.place(np.ones(2), "gpu"))
    np.testing.assert_allclose(x.grad, [0.75, 1.25])  # out / 2 * 2 / 4 * 2, back on the host


def test_a_number_on_the_device_can_be_copied(gpu):
    number = gpu.upload(np.float32(3)).reshape(())
    assert ft.Tensor(number).data is not number
    assert ft.Tensor(number).item() == 3


@pytest.mark.usefixtures("compiled")
def test_the_commands_of_a_run(gpu, tmp_path, monkeypatch, capsys):
    """finetune and predict with --backend gpu, as they are typed."""
    monkeypatch.chdir(tmp_path)
    for name, colour in {"blue": (0, 0, 200), "red": (200, 0, 0)}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            picture = Image.new("RGB", (10, 9), tuple(c + i for c in colour))
            picture.save(tmp_path / "photos" / name / f"{i}.png")
    options = ["--arch", "cifar_resnet20", "--weights", "none", "--size", "8", "--epochs", "1"]
    options += ["--batch-size", "4", "--backend", "gpu", "--out", "run"]
    assert main(["finetune", "photos", *options]) == 0
    assert "backend: gpu:0 (stand-in, CuPy 14.2.0, convolutions in fp32)" in capsys.readouterr().err
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + 2
    labels = []
    for backend in ("gpu", "cpu"):
        assert main(["predict", "run", "photos/red/0.png", "--backend", backend]) == 0
        labels.append(capsys.readouterr().out.split()[2])
    assert labels[0] == labels[1]
    assert main(["diff", "run", "--json"]) == 0
    compared = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "head" in str(compared)
    assert main(["report", "run"]) == 0
    assert "Not shown" not in (tmp_path / "run" / "report.html").read_text()
    capsys.readouterr()
    assert main(["doctor"]) == 0
    assert "backend: gpu:0 (stand-in, CuPy 14.2.0, convolutions in fp32): works" in (
        capsys.readouterr().out
    )


def test_the_device_is_chosen_and_described(gpu, monkeypatch):
    assert small_learner(device="auto").device == "gpu:0"
    assert backends.gpu_available() and backends.gpu_info() == gpu.description()
    assert gpu.description() == "gpu:0 (stand-in, CuPy 14.2.0, convolutions in fp32)"
    with backends.use("reference"):
        assert small_learner(device="auto").device == "auto"
    with pytest.raises(DeviceError, match=r"gpu:3 does not exist; this machine has gpu:0"):
        small_learner().to("gpu:3")


def test_a_damaged_state_is_refused_on_a_device_too(gpu):
    learner = small_learner(device="gpu")
    arrays, values = capture(learner)
    del arrays["model.conv1.weight"]
    with pytest.raises(RunError, match="another network"):
        restore(learner, arrays, values)


def test_the_ledger_sees_the_same(gpu):
    books = []
    for device in ("cpu", "gpu"):
        ledger = ft.Ledger()
        small_learner(device=device).fine_tune(1, observers=[ledger])
        books.append(ledger.reading.steps)
    for column in ("loss", "update_norm", "weight_norm", "gradient_norm", "cosine"):
        np.testing.assert_allclose(books[1][column], books[0][column], rtol=2e-2, atol=1e-6)
    np.testing.assert_array_equal(books[1]["updated"], books[0]["updated"])


def test_a_trace_sees_the_same(gpu):
    tables = []
    for device in ("cpu", "gpu"):
        learner = small_learner(device=device)
        learner.unfreeze()
        batch = first_batch(learner)
        with backends.use(learner.device), ft.trace(learner.model) as trace:
            loss = learner.loss(learner.model(learner.input(batch.images)), batch.labels)
            loss.backward()
        tables.append([(node.op, node.layer, node.shape) for node in trace.nodes])
        assert "conv2d" in str(trace)
    assert tables[0] == tables[1] and len(tables[0]) > 40


def test_a_step_under_the_microscope(gpu):
    """One convolution opened down to single gradients, and why the step changed the loss."""
    learner = small_learner(device="gpu", head="linear")
    learner.unfreeze()
    moment = Moment.of(learner, learner.plan(1, freeze_epochs=0), 0)
    text = str(trace_step(moment, open=[2]))
    assert "gpu:0" in text and "running_average" in text
    moment.restore()
    assert "before and after" in str(explain_step(moment))
