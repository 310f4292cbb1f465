"""Fine-tuning, from the beginning: what a network learnt on many pictures helps it on few.

1. Pretraining. A small ResNet learns eight shapes from 3200 drawn pictures, and is written to a
   file, as somebody who publishes a network would do.
2. Fine-tuning. It gets four shapes that it has never seen, ten pictures of each.
3. From scratch. The same network, pictures and number of steps, but from random weights: it
   learns these forty pictures by heart, and nothing about others.

Nothing is downloaded. Source: tinyft/finetune/learner.py.
"""

import tempfile
from pathlib import Path

from shapes import draw

import tinyft as ft
from tinyft.weights import Weights

known = ["circle", "ring", "square", "triangle", "cross", "bar", "frame", "pair"]
new = ["star", "moon", "half", "flower"]


def shapes(names, count, seed, batch_size):
    """Training and validation pictures, 32 x 32 pixels; no augmentation, for speed."""
    train, valid = draw(names, count, seed=seed), draw(names, 50, seed=seed + 1)
    return ft.ImageArrays(train, valid, names, size=32, batch_size=batch_size, augment=None)


def tell(results):
    print("  on new pictures after each epoch:", " ".join(f"{r.accuracy:.2f}" for r in results))


print("1. pretraining on 3200 pictures of 8 shapes")
teacher = ft.vision_learner(shapes(known, 400, 0, 32), "resnet10s", weights=None, head="linear")
print(f"  accuracy: {teacher.fit_one_cycle(3, 3e-3, progress=False)[-1].accuracy:.2f}")

with tempfile.TemporaryDirectory() as folder:
    # The body's arrays under their published names, and how pictures were prepared.
    file = Path(folder) / "shapes.h5"
    state = teacher.model.state_dict()
    body = {name: array for name, array in state.items() if not name.startswith("head.")}
    ft.save_weights(file, Weights("resnet10s", body, None, teacher.adjusted_preprocess()))

    # The last layer is cut off and a random head attached. What follows is the default recipe:
    # an epoch for the head alone, then eight for everything, the early layers 100 times slower.
    print("2. fine-tuning on 40 pictures of 4 other shapes")
    data = shapes(new, 10, 2, 10)
    learner = ft.vision_learner(data, weights=file)

for phase in learner.plan(8).phases:
    rates = ", ".join(f"{rate:.1e}" for rate in phase.lr.max(axis=0))
    print(f"  {phase.name}: {phase.steps} steps, largest rate of each group {rates}")
tell(learner.fine_tune(8, progress=False))

print("3. the same from scratch, all layers at one rate")
scratch = ft.vision_learner(data, "resnet10s", weights=None)
tell(scratch.fit_one_cycle(9, 2e-3, progress=False))

# Both again, and also on the forty that they were trained on: with random weights each picture can
# be told by its noise, and nothing in the loss prefers what is common to all stars.
seen = draw(new, 10, seed=2)
seen = ft.ImageArrays(seen, seen, new, size=32, batch_size=10, augment=None)
print(f"\n{'right on':12} {'the 40 seen':>12} {'200 new':>8}")
for name, one in (("fine-tuned", learner), ("from scratch", scratch)):
    print(f"{name:12} {one.evaluate(seen).accuracy:12.0%} {one.evaluate(data).accuracy:8.0%}")
print(f"{'by guessing':12} {1 / len(new):12.0%} {1 / len(new):8.0%}")
picture = draw(["star"], 1, seed=9)[0][0]
guess = learner.predict(picture)
print(f"a star is taken for a {guess.label}")

# Prints:
#   1. pretraining on 3200 pictures of 8 shapes
#     accuracy: 0.79
#   2. fine-tuning on 40 pictures of 4 other shapes
#     head alone: 4 steps, largest rate of each group 1.7e-04, 1.7e-04, 1.7e-03
#     everything: 32 steps, largest rate of each group 1.0e-05, 1.0e-04, 1.0e-03
#     on new pictures after each epoch: 0.48 0.50 0.55 0.61 0.66 0.70 0.73 0.73 0.74
#   3. the same from scratch, all layers at one rate
#     on new pictures after each epoch: 0.26 0.26 0.24 0.25 0.24 0.21 0.20 0.20 0.20
#
#   right on      the 40 seen  200 new
#   fine-tuned           100%      74%
#   from scratch         100%      20%
#   by guessing           25%      25%
#   a star is taken for a star

# From scratch is chance: with six seeds, 20 to 30 % of new pictures, and all of the forty.

# Three questions, answered by test_fine_tune_questions in tests/examples/test_questions.py:
#   1. Guessing, with 200 pictures: is 20 % less than chance would give?
#   2. Which of the file's arrays has the network before its first step?
#   3. All forty right, and for sure: what do further steps from scratch change?
