"""Two training steps without a learner, with a part frozen: every line of them.

Forward, loss, backward, update. Each update is done twice, once by six lines of NumPy and once by
the optimizer, and must come out the same. Sources, in this order: tinyft/nn/resnet.py,
tinyft/ops/loss.py, tinyft/engine/tensor.py, tinyft/finetune/optim.py.
"""

import numpy as np
from shapes import draw

import tinyft as ft
from tinyft.finetune import layer_groups
from tinyft.nn import LinearHead, attach, cut

# A batch: sixteen pictures, as numbers around zero.
pictures, labels = draw(["circle", "square", "star", "moon"], 4, seed=0)
x = ft.Tensor((pictures / 255 - 0.5).astype(np.float32) / 0.25)

# A network, in training mode: its batch norms normalise with this batch.
model = cut(ft.nn.build("resnet10s", seed=0))
attach(model, LinearHead(model.num_features, num_classes=4)).train()

# The first of its three groups is frozen: it needs no gradient, so backward ends before it, and
# the optimizer, which visits what has a gradient, passes it by.
groups = layer_groups(model)
for parameter in groups[0].parameters.values():
    parameter.requires_grad = False
optimizer = ft.Adam(groups)  # its defaults are the constants below
lr, momentum, square_momentum, eps, decay = 1e-3, 0.9, 0.99, 1e-5, 0.01


# The length of many arrays, taken as one long vector.
def norm(arrays):
    return np.sqrt(sum((array**2).sum() for array in arrays))


# Adam keeps two running averages for each number: of its gradient, and of the square. The first
# over the root of the second is the direction; the learning rate says how far. Both start at zero,
# so after k steps they are too small by 1 - momentum ** k: divide by it.
start = {name: array.copy() for name, array in model.state_dict().items()}
weight = dict(model.named_parameters())["layer3.0.conv1.weight"]
average = average_square = 0
for k in (1, 2):
    # 1. Forward. The ops write themselves onto the tape as they run.
    logits = model(x)
    # 2. The loss: how surprised the network is by the right answers. One that knows nothing is
    #    surprised by log(4) = 1.39, or more if it is sure of its nonsense.
    loss = ft.ops.cross_entropy(logits, labels)
    # 3. Backward. Every unfrozen parameter gets d loss / d parameter. The tape is used up by this.
    loss.backward()
    # 4. Update, by hand and by the optimizer.
    average = momentum * average + (1 - momentum) * weight.grad
    average_square = square_momentum * average_square + (1 - square_momentum) * weight.grad**2
    root = np.sqrt(average_square / (1 - square_momentum**k))
    move = lr * average / (1 - momentum**k) / (root + eps)
    by_hand = weight.data * (1 - lr * decay) - move
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    optimizer.step()
    same = np.allclose(by_hand, weight.data, atol=1e-7)
    print(f"step {k}: loss {loss.item():.3f}, by hand and by the optimizer the same: {same}")
    # What the step did, group by group. The last column is the one to watch: how large the change
    # is, measured by what is changed; about 1e-3 is usual. Adam's first step is larger, since it
    # moves every number by the whole rate: a reason to begin with small rates.
    print(f"  {'group':20} {'|gradient|':>10} {'|change|':>10} {'change / weight':>16}")
    for group in groups:
        named = group.parameters.items()
        gradient = norm(p.grad for _, p in named if p.grad is not None)
        change = norm(p.data - before[n] for n, p in named)
        ratio = change / norm(before[n] for n, _ in named)
        print(f"  {group.name:20} {gradient:10.2f} {change:10.2f} {ratio:16.4f}")
    # 5. Forget the gradients, or the next backward would add to them.
    optimizer.zero_grad()
print(f"loss after: {ft.ops.cross_entropy(model(x), labels).item():.2f}")

# Frozen is not unmoved: the batch norms' running statistics follow the batches.
moved = [name for name, array in model.state_dict().items() if (array != start[name]).any()]
frozen = [n for n in moved if n in groups[0].parameters]
norms = [n for n in moved if "running" in n and n.rpartition(".")[0] in groups[0].batch_norms]
print(f"of the frozen group moved {len(frozen)} parameters, {len(norms)} running statistics")

# Prints:
#   step 1: loss 1.864, by hand and by the optimizer the same: True
#     group                |gradient|   |change|  change / weight
#     stem+layer1+layer2         0.00       0.00           0.0000
#     layer3+layer4              9.73       1.06           0.0204
#     head                       3.19       0.03           0.0112
#   step 2: loss 0.039, by hand and by the optimizer the same: True
#     group                |gradient|   |change|  change / weight
#     stem+layer1+layer2         0.00       0.00           0.0000
#     layer3+layer4              0.48       0.73           0.0140
#     head                       0.19       0.02           0.0078
#   loss after: 0.01
#   of the frozen group moved 0 parameters, 12 running statistics

# Three questions, answered by test_two_steps_questions in tests/examples/test_questions.py:
#   1. Without zero_grad: what is the gradient of the second step?
#   2. The head frozen in the place of the first group: how far does backward go?
#   3. Does freezing the first group change the gradients of the others?
