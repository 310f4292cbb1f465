"""group_rates: how fast each part of a pretrained network learns (15 minutes)

The first layers know edges and textures, which serve any photo: they should hardly move. The head
is random: it should move fast. So a network is divided into groups, from the photo to the head, and
each has a learning rate of its own (discriminative learning rates), in even multiples: with low
1e-5, high 1e-3 and 3 groups 1e-5, 1e-4, 1e-3, each 10 times the one before.

Write `group_rates`. Then `fine_tune_rates`, fastai's recipe for training everything after the head
was trained alone at `base_lr`: base_lr is halved, and that is the head's rate; the first group
learns 100 times more slowly than it.
"""


def group_rates(low, high, n):
    """A list of n rates from low to high, each the same multiple of the one before; n=1: [high]"""
    return ...


def fine_tune_rates(base_lr, n):
    """The rates of n groups, from the first to the head's, while everything trains"""
    return ...


# ------------------------------------------- below: what `tinyft exercises` knows, and you do not

HINTS = [
    "From low to high there are n - 1 multiplications by one ratio: ratio**(n - 1) = high / low.",
    "ratio = (high / low) ** (1 / (n - 1)), and group i has low * ratio**i. One group is a case of "
    "its own: n - 1 is 0.",
    "fine_tune_rates is group_rates with the head's rate as high and a hundredth of it as low. "
    "`tinyft plan --table` shows all rates of a run.",
]


def check(yours):
    import tinyft as ft

    for low, high, n in [(1e-5, 1e-3, 3), (1e-4, 1e-2, 4), (1e-3, 1e-3, 2), (1e-5, 1e-3, 1)]:
        lr = slice(low, high)
        phase = ft.finetune.one_cycle_phase("all", 1, 1, lr, n, first_trainable=0, div=1)
        rates = yours.group_rates(low, high, n)
        yield f"rates from {low:g} to {high:g}, n={n}", rates, phase.lr[0]
    lr = slice(2e-3 / 2 / 100, 2e-3 / 2)
    phase = ft.finetune.one_cycle_phase("all", 1, 1, lr, 3, first_trainable=0, div=1)
    yield "fine_tune_rates(2e-3, 3)", yours.fine_tune_rates(2e-3, 3), phase.lr[0]
