"""The schedule: every learning rate of a fine-tuning, by hand, by tinyft, and by fastai.

A learning rate says how far a step goes. It is not one number: it rises and falls over training
(one cycle), and each group of layers has its own (discriminative learning rates). All of them are
known before the first step. Source: tinyft/finetune/schedule.py.
"""

import numpy as np

from tinyft.finetune.schedule import even_mults, fine_tune_phases

# Two phases: the head alone for one epoch, then everything for two, in epochs of five steps.
base_lr, lr_mult = 2e-3, 100
head_alone, everything = fine_tune_phases(2, 5, n_groups=3, base_lr=base_lr, lr_mult=lr_mult)


# One cycle, by hand: from peak / div along half a cosine to the peak, where the share `top` of the
# phase is done, and along another down to nearly nothing. `done` is the share *before* the step.
def rate(done, peak, top, div, div_final=1e5):
    start, end, part = peak / div, peak, done / top
    if done >= top:
        start, end, part = peak, peak / div_final, (done - top) / (1 - top)
    return start + (end - start) * (1 - np.cos(np.pi * part)) / 2


# Small at first, while Adam's averages know little; large in the middle, where the way is long;
# small at the end, where the noise of single batches is to average out. Momentum mirrors it: low
# where rates are high, so that old gradients, in steps that large, carry it less far.
by_hand = [rate(i / 10, base_lr / 2, top=0.3, div=5) for i in range(10)]
print("everything: the head's rate, and the momentum")
for lr, momentum in zip(everything.lr[:, 2], everything.momentum, strict=True):
    place = " " * round((momentum - 0.85) * 150)
    print(f"  {lr:.2e} {'#' * round(lr / 1e-3 * 24):25} {momentum:.3f} {place}o")
apart = np.abs(by_hand / everything.lr[:, 2] - 1).max()
print(f"by hand: the same but for {apart:.0e} of each; fastai tells the place in single precision")

# What fastai 2.8.12 recorded: the head's rates while it trains alone, then the first group's.
recorded = [8e-05, 0.00026694054577230177, 0.0007549564171441107, 0.0013539852962624623]
recorded += [0.0018307294914014119, 2.0000000000000003e-06, 3.999999783778271e-06]
recorded += [7.999999567556519e-06, 1e-05, 9.504849349101158e-06]
ours = [*head_alone.lr[:, 2], *everything.lr[:5, 0]]
print(
    f"fastai's own: {sum(np.equal(ours, recorded))} of {len(ours)} rates the same to the last bit"
)

# All groups, on an axis where equal distances are equal factors. 0 is stem+layer1+layer2, 1 is
# layer3+layer4, 2 the head; o is a frozen group, of which only the batch norms' scale and shift
# train. While the head is alone all others have a tenth of its rate; then lr_mult, 100, lies
# between the first group and the last, in equal factors.
print(f"\n{'1e-07':>18}{'1e-06':>10}{'1e-05':>10}{'1e-04':>10}{'1e-03':>10}")
for phase in (head_alone, everything):
    for step, rates in enumerate(phase.lr):
        line = [" "] * 46
        for group, lr in enumerate(rates):
            mark = "o" if group < phase.first_trainable else str(group)
            line[round(10 * np.log10(lr / 1e-7))] = mark
        print(f"{phase.name:10} {step}  |{''.join(line)}".rstrip())

# What dividing by lr_mult does: Adam moves each number by about the rate, however small its
# gradient, so the sum of the rates is about how far a number can travel. Pretrained edges and
# textures are right for most photos and should stay; the head has to come from random numbers.
print("\na number can travel ", "".join(f"{name:>12}" for name in ("stem..", "layer3..", "head")))
for phase in (head_alone, everything):
    print(f"  {phase.name:18}", "".join(f"{way:12.5f}" for way in phase.lr.sum(axis=0)))
for mult in (1, 10, 100):
    largest = even_mults(base_lr / 2 / mult, base_lr / 2, 3)
    print(f"  rates, lr_mult={mult:<3}", "".join(f"{lr:12.5f}" for lr in largest))

# The second phase's peak is base_lr / 2: the head is no longer random and has less far to go, and
# now the body moves below it, so that the same rate would change the scores by more.
# In the first phase even base_lr is not met. Its cycle has its top at 99 % of the way: the last of
# few steps comes before it, so a low peak is no mistake. With one step it is the very start.
print("\nsteps an epoch   highest rate of the head alone / base_lr")
for steps in (1, 3, 5, 13, 120):
    highest = fine_tune_phases(2, steps, n_groups=3, base_lr=base_lr)[0].lr.max() / base_lr
    print(f"  {steps:12}   {highest:.4f} {'#' * round(highest * 30)}")

# Prints:
#   everything: the head's rate, and the momentum
#     2.00e-04 #####                     0.950                o
#     4.00e-04 ##########                0.925            o
#     8.00e-04 ###################       0.875     o
#     1.00e-03 ########################  0.850 o
#     9.50e-04 #######################   0.855  o
#     8.12e-04 ###################       0.869    o
#     6.11e-04 ###############           0.889       o
#     3.89e-04 #########                 0.911          o
#     1.88e-04 #####                     0.931             o
#     4.95e-05 #                         0.945               o
#   by hand: the same but for 7e-07 of each; fastai tells the place in single precision
#   fastai's own: 10 of 10 rates the same to the last bit
#
#                1e-07     1e-06     1e-05     1e-04     1e-03
#   head alone 0  |                   o         2
#   head alone 1  |                        o         2
#   head alone 2  |                             o         2
#   head alone 3  |                               o         2
#   head alone 4  |                                 o         2
#   everything 0  |             0         1         2
#   everything 1  |                0         1         2
#   everything 2  |                   0         1         2
#   everything 3  |                    0         1         2
#   everything 4  |                    0         1         2
#   everything 5  |                   0         1         2
#   everything 6  |                  0         1         2
#   everything 7  |                0         1         2
#   everything 8  |             0         1         2
#   everything 9  |       0         1         2
#
#   a number can travel        stem..    layer3..        head
#     head alone              0.00043     0.00043     0.00429
#     everything              0.00005     0.00054     0.00540
#     rates, lr_mult=1        0.00100     0.00100     0.00100
#     rates, lr_mult=10       0.00010     0.00032     0.00100
#     rates, lr_mult=100      0.00001     0.00010     0.00100
#
#   steps an epoch   highest rate of the head alone / base_lr
#                1   0.0400 #
#                3   0.7687 #######################
#                5   0.9154 ###########################
#               13   0.9892 ##############################
#              120   0.9999 ##############################

# Three questions, answered by test_schedule_questions in tests/examples/test_questions.py:
#   1. When is the very last rate, peak / div_final, used?
#   2. A body in three groups and a head: by which factor do the peaks of neighbours differ?
#   3. Twice base_lr: what becomes of all these rates?
