"""Before and after: distances with known answers, runs phase by phase, files of any format."""

import dataclasses
import json
import math
import os
import re
import shutil

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import pictures, small_data, small_learner
from tests.finetune.test_learner import small_learner_of_photos
from tests.inspection.moments import AfterStep
from tinyft.errors import RunError, WeightsError
from tinyft.finetune.run.folder import CHECKPOINT, Run
from tinyft.inspection.comparison import snapshots
from tinyft.inspection.comparison.diff import Move, compare, diff_run, moved_most
from tinyft.inspection.comparison.result import as_page, bar_length, bar_range
from tinyft.weights import Preprocess, Weights, export_safetensors, save_weights, write_arrays


def diff(before, after, data=None):
    return compare([snapshots.of_source(before), snapshots.of_source(after)], data)


def layers_of(found):
    return {layer.name: layer for layer in found.layers}


@pytest.fixture
def published(tmp_path):
    """Writes a network with a classifier, changed by `change(arrays)`, and gives its path."""

    def write(name, arch="cifar_resnet20", classes=2, change=lambda arrays: None):
        arrays = ft.nn.build(arch, classes, seed=1).state_dict()
        arrays = {n: np.ascontiguousarray(a) for n, a in arrays.items()}
        change(arrays)
        path = tmp_path / name
        save_weights(path, Weights(arch, arrays, None, Preprocess.for_architecture(arch)))
        return path

    return write


# ------------------------------------------------------------------------------------------ numbers


def test_distance_and_cosine_of_vectors_that_one_can_draw():
    before, after = np.array([3.0, 0.0]), np.array([3.0, 4.0])
    move = Move.between([(before, after)])
    assert move.distance == pytest.approx(4 / 3) and move.cosine == pytest.approx(3 / 5)
    # two tensors are one longer vector
    both = Move.between([(before[:1], after[:1]), (before[1:], after[1:])])
    assert both.distance == pytest.approx(move.distance)
    assert both.cosine == pytest.approx(move.cosine)


def test_identical_means_every_bit():
    zero = np.zeros(2, np.float32)
    assert Move.between([(zero, zero.copy())]).identical
    moved = Move.between([(zero, -zero)])  # -0.0 == 0.0, but some program wrote it
    assert not moved.identical and moved.distance == 0.0
    assert Move.between([(zero, zero + 1)]).distance == math.inf


def test_of_numbers_that_diverged_nothing_is_known():
    move = Move.between([(np.ones(2), np.array([np.inf, 1.0]))])
    assert math.isnan(move.cosine) and not move.identical


def test_the_filters_that_moved_most_are_named_in_order():
    before = np.ones((4, 2, 1, 1))
    after = before.copy()
    after[2] *= 1.5
    after[0] *= 0.9
    assert moved_most(before, after) == [(2, pytest.approx(0.5)), (0, pytest.approx(0.1))]


def test_bars_are_logarithmic_between_powers_of_ten():
    low, high = bar_range([2e-4, 0.03, 0.0, math.inf])
    assert (low, high) == (1e-4, 0.1)
    assert [bar_length(d, low, high, 30) for d in (0, 1e-4, 1e-3, 0.1, math.inf, math.nan)] == [
        0, 1, 10, 30, 30, 0
    ]  # fmt: skip
    assert bar_range([0.0]) == (1.0, 10.0)


# -------------------------------------------------------------------------------------------- files


def test_of_two_files_only_the_filter_that_was_changed_differs(published):
    def change(arrays):
        arrays["layer2.1.conv2.weight"][7] *= 1.25
        arrays["bn1.running_mean"] += 1

    found = diff(published("a.h5"), published("b.h5", change=change))
    layers = layers_of(found)
    assert layers["layer2.1.conv2"].filters == [[(7, pytest.approx(0.25))]]
    assert layers["bn1"].moves[0].identical and not layers["bn1"].statistics[0].identical
    moved = [n for n, layer in layers.items() if not all(m.identical for m in layer.moves)]
    assert moved == ["layer2.1.conv2"]
    assert found.spans == ["change"] and found.unmatched == [] and found.similarity == {}
    # relative to all weights of the stage, one filter is little
    assert 0 < found.stages["layer2"][0].distance < 0.25
    assert found.stages["stem"][0].identical  # statistics are no weights


