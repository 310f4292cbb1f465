"""Who trains, who is frozen, and what "frozen" leaves moving.

A learner divides its network into groups: the first half of the body, the second half, and the
head. A group has a learning rate of its own and can be frozen. Freezing a batch norm has two
meanings, though, and this example measures both. Source: tinyft/finetune/groups.py.
"""

from shapes import draw

import tinyft as ft
from tinyft.finetune.groups import digests

names = ["circle", "square", "star"]
train, valid = draw(names, 16, seed=0), draw(names, 8, seed=1)
data = ft.ImageArrays(train, valid, names, size=32, batch_size=16)

# The plan says what will happen, before it does: two phases, three groups. Frozen, the body still
# trains a little, namely the scales and shifts of its batch norms; that is fastai's default.
# Unfrozen, the pretrained layers are nearly right and take small steps, the random head large
# ones. (This network has no pretrained weights; for what freezing does it makes no difference.)
learner = ft.vision_learner(data, "resnet10s", weights=None)
plan = learner.plan(2)
print(plan)

# A batch norm subtracts each channel's mean and divides by its deviation, then multiplies by a
# scale and adds a shift, both learnt. In training, mean and deviation are the batch's; a running
# average of them is kept for later, when there may be a single picture. No gradient ever moves it:
# it follows the batches, whenever the layer normalises with the batch. A hash of every array,
# before and after one step with a frozen body, shows who moved under each preset.
batch = next(data.train_batches(0, learner.preprocess))
print("\nof the frozen body's 36 parameters and 24 running statistics, one step moves:")
for bn in ("frozen", "torch", "fastai"):
    one = ft.vision_learner(data, "resnet10s", weights=None, bn=bn)
    one.freeze()
    before = digests(one.model)
    one.train_step(batch, "one step")
    after = digests(one.model)
    moved = {n for n in after if before[n] != after[n] and not n.startswith("head")}
    running = sum("running" in name for name in moved)
    print(f"  bn={bn:7} {len(moved) - running:2} parameters, {running:2} running statistics")

# Executing a plan proves each phase in this way. A frozen array that moved is an error.
for record in learner.steps(plan):
    if record.proof:
        print(f"after '{record.phase}': {record.proof}")

# ruff: noqa: E501
# Prints:
#   network: resnet10s, 1,492,128 parameters, float32; body: random weights from seed 0
#   head: fastai, random, 3 classes
#   data: 48 pictures to train on, 24 to validate, batches of 16; augmentation: default
#   input: the middle square at 32 px, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225) (assumed)
#
#   Phase 1: head alone, 1 epoch of 3 steps (steps 0 to 2)
#     the optimizer starts empty
#     group               state   lr start  lr peak   lr end    momentum        parameters that train
#     stem+layer1+layer2  frozen  8.00e-06  1.54e-04  1.54e-04  0.95 0.87 0.87  576 of 77,216
#     layer3+layer4       frozen  8.00e-06  1.54e-04  1.54e-04  0.95 0.87 0.87  2,304 of 1,149,184
#     head                trains  8.00e-05  1.54e-03  1.54e-03  0.95 0.87 0.87  265,728 of 265,728
#     batch norms of stem+layer1+layer2, layer3+layer4, head: by batch statistics, running statistics
#       move; scale and shift train
#
#   Phase 2: everything, 2 epochs of 3 steps (steps 3 to 8)
#     the optimizer starts empty
#     group               state   lr start  lr peak   lr end    momentum        parameters that train
#     stem+layer1+layer2  trains  2.00e-06  9.94e-06  1.33e-06  0.95 0.85 0.94  77,216 of 77,216
#     layer3+layer4       trains  2.00e-05  9.94e-05  1.33e-05  0.95 0.85 0.94  1,149,184 of 1,149,184
#     head                trains  2.00e-04  9.94e-04  1.33e-04  0.95 0.85 0.94  265,728 of 265,728
#     batch norms of stem+layer1+layer2, layer3+layer4, head: by batch statistics, running statistics
#       move; scale and shift train
#
#   weight decay 0.01, times the learning rate; none on batch norms and biases
#
#   of the frozen body's 36 parameters and 24 running statistics, one step moves:
#     bn=frozen   0 parameters,  0 running statistics
#     bn=torch    0 parameters, 24 running statistics
#     bn=fastai  24 parameters, 24 running statistics
#   after 'head alone': 12 tensors bit-identical, 58 moved
#   after 'everything': 0 tensors bit-identical, 70 moved

# Three questions, answered by test_freeze_and_groups_questions in tests/examples/test_questions.py:
#   1. 36 parameters of the frozen body, 24 of batch norms: what are the other 12?
#   2. Without augmentation, under which bn= can the body's features be computed once and kept?
#   3. A group that is not frozen, with a learning rate of 0: what of it moves?
