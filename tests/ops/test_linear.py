import numpy as np

from tinyft import ops
from tinyft.engine.tensor import Tensor


def leaf(values):
    return Tensor(np.array(values, np.float32), requires_grad=True)


def test_linear_by_hand():
    x, weight, bias = (
        leaf([[1.0, 2.0]]),
        leaf([[3.0, 4.0], [5.0, 6.0], [0.0, -1.0]]),
        leaf([1, 0, 2]),
    )
    out = ops.linear(x, weight, bias)
    assert out.data.tolist() == [[12, 17, 0]]
    out.backward(np.array([[1, 10, 100]], np.float32))
    assert x.grad.tolist() == [[53, -36]]
    assert weight.grad.tolist() == [[1, 2], [10, 20], [100, 200]]
    assert bias.grad.tolist() == [1, 10, 100]


def test_frozen_parts_cost_nothing():
    x, weight, bias = Tensor([[1.0, 2.0]]), Tensor([[3.0, 4.0]]), leaf([1.0])
    out = ops.linear(x, weight, bias)
    gradients = out.node.backward(np.ones((1, 1), np.float32))
    assert gradients[0] is None and gradients[1] is None and gradients[2].tolist() == [1]
