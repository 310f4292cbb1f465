"""Adam over several steps, with changing momentum: by hand, by tinyft, and by fastai.

Adam divides a running average of the gradients by the root of a running average of their squares.
Both begin at zero, so both are too small at first, and each is divided by how much is missing:
exactly, if the momentum never changes; one cycle changes it. docs/derivations.md, section 4, has
the proof. Source: tinyft/finetune/optim.py.
"""

import numpy as np

import tinyft as ft
from tinyft.finetune import Group
from tinyft.finetune.schedule import fine_tune_phases

square_momentum, eps, decay = 0.99, 1e-5, 0.1
start = np.array([1.0, -2.0, 0.5])  # three parameters, and five steps of a tiny cycle
rates, momentums = [0.01, 0.02, 0.03, 0.02, 0.01], [0.95, 0.90, 0.85, 0.90, 0.95]
gradients = [[0.1, -0.2, 0], [0.3, 0.1, 1e-3], [-0.2, 0.4, 1e-5], [0.05, -0.1, -1e-3], [0, 0, 2]]

# By hand. Five lines a step: decay, two averages, what they are divided by, the move.
p, average, square, table = start.copy(), np.zeros(3), np.zeros(3), []
for k, (lr, m, g) in enumerate(zip(rates, momentums, np.array(gradients), strict=True), start=1):
    p = p * (1 - lr * decay)  # weight decay, beside the averages and not in them
    average = m * average + (1 - m) * g
    square = square_momentum * square + (1 - square_momentum) * g**2
    move = average / (1 - m**k) / (np.sqrt(square / (1 - square_momentum**k)) + eps)
    p = p - lr * move
    table.append((p, move))

# By tinyft. An optimizer visits groups; the schedule sets each one's rate and momentum.
parameter = ft.Tensor(start.copy(), requires_grad=True)
group = Group("all", {"p": parameter}, {}, frozenset(), weight_decay=decay)
optimizer = ft.Adam([group])
print("step   move / rate: the first step is 1 for each gradient that is not 0")
for (p, move), lr, m, g in zip(table, rates, momentums, gradients, strict=True):
    group.lr, group.momentum, parameter.grad = lr, m, np.array(g)
    optimizer.step()
    agrees = np.allclose(parameter.data, p, rtol=1e-12, atol=0)
    print(f"  {optimizer.state['p']['step']}  ", "".join(f"{x:9.4f}" for x in move), f"  {agrees}")
fastai = [0.9627925228182506, -2.0106403767762635, 0.46644361674064294]  # 2.8.12, recorded
print("after five steps", parameter.data, "apart from fastai's", abs(parameter.data - fastai).max())

# Why divide. An average is a sum of gradients with weights; after k steps the weights sum to
# 1 - (the product of all momentums), since each step keeps that share of what was missing. With
# one momentum that is 1 - m**k, and a steady gradient comes out as itself. One cycle lowers the
# momentum: m**k forgets that it was higher, 1 - m**k is too large, and the step is too short.
falling = fine_tune_phases(9, steps_per_epoch=13, n_groups=3)[0].momentum
print("\nthe head alone, 13 steps: sum of the weights, what is divided by, their ratio")
for k in (1, 2, 4, 8, 13):
    m, weights = falling[k - 1], 1 - np.prod(falling[:k])
    divided = 1 - m**k
    ratio = weights / divided
    print(
        f"  step {k:2}  momentum {m:.3f}  {weights:.4f} / {divided:.4f} = {ratio:.3f}",
        "#" * round(30 * ratio),
    )


# So a number with a steady gradient travels less far than the sum of the rates; by tinyft:
def travelled(momentums, gradient=1.0, lr=1e-3):
    parameter = ft.Tensor(np.zeros(1), requires_grad=True)
    group = Group("all", {"p": parameter}, {}, frozenset(), lr=lr, weight_decay=0)
    optimizer = ft.Adam([group])
    for group.momentum in momentums:
        parameter.grad = np.array([gradient])
        optimizer.step()
    return -parameter.data[0]


cycles = {"steady": [0.95] * 13, "falling": falling, "rising": falling[::-1]}
for name, momentums in cycles.items():
    print(f"13 steps at a rate of 0.001, momentum {name:8}: {travelled(momentums):.6f}")

# Prints:
#   step   move / rate: the first step is 1 for each gradient that is not 0
#     1      0.9999  -1.0000   0.0000   True
#     2      0.8104   0.0333   0.7321   True
#     3     -0.0081   0.5943   0.3816   True
#     4      0.0678   0.5546  -0.0896   True
#     5      0.1097   0.8978   0.4892   True
#   after five steps [ 0.96279252 -2.01064038  0.46644362] apart from fastai's 0.0
#
#   the head alone, 13 steps: sum of the weights, what is divided by, their ratio
#     step  1  momentum 0.950  0.0500 / 0.0500 = 1.000 ##############################
#     step  2  momentum 0.949  0.0989 / 0.1003 = 0.986 ##############################
#     step  4  momentum 0.937  0.2027 / 0.2286 = 0.887 ###########################
#     step  8  momentum 0.893  0.4513 / 0.5951 = 0.758 #######################
#     step 13  momentum 0.851  0.7359 / 0.8770 = 0.839 #########################
#   13 steps at a rate of 0.001, momentum steady  : 0.013000
#   13 steps at a rate of 0.001, momentum falling : 0.010947
#   13 steps at a rate of 0.001, momentum rising  : 0.016255

# Three questions, answered by test_adam_questions in tests/examples/test_questions.py:
#   1. All gradients times 1000: what becomes of the steps?
#   2. After 1000 steps without a gradient comes one of 1: how far goes the step, in rates?
#   3. A gradient of 0, and weight decay: what moves, and what is remembered of it?