@pytest.mark.slow
def test_a_large_scale_of_a_batch_norm_does_not_hide_its_stage(published):
    def heavy(arrays):
        arrays["layer3.2.bn2.weight"] *= 1000

    def change(arrays):
        heavy(arrays)
        for name, array in arrays.items():
            if name.startswith("layer3") and array.ndim == 4:
                array *= 1.5

    found = diff(published("a.h5", change=heavy), published("b.h5", change=change))
    assert found.stages["layer3"][0].distance == pytest.approx(0.5)


@pytest.mark.slow
def test_a_published_classifier_is_compared_with_a_trained_linear_head(published, tmp_path):
    path = published("a.h5", classes=3)
    learner = ft.vision_learner(small_data(), weights=path, head="linear")
    learner.save(tmp_path / "learner.h5")
    found = diff(path, tmp_path / "learner.h5", small_data(size=12))
    assert not layers_of(found)["head.linear"].moves[0].identical
    assert found.similarity["layer3.2"] == [pytest.approx(1)] and found.similarity["head"][0] < 0.99


@pytest.mark.slow
def test_formats_do_not_matter(published, tmp_path):
    path = published("a.h5")
    export_safetensors(ft.load_weights(path), tmp_path / "a.safetensors")
    found = diff(path, tmp_path / "a.safetensors")
    assert all(move.identical for layer in found.layers for move in layer.moves)
    assert "\nidentical: what both have is the same, bit for bit" in str(found)
    assert "logarithmic" not in str(found)
    nothing_compared = dataclasses.replace(found, layers=[])
    assert "identical: what both have" not in str(nothing_compared)


@pytest.mark.slow
def test_heads_of_other_shapes_are_listed_and_left_out(published):
    found = diff(published("a.h5"), published("b.h5", classes=5), small_data(size=12))
    assert found.unmatched == ["head.linear.weight", "head.linear.bias"]
    assert "head.linear" not in layers_of(found) and "head" in found.similarity
    assert "not compared (on one side only, or of another shape): head.linear.weight" in str(found)


@pytest.mark.slow
def test_other_architectures_are_refused(published):
    with pytest.raises(
        WeightsError, match=r"is a cifar_resnet20 and .* a resnet10s; only networks"
    ):
        diff(published("a.h5"), published("b.h5", arch="resnet10s"))


# --------------------------------------------------------------------------------------------- runs


@pytest.mark.slow
def test_a_run_is_compared_from_its_start_through_each_phase(run_folder, data):
    found = diff_run(run_folder, data)
    assert found.titles == ["before", "after head alone", "after everything"]
    assert found.spans == ["head alone", "everything", "in all"]
    convolution = layers_of(found)["layer1.0.conv1"]
    assert [move.identical for move in convolution.moves] == [True, False, False]
    assert convolution.moves[1] == convolution.moves[2]  # it stood still before
    assert convolution.filters[0] == []
    assert convolution.filters[1] == convolution.filters[2] != []
    first, *_, last = snapshots.of_run(run_folder)[0]
    head = found.stages["head"]
    assert head[2] == compare([first, last]).stages["head"][0] != head[1]
    assert not layers_of(found)["layer1.0.bn1"].statistics[0].identical  # bn="fastai"
    assert set(found.similarity) == {
        "stem", *(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)), "head"
    }  # fmt: skip
    assert found.pictures == 24


@pytest.mark.slow
def test_the_start_is_made_again_to_the_bit_and_the_end_is_the_learners(run_folder):
    first, *_, last = snapshots.of_run(run_folder)[0]
    for name, array in small_learner().model.state_dict().items():
        assert first.arrays[name].tobytes() == np.ascontiguousarray(array).tobytes(), name
    saved = snapshots.of_source(run_folder / "learner.h5")
    for name, array in saved.arrays.items():
        assert last.arrays[name].tobytes() == array.tobytes(), name


@pytest.mark.slow
def test_later_layers_go_further_where_their_rates_are_higher(run_folder):
    stages = diff_run(run_folder).stages
    assert [moves[0].identical for moves in stages.values()] == [True] * 4 + [False]
    everything = {name: moves[1].distance for name, moves in stages.items()}
    assert everything["stem"] < everything["layer3"] < everything["head"]


