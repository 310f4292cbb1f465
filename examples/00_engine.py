"""An engine from nothing: arrays that differentiate what was computed with them.

Each operation makes a Tensor that points to the Tensors it was made from, and keeps a rule that
turns the gradient of the result (the upstream gradient) into those of the inputs: a vector-Jacobian
product. Following the pointers back, newest first, is the chain rule in reverse mode, and the whole
of backpropagation. The real one does the same with more care. Source: tinyft/engine/tape.py.
"""

import itertools

import numpy as np


class Tensor:
    """An array, its gradient, and the note of how it was made; without a note it is a leaf."""

    numbers = itertools.count()

    def __init__(self, data, inputs=(), rule=None):
        self.data = np.array(data, np.float64)
        self.grad = np.zeros_like(self.data)
        self.inputs, self.rule, self.number = inputs, rule, next(Tensor.numbers)

    def __add__(self, other):
        return Tensor(self.data + other.data, (self, other), lambda dout: (dout, dout))

    def __mul__(self, other):
        def rule(dout):  # each factor is the other's derivative
            return dout * other.data, dout * self.data

        return Tensor(self.data * other.data, (self, other), rule)

    def __matmul__(self, other):
        def rule(dout):  # the same, summed over what the product summed over
            return dout @ other.data.T, self.data.T @ dout

        return Tensor(self.data @ other.data, (self, other), rule)

    def exp(self):
        out = np.exp(self.data)
        return Tensor(out, (self,), lambda dout: (dout * out,))

    def log(self):
        return Tensor(np.log(self.data), (self,), lambda dout: (dout / self.data,))

    def tanh(self):
        out = np.tanh(self.data)
        return Tensor(out, (self,), lambda dout: (dout * (1 - out**2),))

    def sum(self, axis=None, keepdims=False):
        kept = self.data.sum(axis, keepdims=True)

        def rule(dout):  # every term gets the whole gradient
            return (np.broadcast_to(dout.reshape(kept.shape), self.data.shape),)

        return Tensor(kept if keepdims else self.data.sum(axis), (self,), rule)

    def backward(self):
        """Add d self / d leaf to the gradient of each leaf. A result is younger than its inputs, so
        from the youngest on each has all of its gradient before it passes any on."""
        tape, waiting = {self.number: self}, [self]
        while waiting:
            new = [x for x in waiting.pop().inputs if x.number not in tape]
            tape.update((x.number, x) for x in new)
            waiting += new
        self.grad += 1
        for number in sorted(tape, reverse=True):
            out = tape[number]
            for x, dx in zip(out.inputs, out.rule(out.grad) if out.rule else (), strict=True):
                x.grad += unbroadcast(dx, x.data.shape)  # added: several results may have used it


def unbroadcast(gradient, shape):
    """What was repeated on the way forward is summed on the way back."""
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    repeated = tuple(i for i, size in enumerate(shape) if size < gradient.shape[i])
    return gradient.sum(axis=repeated, keepdims=True)


# Three arms of a spiral, 40 points each, which no straight lines divide.
rng = np.random.default_rng(0)
radius, labels = np.tile(np.linspace(0.1, 1, 40), 3), np.repeat(range(3), 40)
angle = 4 * radius + labels * 2 * np.pi / 3 + rng.normal(0, 0.1, 120)
points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
start = rng.normal(size=(2, 16)), np.zeros(16), rng.normal(size=(16, 3)) / 4, np.zeros(3)


def loss_and_gradients(weights, Tensor=Tensor):
    """Two layers, then the mean over the points of log(sum(exp(scores))) - score of the label."""
    leaves = [Tensor(array) for array in weights]  # made anew, so their gradients begin at zero
    hidden = (Tensor(points) @ leaves[0] + leaves[1]).tanh()  # (120, 16)
    scores = hidden @ leaves[2] + leaves[3]  # (120, 3)
    of_label = (scores * Tensor(np.eye(3)[labels])).sum(1) * Tensor(np.full(120, -1.0))
    loss = ((scores.exp().sum(1).log() + of_label) * Tensor(np.full(120, 1 / 120))).sum()
    loss.backward()
    return loss.data, [leaf.grad for leaf in leaves], (scores.data.argmax(1) == labels).mean()


# Is it right? Move one weight a little, and see what the loss does.
_, gradients, _ = loss_and_gradients(start)
moved = np.zeros((2, 16))
moved[1, 3] = 1e-6
up, down = (loss_and_gradients([start[0] + m, *start[1:]])[0] for m in (moved, -moved))
print(f"one weight: gradient {gradients[0][1, 3]:.6f}, difference {(up - down) / 2e-6:.6f}")

# Learning is a walk against the gradient.
weights = start
for step in range(501):
    loss, gradients, right = loss_and_gradients(weights)
    if step in (0, 10, 100, 500):
        print(f"step {step:3}: loss {loss:.4f}, right {right:.0%}")
    weights = [weight - 1.0 * gradient for weight, gradient in zip(weights, gradients, strict=True)]
print("now read engine/")

# Prints:
#   one weight: gradient -0.005388, difference -0.005388
#   step   0: loss 1.2413, right 22%
#   step  10: loss 0.6954, right 57%
#   step 100: loss 0.4211, right 81%
#   step 500: loss 0.0334, right 100%
#   now read engine/

# Three questions, answered by test_engine_questions in tests/examples/test_questions.py:
#   1. y = x * x + x at x = 3: what is its gradient, and of how many parts?
#   2. A bias of 16 numbers is added to 120 rows: what is its gradient, if each row's is 1?
#   3. y.backward() twice, y = x * x at x = 3: is x.grad 6, 12 or 18? And with the real engine?
