"""Look inside: every question about a run, answered by hand in a few lines.

`for record in learner.steps(plan)` hands over after each step, so whatever you want to know can be
measured between two of them. tinyft/inspection/ does the same more thoroughly; each part names its
file and its command. Source: tinyft/finetune/learner.py.
"""

import numpy as np

import tinyft as ft
from tinyft.bundled import bundled
from tinyft.finetune.run.state import capture, restore

data = ft.ImageFolder(bundled("examples/animals8"), size=64, seed=0)
learner = ft.vision_learner(data, "resnet10s")
plan = learner.plan(2)


def weights():
    return {name: array.copy() for name, array in learner.model.state_dict().items()}


def length(arrays):
    return np.sqrt(sum(float((array**2).sum()) for array in arrays))


# 1. What was frozen, and what moved? Copies before and after, compared to the bit.
#    tinyft/inspection/ledger/changes.py
before_head = weights()
for record in learner.steps(plan):
    if record.validation:  # the phase of the head alone is one epoch long
        break
after = weights()
same = [name for name in after if np.array_equal(after[name], before_head[name])]
print(f"1. the head alone: {len(same)} of {len(after)} tensors unchanged, such as {same[0]}")
print(f"   {record.validation.accuracy:.0%} of new photos right")

# 2. How large is a step? The change by what is changed, for each group.
#    tinyft/inspection/ledger/ledger.py, tinyft report RUN
start, before_all = learner.step, weights()
for record in learner.steps(plan, norms=True, start=start):
    if record.step == start + 5:
        break
print("2. the sixth step of everything, change / weight:")
for group in record.groups:
    ratio = group.update_norm / group.weight_norm
    print(f"   {group.name:20} {ratio:.5f} at a learning rate of {group.lr:.1e}")

# 3. What does backward visit? An observer hears each op, forward and backward.
#    tinyft/inspection/trace/recorder.py, tinyft inspect RUN --step 17


class Listener:
    def __init__(self):
        self.forward, self.backward = [], []

    def after_forward(self, node):
        self.forward.append(node.layer)

    def after_backward(self, node, gradient, input_gradients):
        self.backward.append(node.layer)


batch = next(data.train_batches(9, learner.preprocess))
learner.model.train()


def batch_loss():
    for dropout in learner.dropouts:
        dropout.step = learner.step  # the same masks each time
    return learner.loss(learner.model(learner.input(batch.images)), batch.labels)


with ft.observe(listener := Listener()):
    loss = batch_loss()
    loss.backward()
print(f"3. {len(listener.forward)} ops forward, the first in {listener.forward[0]},")
print(f"   {len(listener.backward)} backward, the last in {listener.backward[-1]}")

# 4. Why did the loss change? The gradient says what a small step does: <gradient, step>.
#    tinyft/inspection/step/why.py, tinyft inspect RUN --step 17 --why
parameters = [p for group in learner.groups for p in group.parameters.values()]
old, gradients = [p.data.copy() for p in parameters], [p.grad.copy() for p in parameters]
arrays, values = capture(learner)
learner.optimizer.step()
moves = [p.data - o for p, o in zip(parameters, old, strict=True)]
predicted = sum(float((g * move).sum()) for g, move in zip(gradients, moves, strict=True))
change = batch_loss().item() / loss.item() - 1
print(f"4. the loss changed by {change:.0%}, predicted {predicted / loss.item():.0%}")

# 5. What if? Back to the state before the step, and another one from there.
#    tinyft/inspection/step/what_if.py, tinyft inspect RUN --step 17 --what-if
for factor in (0.1, 10):
    restore(learner, arrays, values)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.copy()
    for group in learner.groups:
        group.lr *= factor
    learner.optimizer.step()
    change = batch_loss().item() / loss.item() - 1
    print(f"5. with {factor:g} times the learning rates: {change:.0%}")
learner.optimizer.zero_grad()
restore(learner, arrays, values)

# 6. How far did each layer travel? Later layers farther than earlier ones.
#    tinyft/inspection/comparison/diff.py, tinyft diff RUN
for record in learner.steps(plan, start=learner.step):
    if record.validation:
        print(f"6. epoch {record.epoch}: {record.validation.accuracy:.0%} of new photos right")
now = weights()
for name in ("conv1", "layer2.0.conv2", "layer4.0.conv2"):
    old, new = before_all[f"{name}.weight"], now[f"{name}.weight"]
    print(f"6. {name:15} moved by {length([new - old]) / length([old]):.4f} of its length")

# 7. What does it get wrong? Rows are the truth, columns the guess.
#    tinyft/inspection/report/learned.py, tinyft report RUN
guesses = learner.predict([data.source("valid", i) for i in range(data.n_valid)])
confusion = np.zeros((8, 8), int)
for truth, guess in zip(data.labels["valid"], guesses, strict=True):
    confusion[truth, data.classes.index(guess.label)] += 1
of_cougars = confusion[0, 0] / confusion[0].sum()
print(f"7. {confusion.trace() / data.n_valid:.0%} right, of the cougars {of_cougars:.0%}")

# Prints:
#   1. the head alone: 12 of 70 tensors unchanged, such as conv1.weight
#      65% of new photos right
#   2. the sixth step of everything, change / weight:
#      stem+layer1+layer2   0.00002 at a learning rate of 7.7e-06
#      layer3+layer4        0.00039 at a learning rate of 7.7e-05
#      head                 0.00310 at a learning rate of 7.7e-04
#   3. 35 ops forward, the first in conv1,
#      35 backward, the last in conv1
#   4. the loss changed by -59%, predicted -74%
#   5. with 0.1 times the learning rates: -7%
#   5. with 10 times the learning rates: -100%
#   6. epoch 1: 83% of new photos right
#   6. epoch 2: 84% of new photos right
#   6. conv1           moved by 0.0001 of its length
#   6. layer2.0.conv2  moved by 0.0007 of its length
#   6. layer4.0.conv2  moved by 0.0132 of its length
#   7. 84% right, of the cougars 78%

# Three questions, answered by test_look_inside_questions in tests/examples/test_questions.py:
#   1. A step a tenth as long: is the prediction from the gradient nearer to the truth?
#   2. What does a listener hear under `with ft.no_grad():`?
#   3. conv1 and bn1 frozen, their scale and shift too: where does backward end?
