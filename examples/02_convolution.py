"""A convolution and its gradient: by hand, by tinyft, and by differences.

A filter is a small picture that is laid on every place of a large one; at each place, the sum of
the products is one pixel of the result. Everything else follows from that sentence. Sources:
tinyft/backends/reference.py, which computes it, and tinyft/ops/convolution.py, which records it.
"""

import itertools

import numpy as np

import tinyft as ft

# Letters: N pictures, H W rows and columns, C channels in; F filters of R x S pixels; P Q rows and
# columns out. Stride 2: the filter moves by two pixels. Padding 1: a border of zeros.
rng = np.random.default_rng(0)
stride, padding = 2, 1
x = rng.normal(size=(2, 7, 6, 3))  # (N, H, W, C), float64
weight = rng.normal(size=(4, 3, 3, 3))  # (F, C, R, S)
N, H, W, C = x.shape
F, _, R, S = weight.shape
P, Q = (H + 2 * padding - R) // stride + 1, (W + 2 * padding - S) // stride + 1
padded = np.zeros((N, H + 2 * padding, W + 2 * padding, C))
padded[:, padding : padding + H, padding : padding + W] = x

# Forward, by hand. One line of arithmetic: out = sum of pixel * weight.
places = list(itertools.product(range(N), range(P), range(Q), range(F), range(R), range(S)))
out = np.zeros((N, P, Q, F))
for n, p, q, f, r, s in places:
    for c in range(C):
        out[n, p, q, f] += padded[n, p * stride + r, q * stride + s, c] * weight[f, c, r, s]

x_tensor, weight_tensor = ft.Tensor(x, requires_grad=True), ft.Tensor(weight, requires_grad=True)
y = ft.ops.conv2d(x_tensor, weight_tensor, stride=stride, padding=padding)
print("shape", out.shape, "-> agrees:", np.allclose(out, y.data))

# Backward, by hand. Let dout be the gradient of some number L by each output. A product pixel *
# weight passes to the weight dout * pixel, and to the pixel dout * weight. Each weight met many
# pixels and each pixel many weights, so both collect sums: the same loop, read the other way.
dout = rng.normal(size=out.shape)
dweight, dpadded = np.zeros_like(weight), np.zeros_like(padded)
for n, p, q, f, r, s in places:
    for c in range(C):
        row, column = p * stride + r, q * stride + s
        dweight[f, c, r, s] += dout[n, p, q, f] * padded[n, row, column, c]
        dpadded[n, row, column, c] += dout[n, p, q, f] * weight[f, c, r, s]
dx = dpadded[:, padding : padding + H, padding : padding + W]  # nobody asks for the border's

y.backward(dout)
print("dweight agrees:", np.allclose(dweight, weight_tensor.grad))
print("dx agrees:", np.allclose(dx, x_tensor.grad))


# By differences. Here L = sum(dout * out); move one weight a little, and see what L does.
def loss(w):
    out = ft.ops.conv2d(ft.Tensor(x), ft.Tensor(w), stride=stride, padding=padding)
    return (out.data * dout).sum()


moved, eps = np.zeros_like(weight), 1e-5
moved[1, 2, 0, 2] = eps
difference = (loss(weight + moved) - loss(weight - moved)) / (2 * eps)
print(f"one weight: gradient {dweight[1, 2, 0, 2]:.5f}, difference {difference:.5f}")


# gradcheck does this for all inputs, along random directions.
def conv(x, weight):
    return ft.ops.conv2d(x, weight, stride=stride, padding=padding)


report = ft.gradcheck(conv, [x, weight])
print(report.op, [row.name for row in report.inputs], "passed" if report else "failed")

# Prints:
#   shape (2, 4, 3, 4) -> agrees: True
#   dweight agrees: True
#   dx agrees: True
#   one weight: gradient -2.60583, difference -2.60583
#   conv ['input 0 (x)', 'input 1 (weight)'] passed

# Three questions, answered by test_convolution_questions in tests/examples/test_questions.py:
#   1. Six rows, three taps, stride 2, no padding: which rows get no gradient?
#   2. dout is 0 but for the first filter: which weights get a gradient?
#   3. x times 2: what becomes of dweight, and of dx?
