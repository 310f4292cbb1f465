"""Runs on disk: complete, interrupted, resumed, damaged."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import tinyft as ft
from tests.finetune.conftest import bits, pictures, small_data, small_learner
from tinyft.backends.cpu.conv.table import switch_winograd
from tinyft.errors import NonFiniteLossError, RunError, TinyftError
from tinyft.finetune.records import Evaluation
from tinyft.finetune.run import folder as finetune_run
from tinyft.finetune.run import resume as resuming
from tinyft.finetune.run.folder import Run
from tinyft.finetune.run.reading import (
    CHECKPOINT,
    checkpoints,
    metrics_lines,
    read_checkpoint,
    read_description,
)
from tinyft.finetune.run.resume import resume
from tinyft.weights import load_weights, read_arrays


class StopAfter:
    """Asks a run to stop after some steps, as Ctrl-C does."""

    def __init__(self, run: Run, step: int):
        self.run, self.step = run, step

    def begin(self, learner, plan):
        pass

    def after_step(self, learner, record):
        self.run.stop_requested = record.step + 1 >= self.step

    def end(self, learner):
        pass


def interrupted(path, step: int, **options):
    """A run of plan(2) that was stopped after `step` of its 9 steps."""
    learner = small_learner(**options)
    run = Run.create(path)
    with pytest.raises(KeyboardInterrupt):
        learner.execute(learner.plan(2), observers=[StopAfter(run, step), run])


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 4, 8])
@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd"}, {"bn": "torch", "head": "linear"}])
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path, step, options):
    whole = small_learner(**options)
    whole.fine_tune(2, out=tmp_path / "whole")
    interrupted(tmp_path / "cut", step, **options)
    learner, plan, run, start, notices = resume(tmp_path / "cut", small_data())
    assert start == step and notices == []
    learner.execute(plan, observers=[run], start=start)
    assert bits(learner) == bits(whole)
    cut, expected = ((tmp_path / name / "metrics.csv").read_text() for name in ("cut", "whole"))
    assert cut == expected


@pytest.mark.slow
def test_steps_after_the_last_checkpoint_are_made_again(tmp_path):
    """As after kill -9: metrics.csv is further than the newest checkpoint."""
    whole = small_learner()
    whole.fine_tune(2, out=tmp_path / "whole")
    interrupted(tmp_path / "cut", 5)
    with (tmp_path / "cut" / "metrics.csv").open("a") as file:
        file.write("5,1,everything,0.1,0.1,1,1,1,0.9,,\n6,1,every")
    learner, plan, run, start, _ = resume(tmp_path / "cut", small_data())
    assert run.seconds_before > 0
    run.seconds_before = 1000.0
    learner.execute(plan, observers=[run], start=start)
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["seconds"] > 1000
    assert bits(learner) == bits(whole)
    lines = (tmp_path / "cut" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [str(i) for i in range(9)]


def test_lines_of_steps_that_are_made_again_are_dropped_and_seconds_go_on(tmp_path):
    interrupted(tmp_path / "cut", 1)
    metrics = tmp_path / "cut" / "metrics.csv"
    before = metrics.read_text()
    metrics.write_text(before + "1,0,head alone,0.1,0.1,1,1,1,0.9,,\n")
    run = resume(tmp_path / "cut", small_data()).run
    assert metrics.read_text() == before
    run.seconds_before = 1000.0
    assert run.seconds > 1000


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    interrupted(tmp_path / "cut", 5)
    newest = sorted((tmp_path / "cut" / "checkpoints").glob("*.h5"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    *_, start, notices = resume(tmp_path / "cut", small_data())
    assert start == 3 and "cannot be read" in notices[0]


@pytest.mark.slow
def test_a_checkpoint_of_another_run_of_the_same_network_is_passed_over(tmp_path):
    for name in ("cut", "other"):
        interrupted(tmp_path / name, 5)
    for path in checkpoints(tmp_path / "other").values():
        shutil.copy(path, tmp_path / "cut" / "checkpoints")
    *_, start, notices = resume(tmp_path / "cut", small_data())
    assert start == 0 and len(notices) == 3
    assert re.match(r"000005.h5 is not of this run \(its run is \w+, this one \w+\)", notices[0])


@pytest.mark.slow
def test_a_checkpoint_of_another_network_or_step_is_passed_over(tmp_path):
    interrupted(tmp_path / "cut", 2)
    kept = checkpoints(tmp_path / "cut")[2]
    shutil.copy(kept, kept.with_name("000003.h5"))
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    identity = read_description(tmp_path / "cut")["id"]
    Run(tmp_path / "other", id=identity).checkpoint(small_learner(head="linear"))
    shutil.copy(tmp_path / "other" / "checkpoints" / "000000.h5", kept.with_name("000000.h5"))
    _, _, run, start, notices = resume(tmp_path / "cut", small_data())
    run.release()
    assert start == 2 and "000003.h5 is not of this run (its state is that of step 2" in notices[0]
    for name in ("000002.h5", "000003.h5"):
        kept.with_name(name).unlink()
    *_, start, notices = resume(tmp_path / "cut", small_data())
    assert start == 0 and "000000.h5 is not of this run (the state is of another" in notices[0]


OTHER_VALUES = ("missing", None, True, -1, 2147483648, 10**400, math.nan, "x", [], {}, [None])


def changed_leaves(whole):
    """(place, `whole` with another value there) for all places, one at a time."""

    def places(value, path=()):
        yield path
        if isinstance(value, list):
            value = dict(enumerate(value))
        for key, inner in value.items() if isinstance(value, dict) else ():
            yield from places(inner, (*path, key))

    for *above, last in [path for path in places(whole) if path]:
        for other in OTHER_VALUES:
            changed = copy.deepcopy(whole)
            inner = functools.reduce(lambda value, key: value[key], above, changed)
            if other == "missing":
                del inner[last]
            else:
                inner[last] = other
            yield (*above, last), changed


@pytest.mark.slow
def test_whatever_a_run_json_holds_ends_in_one_of_our_errors(tmp_path, monkeypatch):
    built = small_learner()
    Run.create(tmp_path / "cut").begin(built, built.plan(2))
    whole = json.loads((tmp_path / "cut" / "run.json").read_text())
    whole |= {"plan_text": "", "classes": [], "versions": {"numpy": "1"}}
    made = resuming.vision_learner
    for place, changed in changed_leaves(whole):
        (tmp_path / "cut" / "run.json").write_text(json.dumps(changed))
        same = changed.get("learner") == whole["learner"]
        monkeypatch.setattr(resuming, "vision_learner", (lambda *_, **__: built) if same else made)
        try:
            resume(tmp_path / "cut", small_data())
        except TinyftError as error:
            assert str(error), place


@pytest.mark.slow
def test_a_checkpoint_whose_state_is_no_state_is_passed_over(tmp_path, monkeypatch):
    interrupted(tmp_path / "cut", 1)
    description, path = read_description(tmp_path / "cut"), checkpoints(tmp_path / "cut")[1]
    arrays, attributes, texts = read_arrays(path, CHECKPOINT)
    whole = json.loads(texts["state"])
    for name in ("optimizer_counts", "phase_digests"):  # many of a kind
        whole[name] = dict(list(whole[name].items())[:2])
    whole["trained"] = whole["trained"][:2]
    refused = 0
    for place, changed in changed_leaves(whole):
        found = arrays, attributes, {"state": json.dumps(changed)}
        monkeypatch.setattr("tinyft.weights.read_arrays", lambda *_, found=found: found)
        try:
            read_checkpoint(path, description)
        except RunError as error:
            assert str(error), place
            refused += 1
    assert refused > 200


@pytest.mark.slow
def test_a_missing_folder_of_checkpoints_is_made_again(tmp_path):
    interrupted(tmp_path / "cut", 2)
    shutil.rmtree(tmp_path / "cut" / "checkpoints")
    learner, plan, run, start, _ = resume(tmp_path / "cut", small_data())
    learner.execute(plan, observers=[run], start=start)
    assert checkpoints(tmp_path / "cut")


@pytest.mark.slow
def test_without_a_checkpoint_a_run_starts_anew(tmp_path):
    interrupted(tmp_path / "cut", 2)
    for path in (tmp_path / "cut" / "checkpoints").glob("*.h5"):
        path.unlink()
    *_, start, notices = resume(tmp_path / "cut", small_data())
    assert start == 0 and notices == ["no checkpoint: the run starts anew"]


@pytest.mark.slow
def test_a_checkpoint_that_is_dropped_takes_no_room_from_those_of_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune_run, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    small_learner().fine_tune(2, out=tmp_path / "one")
    kept = checkpoints(tmp_path / "one")
    assert list(kept) == [3, 6, 9]
    sizes = [path.stat().st_size for path in kept.values()]
    enough, too_little = sum(sizes) + 1000, sum(sizes) - sizes[0] // 2
    for budget, expected in [(enough, [3, 6, 9]), (too_little, [6, 9]), (0, [9])]:
        monkeypatch.setattr(finetune_run, "EPOCH_CHECKPOINT_BYTES", budget)
        small_learner().fine_tune(2, out=tmp_path / str(budget))
        assert list(checkpoints(tmp_path / str(budget))) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "expected"), [("last", [9]), (2, [6, 9]), ("all", [3, 6, 9])])
def test_only_so_many_checkpoints_stay_also_after_an_interruption(tmp_path, keep, expected):
    learner = small_learner()
    plan = learner.plan(2)
    run = Run.create(tmp_path / "run", keep=keep)
    with pytest.raises(KeyboardInterrupt):
        learner.execute(plan, observers=[StopAfter(run, 4), run])
    learner, plan, run, start, _ = resume(tmp_path / "run", small_data())
    learner.execute(plan, observers=[run], start=start)
    assert list(checkpoints(tmp_path / "run")) == expected


@pytest.mark.slow
def test_the_forecast_says_what_a_run_takes_on_disk(tmp_path):
    learner = small_learner()
    plan = learner.plan(2)
    said = learner.forecast(plan).disk_bytes
    learner.execute(plan, out=tmp_path / "run")
    taken = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*.h5"))
    assert abs(said / taken - 1) < 0.1


@pytest.mark.slow
def test_what_others_put_beside_the_checkpoints_is_none(tmp_path):
    interrupted(tmp_path / "cut", 4)
    for name in ("000004 (conflicted copy).h5", "._000004.h5"):
        (tmp_path / "cut" / "checkpoints" / name).write_bytes(b"")
    learner, plan, run, start, notices = resume(tmp_path / "cut", small_data())
    assert start == 4 and notices == []
    learner.execute(plan, observers=[run], start=start)
    assert list(checkpoints(tmp_path / "cut")) == [3, 6, 9]


@pytest.mark.slow
def test_an_empty_metrics_file_is_as_good_as_none(tmp_path):
    interrupted(tmp_path / "cut", 4)
    (tmp_path / "cut" / "metrics.csv").write_text("")
    learner, plan, run, start, notices = resume(tmp_path / "cut", small_data())
    assert notices == ["metrics.csv lacks 4 of the steps before step 4"]
    learner.execute(plan, observers=[run], start=start)
    lines = (tmp_path / "cut" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "4", "5", "6", "7", "8"]


@pytest.mark.slow
def test_lines_that_a_power_failure_took_are_noticed(tmp_path):
    interrupted(tmp_path / "cut", 4)
    path = tmp_path / "cut" / "metrics.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    *_, notices = resume(tmp_path / "cut", small_data())
    assert notices == ["metrics.csv lacks 2 of the steps before step 4"]


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"\xff\x00" * 50, b"no table\n1\n"])
def test_a_metrics_file_that_is_none_is_set_aside(tmp_path, content):
    interrupted(tmp_path / "cut", 2)
    (tmp_path / "cut" / "metrics.csv").write_bytes(content)
    _, _, run, start, notices = resume(tmp_path / "cut", small_data())
    run.release()
    assert start == 2 and "is damaged" in notices[0] and "metrics.damaged.0" in notices[0]
    assert (tmp_path / "cut" / "metrics.damaged.0").read_bytes() == content
    (tmp_path / "cut" / "metrics.csv").write_bytes(content)
    resume(tmp_path / "cut", small_data())[2].release()
    assert (tmp_path / "cut" / "metrics.damaged.1").exists()


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_opened_is_no_reason_to_start_anew(tmp_path, monkeypatch):
    interrupted(tmp_path / "cut", 2)
    newest = checkpoints(tmp_path / "cut")[2]
    newest.unlink()
    newest.mkdir()  # or, for all but root, one that may not be read
    with pytest.raises(OSError, match=r"000002\.h5"):
        resume(tmp_path / "cut", small_data())
    monkeypatch.setattr(os, "listdir", failing(PermissionError(13, "Permission denied")))
    with pytest.raises(PermissionError):
        resume(tmp_path / "cut", small_data())
    assert len(metrics_lines(tmp_path / "cut" / "metrics.csv")) == 3  # nothing was dropped


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.slow
def test_a_run_is_written_by_one_at_a_time(tmp_path):
    """Also where both are calls of one process; whoever ends, however, lets the next one in."""
    refused = []

    class Second:
        def begin(self, learner, plan):
            for attempt in (lambda: resume(tmp_path / "run", small_data()), self.create):
                with pytest.raises(RunError, match="another process is at work") as caught:
                    attempt()
                refused.append(caught)
            raise KeyboardInterrupt

        def create(self):
            shutil.rmtree(tmp_path / "run" / "checkpoints")
            (tmp_path / "run" / "run.json").unlink()
            Run.create(tmp_path / "run")

    learner = small_learner()
    run = Run.create(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        learner.execute(learner.plan(1), observers=[run, Second()])
    assert len(refused) == 2
    learner.fine_tune(1, out=tmp_path / "run")


@pytest.mark.slow
def test_resume_names_what_else_the_bits_depend_on(tmp_path):
    interrupted(tmp_path / "cut", 2)
    description = json.loads((tmp_path / "cut" / "run.json").read_text())
    recorded = description["versions"]
    assert recorded["backend"] == "cpu" and recorded["Winograd"] == "on"
    assert re.fullmatch(r"(4|8|16) floats", recorded["vector width"])
    assert {"tinyft", "numpy", "numba", "llvmlite", "pillow", "python"} <= recorded.keys()
    recorded["vector width"] = "2 floats"
    (tmp_path / "cut" / "run.json").write_text(json.dumps(description))
    with switch_winograd(False):
        *_, notices = resume(tmp_path / "cut", small_data())
    assert len(notices) == 2
    assert re.match(r"vector width was 2 floats and is \d+ floats now: the bits may", notices[0])
    assert notices[1] == "Winograd was on and is off now: the bits may differ"


@pytest.mark.slow
def test_the_reference_backend_depends_on_neither(tmp_path):
    interrupted(tmp_path / "cut", 1, device="reference")
    recorded = json.loads((tmp_path / "cut" / "run.json").read_text())["versions"]
    assert recorded["backend"] == "reference"
    assert not {"Winograd", "vector width"} & recorded.keys()


@pytest.mark.slow
def test_what_cannot_be_resumed_says_why(tmp_path):
    small_learner().fine_tune(0, freeze_epochs=1, out=tmp_path / "done")
    with pytest.raises(RunError, match="is finished"):
        resume(tmp_path / "done", small_data())
    with pytest.raises(RunError, match="there is no run"):
        resume(tmp_path / "nothing")
    interrupted(tmp_path / "cut", 2)
    with pytest.raises(RunError, match=r"arrays in memory.*pass them"):
        resume(tmp_path / "cut")
    with pytest.raises(RunError, match="have changed"):
        resume(tmp_path / "cut", other_data())
    with pytest.raises(RunError, match="differ in batch_size, augment"):
        resume(tmp_path / "cut", small_data(batch_size=4, augment=None))
    whole = json.loads((tmp_path / "cut" / "run.json").read_text())
    without = {name: {key: value for key, value in whole.items() if key != name} for name in whole}
    damaged = [json.dumps(without[name]) for name in ("learner", "versions", "finished")]
    damaged.append(json.dumps(whole | {"data": {}}))
    for text in ("{", "[" * 9999, *damaged):
        (tmp_path / "cut" / "run.json").write_text(text)
        with pytest.raises(RunError, match="damaged"):
            resume(tmp_path / "cut", small_data())
    (tmp_path / "cut" / "run.json").write_text(json.dumps(whole | {"plan": {}}))
    with pytest.raises(RunError, match="a plan of its caller's own"):
        resume(tmp_path / "cut", small_data())


@pytest.mark.slow
def test_pictures_exchanged_for_others_of_their_names_and_sizes_are_noticed(tmp_path):
    images, labels = pictures()
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "pictures" / str(label) / f"{i}.bmp"  # of a size that only pixels decide
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    learner = small_learner(ft.ImageFolder(tmp_path / "pictures", size=24, batch_size=8))
    Run.create(tmp_path / "cut").begin(learner, learner.plan(1))
    resume(tmp_path / "cut")[2].release()
    for path in (tmp_path / "pictures" / "0").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    words = r"have changed since it began \(8 of them: 0/0.bmp, 0/12.bmp, 0/15.bmp, .* 4 more\)"
    with pytest.raises(RunError, match=words):
        resume(tmp_path / "cut")
    (tmp_path / "cut" / "pictures.csv").unlink()
    with pytest.raises(RunError, match=r"which ones is not known: .*pictures\.csv is gone"):
        resume(tmp_path / "cut")


def set_bn(learner):
    learner.bn = "torch"


def set_loss(learner):
    learner.loss = lambda logits, labels: ft.ops.mean(logits)


def set_optimizer(learner):
    learner.optimizer = ft.SGD(learner.groups)


@pytest.mark.slow
@pytest.mark.parametrize("change", [set_bn, set_loss, set_optimizer])
def test_a_learner_that_was_set_otherwise_is_its_callers_own(tmp_path, change):
    learner = small_learner()
    change(learner)
    run = Run.create(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        learner.execute(learner.plan(2), observers=[StopAfter(run, 2), run])
    with pytest.raises(RunError, match="only its caller can make it again"):
        resume(tmp_path / "cut", small_data())


@pytest.mark.slow
def test_weights_that_were_set_by_hand_are_in_the_first_checkpoint(tmp_path):
    learner = small_learner()
    learner.model.conv1.weight.data[:] *= 2
    Run.create(tmp_path / "run").begin(learner, learner.plan(1))
    resumed, *_ = resume(tmp_path / "run", small_data())
    assert bits(resumed) == bits(learner)


@pytest.mark.slow
def test_numbers_of_numpy_can_be_written(tmp_path):
    learner = small_learner(seed=np.int64(3), dtype=np.float32, label_smoothing=np.float32(0.1))
    learner.fine_tune(np.int64(0), base_lr=np.float32(1e-3), moms=np.array([0.9, 0.8, 0.9]),
                      weight_decay=np.float32(0.1), out=tmp_path / "run")  # fmt: skip
    assert ft.load_learner(tmp_path / "run" / "learner.h5").seed == 3


def other_data() -> ft.ImageArrays:
    """The same pictures but one."""
    x, y = pictures()
    x[0] = 0
    valid, classes = (x[:9], y[:9]), ["blue", "green", "red"]
    return ft.ImageArrays((x, y), valid, classes, size=24, batch_size=8)


def test_a_run_never_writes_into_a_folder_that_has_something(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="exists already"):
        small_learner().fine_tune(1, out=tmp_path / "mine")


@pytest.mark.slow
def test_a_folder_in_which_a_run_never_began_is_taken(tmp_path):
    """The disk was full before anything was written."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / "pictures.csv").touch()
    (tmp_path / "run" / ".run.json.1a2b3c4d.part").write_text("{")  # killed before it was renamed
    with pytest.raises(RunError, match=r"no run\.json; start it anew"):
        resume(tmp_path / "run")
    small_learner().fine_tune(1, out=tmp_path / "run")
    with pytest.raises(RunError, match="exists already"):
        small_learner().fine_tune(1, out=tmp_path / "run")


