import numpy as np

from tinyft import ops
from tinyft.engine.tensor import Tensor


def test_relu_by_hand():
    x = Tensor([-1.0, 0.0, 2.0], requires_grad=True)
    out = ops.relu(x)
    out.backward(np.array([5, 6, 7], np.float32))
    assert out.data.tolist() == [0, 0, 2] and x.grad.tolist() == [0, 0, 7]


def test_zeros_nan_and_infinities():
    x = Tensor([-0.0, 0.0, np.nan, np.inf, -np.inf], requires_grad=True)
    out = ops.relu(x)
    assert np.array_equal(out.data, [0, 0, np.nan, np.inf, 0], equal_nan=True)
    out.backward(np.ones(5, np.float32))
    # the gradient at 0 is 0; what flows back into a NaN is not hidden either
    assert x.grad[[0, 1, 3, 4]].tolist() == [0, 0, 1, 0] and x.grad[2] != 0


def test_the_smallest_normal_numbers_are_not_zero():
    """Smaller ones are denormal: kernels of the CPU backend count them as 0."""
    tiny = np.array([np.finfo(np.float32).tiny, 1e-37], np.float32)
    x = Tensor(tiny, requires_grad=True)
    ops.relu(x).backward(np.ones(2, np.float32))
    assert x.grad.tolist() == [1, 1]
