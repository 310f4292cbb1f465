"""A script as somebody may write it who uses tinyft: type checkers find its marked mistakes alone.

It is read by test_type_checking.py, in the strictest mode of both, and never run.
"""

# pyright: strict

from collections.abc import Callable
from typing import assert_type

import numpy as np

import tinyft as ft

data = ft.ImageFolder("photos/", size=224, batch_size=16, seed=0)
learner = ft.vision_learner(data, "resnet18")
assert_type(learner, ft.Learner)
print(learner.plan(3).phases[0].name)
for evaluation in learner.fine_tune(3, observers=[ft.Ledger()]):
    print(evaluation.accuracy + 1)
print(learner.predict("rose.jpg").probability)
assert_type(learner.predict([b"", "rose.jpg"]), list[ft.finetune.Prediction])
assert_type(learner.predict(b"").label, str)
for record in learner.steps(learner.plan(1, freeze_epochs=0)):
    print(record.step, record.loss)
learner.save("flowers.h5")

x = ft.Tensor(np.ones((2, 8, 8, 3)), requires_grad=True)
weight = ft.Tensor(np.ones((4, 3, 3, 3)))
y = ft.ops.conv2d(x, weight, stride=2, padding=1, relu=True)
assert_type(y, ft.Tensor)
assert_type(ft.ops.exp(y), ft.Tensor)
assert_type(ft.ops.concatenate(y, y, axis=0), ft.Tensor)
assert_type((2 * y @ y - y).mean(), ft.Tensor)
assert_type(y.shape, tuple[int, ...])
ft.ops.batch_norm(x, weight, weight)[0].sum().backward()


@ft.op
def swish(
    x: ft.Tensor, beta: float = 1.0
) -> tuple[np.ndarray, Callable[[np.ndarray], tuple[np.ndarray]]]:
    """x / (1 + exp(-beta x))"""
    s = 1 / (1 + np.exp(-beta * x.data))

    def backward(dout: np.ndarray) -> tuple[np.ndarray]:
        return (dout * s * (1 + beta * x.data * (1 - s)),)

    return x.data * s, backward


print(swish(x, beta=2.0), ft.gradcheck(swish, [np.ones((2, 3))]))

with ft.no_grad(), ft.backends.use("reference"), ft.trace() as trace:
    model = ft.resnet18()
    print(model(x), model.state_dict()["fc.weight"].shape)
print(trace, ft.load_weights("a.h5").classes, ft.check("photos"))


class Network(ft.nn.Module):
    """A subclass, with a part that keeps its type."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ft.nn.Conv2d(3, 8, 3, stride=2)

    def forward(self, x: ft.Tensor) -> ft.Tensor:
        return ft.ops.relu(self.conv1(x))


def one_group(network: Network) -> dict[str, str]:
    return {"all": network.conv1.name}


ft.Learner(Network(), data, groups=one_group)

ft.visionlearner(data)  # mistake: no such name
swish(x, beta="two")  # mistake: a text for a number
print(learner.predict([b""]).label)  # mistake: a list has no label