@pytest.mark.slow
def test_a_run_and_a_checkpoint_stand_for_networks(run_folder):
    checkpoint = run_folder / "checkpoints" / "000003.h5"
    found = diff(checkpoint, run_folder)
    assert found.titles == [str(checkpoint), str(run_folder)]
    whole = diff_run(run_folder)
    assert found.stages["layer3"] == [whole.stages["layer3"][1]]


@pytest.mark.slow
def test_a_phase_whose_checkpoint_is_gone_is_left_out_with_a_notice(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "000003.h5").unlink()
    found = diff_run(tmp_path / "run")
    assert found.titles == ["before", "after everything"] and found.spans == ["change"]
    assert "note: the checkpoint at the end of head alone is gone" in str(found)


@pytest.mark.slow
def test_a_run_that_was_cut_off_ends_with_its_newest_checkpoint(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "000009.h5").unlink()
    found = diff_run(tmp_path / "run")
    assert found.titles[-1] == "after everything so far, to step 5"
    assert found.spans == ["head alone", "everything so far, to step 5", "in all"]
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(RunError, match="no checkpoint after its start"):
        diff_run(tmp_path / "run")


@pytest.mark.slow
def test_half_a_phase_is_not_called_whole(tmp_path):
    """Ctrl-C after step 5 of 9: there is a checkpoint at just that step."""
    learner, run = small_learner(), Run.create(tmp_path / "run")

    def stop(learner, record):
        run.stop_requested = record.step == 4

    with pytest.raises(KeyboardInterrupt):
        learner.execute(learner.plan(2), observers=[AfterStep(stop), run])
    titles = diff_run(tmp_path / "run").titles
    assert titles == ["before", "after head alone", "after everything so far, to step 4"]
    (tmp_path / "run" / "checkpoints" / "000003.h5").unlink()
    assert diff_run(tmp_path / "run").titles == ["before", "after everything so far, to step 4"]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_left_out(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    *_, last = sorted((tmp_path / "run" / "checkpoints").glob("*.h5"))
    os.truncate(last, last.stat().st_size // 2)
    found, notices = snapshots.of_run(tmp_path / "run")
    assert found[-1].title == "after everything so far, to step 5"
    assert notices == [f"{last.name} cannot be read, so it is left out"]


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["default", "crop"])
def test_a_run_is_compared_on_pictures_as_it_was_judged(augment, tmp_path):
    learner = small_learner_of_photos(augment)
    learner.fine_tune(1, freeze_epochs=0, out=tmp_path / "run")
    sources = (*snapshots.of_run(tmp_path / "run")[0], snapshots.of_source(tmp_path / "run"),
               snapshots.of_source(tmp_path / "run" / "learner.h5"))  # fmt: skip
    for found in sources:
        assert found.preprocess == learner.adjusted_preprocess()


@pytest.mark.slow
def test_too_few_pictures_cost_only_the_similarity(run_folder):
    x, y = pictures(3)
    few = ft.ImageArrays((x, y), (x, y), classes=["blue", "green", "red"], size=24, batch_size=2)
    found = diff_run(run_folder, few)
    assert found.similarity == {} and found.stages
    assert "note: 3 pictures are too few to compare features" in str(found)


@pytest.mark.slow
def test_a_learner_that_was_trained_before_is_compared_from_there(tmp_path):
    learner = small_learner()
    learner.fine_tune(0, freeze_epochs=1)
    start = snapshots.of_learner(learner, "before")
    learner.fine_tune(1, freeze_epochs=0, out=tmp_path / "run")
    found, notices = snapshots.of_run(tmp_path / "run")
    assert [snapshot.title for snapshot in found] == ["before", "after everything"]
    assert notices == [] and found[0].preprocess == start.preprocess
    for name, array in start.arrays.items():
        np.testing.assert_array_equal(found[0].arrays[name], array)
    (tmp_path / "run" / "checkpoints" / "000006.h5").unlink()
    with pytest.raises(RunError, match="no checkpoint after its start"):
        snapshots.of_run(tmp_path / "run")


@pytest.mark.slow
def test_a_learner_whose_weights_were_set_is_compared_from_there(tmp_path):
    learner = small_learner()
    for _, parameter in learner.model.named_parameters():
        parameter.data *= np.float32(1.01)
    learner.fine_tune(1, out=tmp_path / "run")
    moves = layers_of(diff_run(tmp_path / "run"))["conv1"].moves
    assert moves[0].identical and not moves[1].identical


@pytest.mark.slow
def test_a_checkpoint_knows_how_pictures_are_prepared(run_folder, learner):
    """At the run's 24 pixels, not at the architecture's 32."""
    found = snapshots.of_source(run_folder / "checkpoints" / "000003.h5")
    assert found.preprocess == learner.adjusted_preprocess()
    assert found.preprocess.crop == 24


@pytest.mark.parametrize("texts", [{}, {"state": "[]"}, {"state": "[" * 9999}])
def test_a_checkpoint_whose_state_is_something_else_is_refused(texts, tmp_path):
    write_arrays(tmp_path / "a.h5", CHECKPOINT, {"model.conv1.weight": np.ones(1)}, None, texts)
    with pytest.raises(WeightsError, match=r"a\.h5: the file is damaged"):
        snapshots.of_source(tmp_path / "a.h5")


@pytest.mark.slow
def test_a_start_that_cannot_be_made_again_says_what_to_do(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    description = json.loads(path.read_text())
    for change, message in [
        ({"learner": None}, "cannot make again"),
        ({"first_step": 2}, "cannot make again"),  # no checkpoint was kept there
        ({"weights_sha256": "0" * 64}, "have changed since"),
    ]:
        path.write_text(json.dumps(description | change))
        with pytest.raises(RunError, match=message + ".*tinyft diff BEFORE.h5"):
            diff_run(tmp_path / "run")


@pytest.mark.slow
def test_a_head_of_the_callers_own_is_compared_but_not_run(data):
    class Own(ft.nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = ft.nn.Linear(64, 3)

    learner = small_learner(head=Own())
    before = snapshots.of_learner(learner, "before")
    learner.model.state_dict()["head.scores.weight"][...] = 1
    found = compare([before, snapshots.of_learner(learner, "after")], data)
    assert not layers_of(found)["head.scores"].moves[0].identical
    assert "head" not in found.similarity and found.similarity["stem"] == [pytest.approx(1)]


def test_one_network_is_no_comparison(learner):
    with pytest.raises(ValueError, match="needs two networks; got 1"):
        compare([snapshots.of_learner(learner, "only")])


# ------------------------------------------------------------------------------------------- output


@pytest.mark.slow
def test_the_text_and_the_page_say_the_same(run_folder, data):
    found = diff_run(run_folder, data)
    text, html = str(found), as_page(found)
    assert text.startswith("cifar_resnet20: before -> after head alone -> after everything\n")
    bars = {line.split()[0]: line.count("#") for line in text.splitlines() if line.endswith("#")}
    assert list(bars) == ["stem", "layer1", "layer2", "layer3", "head"]
    assert bars["stem"] < bars["layer3"] < bars["head"]
    assert max(map(len, text.splitlines())) <= 100
    conv1 = next(line for line in text.splitlines() if line.startswith("conv1 "))
    assert conv1.split()[1] == "identical"
    # both phases and the whole: how far, and how far it turned
    layers = layers_of(found)
    for name in ("conv1", "layer3.2.conv2", "head.linear2"):
        line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
        row = html[html.index(f">{name}</td>") :].partition("</tr>")[0]
        moves = [m for m in layers[name].moves if not m.identical]
        cosines = [f"{1 - m.cosine:.0e}" for m in moves]
        pairs = [f"{m.distance:.1e} {c}" for m, c in zip(moves, cosines, strict=True)]
        assert "  ".join(pairs) in line
        assert [cell for cell in re.findall(r">([^<>]*)</td>", row) if cell in cosines] == cosines
    assert len({f"{1 - m.cosine:.0e}" for m in layers["head.linear2"].moves}) > 1
    assert html.count("1 - cosine</th>") == 3
    assert html.count("<img") == 3 and "http" not in html.replace("http-equiv", "")
    for layer in found.layers:
        assert f">{layer.name}<" in html
