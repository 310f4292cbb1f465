"""Every learning rate and momentum of fastai's recorded schedules, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from tinyft.finetune.schedule import (
    even_mults,
    fine_tune_phases,
    one_cycle_phase,
    per_group,
    positions,
)

VARIANT = {
    "epochs": 3,
    "base_lr": 4e-3,
    "freeze_epochs": 2,
    "lr_mult": 50,
    "pct_start": 0.4,
    "div": 8.0,
    "moms": (0.9, 0.8, 0.9),
    "div_final": 1e4,
}


@pytest.mark.parametrize(
    ("recorded", "steps_per_epoch", "arguments"),
    [
        ("schedule_default_5_batches", 5, {"epochs": 2}),
        ("schedule_variant_7_batches", 7, VARIANT),
        ("schedule_default_120_batches", 120, {"epochs": 1}),
    ],
)
def test_rates_and_momentum_are_fastais_to_the_last_bit(
    golden, recorded, steps_per_epoch, arguments
):
    arguments = dict(arguments)
    phases = fine_tune_phases(arguments.pop("epochs"), steps_per_epoch, 3, **arguments)
    rows = golden[recorded]
    lr = np.concatenate([phase.lr for phase in phases])
    momentum = np.concatenate([phase.momentum for phase in phases])
    at = [q for phase in phases for q in positions(phase.epochs, phase.steps_per_epoch)]
    assert at == [row["pct"] for row in rows]
    assert lr.tolist() == [row["lr"] for row in rows]
    assert momentum.tolist() == [row["mom"][0] for row in rows]
    frozen = [phase.first_trainable for phase in phases for _ in range(phase.steps)]
    assert frozen == [row["trainable"].index(True) for row in rows]


def test_even_multiples_are_fastais(golden):
    for arguments, expected in golden["even_mults"].items():
        low, high, n = arguments.split(",")
        assert even_mults(float(low), float(high), int(n)) == expected


def test_one_rate_becomes_one_per_group():
    assert per_group(0.1, 3) == [0.1, 0.1, 0.1]
    assert per_group(slice(0.1), 3) == [0.01, 0.01, 0.1]
    assert per_group(slice(0.001, 0.1), 3) == even_mults(0.001, 0.1, 3)
    assert per_group(slice(0.001, 0.1), 1) == [0.1]
    assert per_group([1, 2, 3], 3) == [1.0, 2.0, 3.0]
    assert per_group([1], 2) == [1.0, 1.0]
    with pytest.raises(ValueError, match="each of the 3 groups, got 2"):
        per_group([1, 2], 3)
    with pytest.raises(ValueError, match=r"expected slice\(high\) or slice\(low, high\)"):
        per_group(slice(None), 3)


def test_a_phase_without_epochs_is_left_out():
    assert [phase.name for phase in fine_tune_phases(2, 5, 3, freeze_epochs=0)] == ["everything"]
    assert [phase.name for phase in fine_tune_phases(0, 5, 3)] == ["head alone"]


def test_one_cycle_rises_and_falls_once():
    phase = one_cycle_phase("one", 4, 25, 1.0, 1, first_trainable=0)
    lr = phase.lr[:, 0]
    peak = int(lr.argmax())
    assert peak == 25 and lr[0] == 1 / 25 and lr[peak] == 1.0
    assert (np.diff(lr[: peak + 1]) > 0).all() and (np.diff(lr[peak:]) < 0).all()
