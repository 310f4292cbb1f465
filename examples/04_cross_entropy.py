"""Softmax with cross-entropy: by hand, by tinyft, and by differences.

A network ends in a score (a logit) for each class. Softmax makes them shares of one; the loss is
the surprise at the right class, -log of its share. Together their gradient is so simple that one
operation does both. Source: tinyft/ops/loss.py.
"""

import numpy as np

import tinyft as ft

# N = 2 pictures, C = 3 classes; the right classes are 0 and 2.
logits, labels = np.array([[2.0, 1.0, -1.0], [0.5, 0.5, 0.0]]), np.array([0, 2])
N, C = logits.shape
target = np.eye(C)[labels]  # a 1 in each row, at its label

# Forward, by hand. Softmax does not change if a row moves by a constant; moved so that its largest
# logit is 0, no exponential can overflow.
exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
loss = -np.log(probabilities[range(N), labels]).mean()
x = ft.Tensor(logits, requires_grad=True)
y = ft.ops.cross_entropy(x, labels)
for row, label in zip(probabilities, labels, strict=True):
    print(
        "shares",
        *(f"{p:.4f}" for p in row),
        f" right is {label}, surprise {-np.log(row[label]):.4f}",
    )
print(f"loss {loss:.4f}, by tinyft {y.item():.4f}")

# Backward, by the chain rule. The mean and the log send -1 / (N p) to the right share p, and
# nothing to the others. The shares of a row depend on all its logits: d p_i / d logit_j is
# p_i (1 - p_i) for i = j and -p_i p_j else, a Jacobian of C x C. It is multiplied from the left by
# the upstream gradient (a vector-Jacobian product).
dprobabilities = -target / probabilities / N
jacobians = [np.diag(p) - np.outer(p, p) for p in probabilities]
dlogits = np.stack([d @ jacobian for d, jacobian in zip(dprobabilities, jacobians, strict=True)])

# The division by p meets the factor p, and what remains needs no Jacobian: the guess less the
# truth. It is never larger than 1 / N, and fades as the network comes to be right.
y.backward()
print("short form agrees:", np.allclose(dlogits, (probabilities - target) / N))
print("tinyft agrees:", np.allclose(dlogits, x.grad))
for row in dlogits:
    print("gradient", *(f"{d:8.4f}" for d in row))


def loss_of(x):
    return ft.ops.cross_entropy(x, labels)


print("differences:", "passed" if ft.gradcheck(loss_of, [logits]) else "failed")

# Why one operation: of a logit 800 below the largest the share is 0 in floats, and its log minus
# infinity. Subtracting logarithms instead of dividing never sees the 0.
far = np.array([[0.0, 800.0]])
shares = np.exp(far - 800) / np.exp(far - 800).sum()
print(
    f"share {shares[0, 0]:g}; loss by one op",
    ft.ops.cross_entropy(ft.Tensor(far), np.array([0])).item(),
)

# Prints:
#   shares 0.7054 0.2595 0.0351  right is 0, surprise 0.3490
#   shares 0.3837 0.3837 0.2327  right is 2, surprise 1.4580
#   loss 0.9035, by tinyft 0.9035
#   short form agrees: True
#   tinyft agrees: True
#   gradient  -0.1473   0.1297   0.0176
#   gradient   0.1918   0.1918  -0.3837
#   differences: passed
#   share 0; loss by one op 800.0

# Three questions, answered by test_cross_entropy_questions in tests/examples/test_questions.py:
#   1. What do the gradients of one row add up to, and why must they?
#   2. What is the loss of a network that gives all of 8 classes the same share?
#   3. All logits times 10: when is the loss smaller, when larger?
