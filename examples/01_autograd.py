"""How a program finds its own derivatives.

A Tensor is an array that remembers how it was made. Each operation leaves a note: what it
computed from what, and how to send a gradient back. Reading the notes from the last to the first
is the chain rule, and is all there is to automatic differentiation.
Source: tinyft/engine/tape.py.
"""

import numpy as np

import tinyft as ft

# Two leaves: numbers that we chose, and whose gradients we want.
a = ft.Tensor([3.0], requires_grad=True, name="a")
b = ft.Tensor([2.0], requires_grad=True, name="b")

# Three operations. Every result points back at the operation that made it.
product = a * b
total = product + a  # a is used a second time here
y = total * total
print("y =", y.item(), "made by", y.node.op)

# A node knows its inputs' nodes (or the leaf itself), and so the whole graph hangs on y.
node = y.node
while isinstance(node, type(y.node)):
    inputs = [getattr(i, "op", None) or f"leaf {i.name}" for i in node.inputs]
    print(f"  {node.op} <- {', '.join(inputs)}")
    node = node.inputs[0]

# By hand: y = (ab + a)^2, so dy/da = 2 (ab + a) (b + 1) = 2 * 9 * 3 and dy/db = 2 * 9 * a.
# Two paths lead from y to a; their gradients were added.
y.backward()
print("dy/da =", a.grad[0], " dy/db =", b.grad[0])


# An operation is one function: tensors in, an array out, computed from theirs, and beside it a
# closure that turns the gradient of the result into the gradient of the input. This one is the
# logistic function s(x) = 1 / (1 + exp(-x)), whose derivative is s (1 - s).
@ft.op
def logistic(x):
    out = 1 / (1 + np.exp(-x.data))

    def backward(dout):
        return (dout * out * (1 - out),)

    return out, backward


# Is that derivative right? A derivative is the limit of differences, so differences tell.
rng = np.random.default_rng(0)
print("logistic:", "passed" if ft.gradcheck(logistic, [rng.normal(size=(2, 3))]) else "failed")


# And would a mistake be found? The same with a forgotten factor:
@ft.op
def forgetful(x):
    out = 1 / (1 + np.exp(-x.data))
    return out, lambda dout: (dout * out,)


try:
    ft.gradcheck(forgetful, [rng.normal(size=(2, 3))])
except AssertionError as error:
    print("\n".join(str(error).splitlines()[:2]))

# Prints:
#   y = 81.0 made by mul
#     mul <- add, add
#     add <- mul, leaf a
#     mul <- leaf a, leaf b
#   dy/da = 54.0  dy/db = 54.0
#   logistic: passed
#   gradcheck: forgetful: the gradient of input 0 (x) of forgetful is wrong
#     element (1, 2): backward says 1.0059267, differences say 0.49257212, ratio 2.04219

# Three questions, answered by test_autograd_questions in tests/examples/test_questions.py:
#   1. Let b be a: what is dy/da?
#   2. y.backward() a second time?
#   3. The same inside `with ft.no_grad():`, what is y.node?
