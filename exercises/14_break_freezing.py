"""break_freezing: take a line out of a fine-tuning, and say what follows (20 minutes)

Run this file as it is: python break_freezing.py. It trains the head alone for an epoch and then
everything, and writes the first as a run. Take out line [A] alone, run it again, and look with
`tinyft inspect break_freezing_run --step 0`; put it back, and do the same with [B].

    A  a  the convolutions of the frozen body move in the first epoch
       b  nothing of the body moves, as before; only accuracy differs
       c  the convolutions stay to the bit, while scales, shifts and running statistics of the
          body's batch norms move, and backward goes down to the first of them
       d  an error: a frozen body needs frozen batch norms
    B  a  the second epoch trains everything, at lower rates
       b  the second epoch trains the head alone once more, and the plan says so beforehand
       c  an error: the plan gives rates to groups that are frozen
       d  the second epoch trains everything but the batch norms
"""

import shutil

import tinyft as ft
from tinyft.bundled import bundled

ANSWERS = {"A": "?", "B": "?"}  # your letters


def tell_what_moved(before, learner):
    changes = ft.changed(before, learner)
    print(f"{len(changes.moved)} of {len(changes.tensors)} arrays moved, such as", end=" ")
    print(*(change.name for change in changes.moved[:: max(1, len(changes.moved) // 4)]))


def main():
    shutil.rmtree("break_freezing_run", ignore_errors=True)
    data = ft.ImageFolder(bundled("examples/animals8"), size=64, seed=0)
    learner = ft.vision_learner(
        data,
        "resnet10s",
        bn="frozen",  # [A]
    )
    learner.freeze()
    before = ft.snapshot(learner)
    learner.fit_one_cycle(1, 2e-3, out="break_freezing_run")
    tell_what_moved(before, learner)

    learner.unfreeze()  # [B]
    plan = learner.one_cycle_plan(1, slice(1e-5, 1e-3))
    print(plan)
    before = ft.snapshot(learner)
    learner.execute(plan)
    tell_what_moved(before, learner)


if __name__ == "__main__":
    main()


# ------------------------------------------- below: what `tinyft exercises` knows, and you do not

HINTS = [
    "`tinyft inspect` ends by saying where backward stopped, and why. Which layer is the last that "
    "it reached?",
    'Without bn=..., it is "fastai": the first lines of tinyft/finetune/groups.py have a table of '
    "the presets, and docs/glossary.md the terms (`frozen`, `running statistics`).",
    "B: read the plan that is printed, before the second epoch: which groups does it call frozen?",
]


def check(yours):
    yield (
        "A", yours.ANSWERS["A"], "c",
        'the preset "fastai" trains the batch norms of a frozen body, so backward must reach them',
        "`tinyft inspect break_freezing_run --step 0` says where backward stopped, and why",
    )  # fmt: skip
    yield (
        "B", yours.ANSWERS["B"], "b",
        "what is frozen stays so until somebody unfreezes it, whatever rate its group gets",
        "read the plan that is printed, and what moved after it",
    )  # fmt: skip
