"""One training step without a learner: every line of it.

Forward, loss, backward, update. The update is done twice, once by five lines of NumPy and once by
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

# 1. Forward. The ops write themselves onto the tape as they run.
logits = model(x)

# 2. The loss: how surprised the network is by the right answers. A network that knows nothing is
#    surprised by log(4) = 1.39, or more if it is sure of its nonsense.
loss = ft.ops.cross_entropy(logits, labels)
print(f"loss before: {loss.item():.3f}")

# 3. Backward. Every parameter gets d loss / d parameter. The tape is used up by this.
loss.backward()
weight = model.conv1.weight

# 4. Update. Adam keeps two running averages for each number: of its gradient, and of the square.
#    The first over the root of the second is the direction; the learning rate says how far. Both
#    start at zero, so in step 1 they are too small by a factor of (1 - momentum): divide by it.
lr, momentum, square_momentum, eps, decay = 1e-3, 0.9, 0.99, 1e-5, 0.01
average = (1 - momentum) * weight.grad
average_square = (1 - square_momentum) * weight.grad**2
root = np.sqrt(average_square / (1 - square_momentum))
by_hand = weight.data * (1 - lr * decay) - lr * average / (1 - momentum) / (root + eps)

before = {name: p.data.copy() for name, p in model.named_parameters()}
groups = layer_groups(model)
optimizer = ft.Adam(groups)  # lr 1e-3 and the other constants from above are its defaults
optimizer.step()
print("by hand and by the optimizer the same:", np.allclose(by_hand, weight.data, atol=1e-7))


# The length of many arrays, taken as one long vector.
def norm(arrays):
    return np.sqrt(sum((array**2).sum() for array in arrays))


# What the step did, group by group. The last column is the one to watch: how large the change is,
# measured by what is changed; about 1e-3 is usual. Adam's first step is larger, since it moves
# every number by the whole rate, however small its gradient: a reason to begin with small rates.
print(f"{'group':20} {'|gradient|':>10} {'|change|':>10} {'change / weight':>16}")
for group in groups:
    named = group.parameters.items()
    gradient = norm(p.grad for _, p in named)
    change = norm(p.data - before[n] for n, p in named)
    size = norm(p.data for _, p in named)
    print(f"{group.name:20} {gradient:10.2f} {change:10.2f} {change / size:16.3f}")

# 5. Forget the gradients, or the next backward would add to them. Then look again.
optimizer.zero_grad()
print(f"loss after: {ft.ops.cross_entropy(model(x), labels).item():.2f}")

# Prints:
#   loss before: 1.864
#   by hand and by the optimizer the same: True
#   group                |gradient|   |change|  change / weight
#   stem+layer1+layer2        11.41       0.28            0.011
#   layer3+layer4              9.73       1.06            0.020
#   head                       3.19       0.03            0.011
#   loss after: 0.03
