"""Batch norm and its gradient: by hand in nine steps, by tinyft, and by differences.

A batch norm brings each channel to mean 0 and deviation 1, then to a scale and a shift that are
learnt. Mean and deviation are made of the batch, so every picture's result depends on all others,
and so does its gradient: the part that is easily forgotten. Source: tinyft/ops/normalisation.py.
"""

import numpy as np

import tinyft as ft

# N values of C channels; in a network N counts every pixel of every picture of the batch.
rng = np.random.default_rng(0)
N, C, eps = 6, 3, 1e-5
x, scale, shift = rng.normal(2, 3, (N, C)), rng.normal(1, 0.5, C), rng.normal(size=C)

# Forward, in nine steps so small that the derivative of each is known by heart.
mean = x.sum(axis=0) / N  # 1
centred = x - mean  # 2
squares = centred**2  # 3
variance = squares.sum(axis=0) / N  # 4
deviation = np.sqrt(variance + eps)  # 5
inverse = 1 / deviation  # 6
normal = centred * inverse  # 7
scaled = normal * scale  # 8
out = scaled + shift  # 9

x_tensor, scale_tensor, shift_tensor = (ft.Tensor(a, requires_grad=True) for a in (x, scale, shift))
y, _, _ = ft.ops.batch_norm(x_tensor, scale_tensor, shift_tensor, eps=eps)
print("out agrees:", np.allclose(out, y.data))

# Backward, the same steps from the last to the first. What was used twice gets two gradients, which
# add up; what was repeated for N rows gets the sum of N gradients; what was summed hands its
# gradient to each of its terms.
dout = rng.normal(size=(N, C))  # the upstream gradient: d loss / d out
dscaled, dshift = dout, dout.sum(axis=0)  # 9
dnormal, dscale = dscaled * scale, (dscaled * normal).sum(axis=0)  # 8
dcentred, dinverse = dnormal * inverse, (dnormal * centred).sum(axis=0)  # 7
ddeviation = -dinverse / deviation**2  # 6
dvariance = ddeviation / (2 * deviation)  # 5
dsquares = np.ones((N, 1)) * dvariance / N  # 4
dcentred = dcentred + 2 * centred * dsquares  # 3, the second use of centred
dx, dmean = dcentred, -dcentred.sum(axis=0)  # 2
dx = dx + np.ones((N, 1)) * dmean / N  # 1, the second use of x

y.backward(dout)
for name, ours, tensor in (
    ("dscale", dscale, scale_tensor),
    ("dshift", dshift, shift_tensor),
    ("dx", dx, x_tensor),
):
    print(f"{name:6} agrees: {np.allclose(ours, tensor.grad)}; begins with {ours.flat[0]:8.5f}")

# In one line. Put 7 to 3 into each other, with deviation**2 = variance + eps, and all constants of
# a channel before it: dcentred = inverse * (dnormal - normal * mean(dnormal * normal)). Steps 2 and
# 1 subtract its mean over the rows; normal has mean 0, so that of the second term is 0. Three
# terms remain: the gradient itself, less its mean, less its part along `normal`. A loss cannot
# change by moving all x alike, nor (but for eps) by stretching them: batch norm undoes both.
terms = [scale * inverse * t for t in (dout, dout.mean(0), normal * (dout * normal).mean(0))]
print("three terms agree:", np.allclose(dx, terms[0] - terms[1] - terms[2]))
print(
    "  of the first x: ", " - ".join(f"({term.flat[0]:.5f})" for term in terms), f"= {dx[0, 0]:.5f}"
)
print("  no loss from moving all x alike:", np.allclose(dx.sum(axis=0), 0))


def normalised(x, scale, shift):
    return ft.ops.batch_norm(x, scale, shift, eps=eps)[0]


print("differences:", "passed" if ft.gradcheck(normalised, [x, scale, shift]) else "failed")

# The layer keeps running statistics for the time when there is one picture: a tenth of the way to
# the batch's, at every step (momentum 0.1). No gradient takes part. So a layer whose scale and
# shift are frozen still moves, unless it is told to normalise by what it has.
layer = ft.nn.BatchNorm(C)
for parameter in (layer.weight, layer.bias):
    parameter.requires_grad = False
batch = x.reshape(N, 1, 1, C).astype(np.float32)
for statistics, moves in (("batch", True), ("running", False)):
    layer.statistics, layer.updates = statistics, moves
    before = layer.running_mean.copy()
    layer.train()(ft.Tensor(batch))
    print(f"frozen, by {statistics:7} statistics: running mean {before[0]:.4f} -> "
          f"{layer.running_mean[0]:.4f}")  # fmt: skip

# Prints:
#   out agrees: True
#   dscale agrees: True; begins with -1.20881
#   dshift agrees: True; begins with  0.35257
#   dx     agrees: True; begins with  0.33047
#   three terms agree: True
#     of the first x:  (0.31498) - (0.02049) - (-0.03597) = 0.33047
#     no loss from moving all x alike: True
#   differences: passed
#   frozen, by batch   statistics: running mean 0.0000 -> 0.0606
#   frozen, by running statistics: running mean 0.0606 -> 0.0606

# Three questions, answered by test_batch_norm_questions in tests/examples/test_questions.py:
#   1. A convolution's bias before a batch norm: what is its gradient?
#   2. All x times 100: what becomes of the result, and what of dx?
#   3. In evaluation, does the gradient at one picture depend on the others?