@pytest.mark.slow
def test_a_run_ends_at_a_validation_whose_loss_is_no_number(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tinyft.finetune.loop.evaluate", lambda *_, **__: Evaluation(9, 0.9, float("inf"))
    )
    with pytest.raises(NonFiniteLossError, match="after step 2 has a loss of inf"):
        small_learner().fine_tune(1, out=tmp_path / "run")
    assert not (tmp_path / "run" / "best.h5").exists()


def test_of_epochs_of_one_accuracy_the_first_is_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr("tinyft.finetune.loop.evaluate", lambda *_, **__: Evaluation(9, 0.5, 1.0))
    learner = small_learner(small_data(augment=None), bn="frozen")
    learner.fine_tune(0, freeze_epochs=2, out=tmp_path / "run")
    best = load_weights(tmp_path / "run" / "best.h5")
    assert best.metadata["training"] == "epoch 0 of run"


@pytest.mark.slow
def test_what_a_run_leaves(tmp_path):
    small_learner().fine_tune(2, out=tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    names.remove(".lock")
    files = ["learner.h5", "metrics.csv", "pictures.csv", "run.json"]
    assert names == ["best.h5", "checkpoints", *files]
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["finished"] and described["steps"] == 9
    assert 0 <= described["result"]["valid_accuracy"] <= 1
    checkpoints = sorted(p.stem for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert checkpoints == ["000003", "000006", "000009"]


@pytest.mark.slow
def test_a_run_of_a_learner_that_was_trained_before(tmp_path):
    """Its steps are counted from its own first one, and its weights are in its first checkpoint."""
    whole, cut = small_learner(), small_learner()
    for learner in (whole, cut):
        learner.fine_tune(1, freeze_epochs=0, weight_decay=0.1)
    whole.fine_tune(1, out=tmp_path / "whole")
    run = Run.create(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        cut.execute(cut.plan(1), observers=[StopAfter(run, 3 + 2), run])
    learner, plan, run, start, _ = resume(tmp_path / "cut", small_data())
    assert start == 2 and plan.first_step == 3
    learner.execute(plan, observers=[run], start=start)
    assert bits(learner) == bits(whole)


@pytest.mark.slow
@pytest.mark.parametrize("done", [0, 2])
def test_a_cycle_that_goes_on_with_the_optimizers_memory_is_resumed_with_it(done, tmp_path):
    whole, cut = small_learner(), small_learner()
    for learner in (whole, cut):
        learner.fit_one_cycle(1)
    whole.fit_one_cycle(1)
    run = Run.create(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        cut.execute(cut.one_cycle_plan(1), observers=[StopAfter(run, 3 + 2), run])
    if done == 0:
        (tmp_path / "cut" / "checkpoints" / "000005.h5").unlink()
    learner, plan, run, start, _ = resume(tmp_path / "cut", small_data())
    assert start == done
    learner.execute(plan, observers=[run], start=start)
    assert bits(learner) == bits(whole)


@pytest.mark.slow
def test_channels_that_were_exchanged_by_hand_are_in_the_first_checkpoint(tmp_path):
    whole, cut = small_learner(), small_learner()
    for learner in (whole, cut):  # the sums of the weights stay as they were
        weight = learner.model.conv1.weight.data
        weight[...] = weight[:, ::-1].copy()
    whole.fine_tune(1)
    run = Run.create(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        cut.execute(cut.plan(1), observers=[StopAfter(run, 2), run])
    for path in (tmp_path / "cut" / "checkpoints").glob("00000[1-9].h5"):
        path.unlink()
    learner, plan, run, start, _ = resume(tmp_path / "cut", small_data())
    assert start == 0
    learner.execute(plan, observers=[run], start=start)
    assert bits(learner) == bits(whole)


def test_what_a_file_cannot_hold_is_refused_before_training(tmp_path):
    learner = small_learner()
    learner.batch_norms[0].eps = 0.1
    for keep in (
        lambda: learner.save(tmp_path / "learner.h5"),
        lambda: learner.fine_tune(1, out=tmp_path / "run"),
    ):
        with pytest.raises(ValueError, match=r"bn1 has eps 0.1, and a weights file means 1e-05"):
            keep()
    assert learner.step == 0 and not (tmp_path / "learner.h5").exists()


def changed_rates(learner):
    plan = learner.plan(2)
    plan.phases[1].lr[:] = 1e-4
    return plan


def changed_eps(learner):
    learner.optimizer.eps = 1e-3
    return learner.plan(2)


def changed_momentum(learner):
    learner.batch_norms[0].momentum = 0.5
    return learner.plan(2)


def changed_decay(learner):
    learner.groups[0].undecayed = frozenset()
    return learner.plan(2)


def changed_kind(learner):
    learner.optimizer.has_momentum = False
    return learner.plan(2)


def changed_data(learner):
    learner.data = small_data(augment=None)
    return learner.plan(2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed_rates, "a plan of its caller's own"),
        (changed_eps, "only its caller can make it again"),
        (changed_momentum, "only its caller can make it again"),
        (changed_decay, "only its caller can make it again"),
        (changed_kind, "only its caller can make it again"),
        (changed_data, "only its caller can make it again"),
    ],
)
def test_what_a_caller_has_changed_cannot_be_made_again(tmp_path, change, words):
    """Or else it would be resumed as something else, without a word."""
    learner = small_learner()
    run = Run.create(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        learner.execute(change(learner), observers=[StopAfter(run, 2), run])
    with pytest.raises(RunError, match=words):
        resume(tmp_path / "cut", learner.data)
