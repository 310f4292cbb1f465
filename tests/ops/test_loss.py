import numpy as np
import pytest

from tinyft import ops
from tinyft.engine.tensor import Tensor
from tinyft.errors import ShapeError


def loss_and_gradient(logits, labels, **options):
    x = Tensor(np.array(logits, np.float32), requires_grad=True)
    loss = ops.cross_entropy(x, np.array(labels), **options)
    loss.backward()
    return loss.item(), x.grad


def test_two_equal_logits_by_hand():
    loss, gradient = loss_and_gradient([[3.0, 3.0]], [1])
    assert loss == pytest.approx(np.log(2)) and gradient.tolist() == [[0.5, -0.5]]


def test_smoothing_by_hand():
    """Target (0.9 + 0.05, 0.05) against probabilities (0.5, 0.5)."""
    loss, gradient = loss_and_gradient([[0.0, 0.0]], [0], label_smoothing=0.1)
    assert loss == pytest.approx(np.log(2))
    assert np.allclose(gradient, [[-0.45, 0.45]])


def test_the_mean_is_over_the_weights_of_the_labels():
    """Weights 3 and 1: (3 log 2 + log 2) / 4, and the first picture pulls three times as much."""
    weights = np.array([3, 1], np.float32)
    loss, gradient = loss_and_gradient([[0.0, 0.0], [0.0, 0.0]], [0, 1], class_weights=weights)
    assert loss == pytest.approx(np.log(2))
    assert np.allclose(gradient, [[-0.375, 0.375], [0.125, -0.125]])


def test_huge_logits_stay_finite_and_rows_sum_to_zero():
    loss, gradient = loss_and_gradient([[1e4, -1e4, 0.0], [1e4, 1e4, -1e4]], [1, 0])
    assert loss == pytest.approx((2e4 + np.log(2)) / 2)
    assert np.allclose(gradient, [[0.5, -0.5, 0], [-0.25, 0.25, 0]])
    assert np.abs(gradient.sum(axis=1)).max() < 1e-7


def test_a_class_that_is_ruled_out_does_not_matter():
    with np.errstate(invalid="ignore"):
        loss, gradient = loss_and_gradient([[0.0, -np.inf, 0.0]], [0])
    assert loss == pytest.approx(np.log(2)) and np.allclose(gradient, [[-0.5, 0, 0.5]])


def test_the_gradient_is_scaled_by_what_follows():
    x = Tensor([[0.0, 0.0]], requires_grad=True)
    (ops.cross_entropy(x, np.array([0])) * 10.0).backward()
    assert np.allclose(x.grad, [[-5, 5]])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_labels_of_any_integer_type(dtype):
    assert loss_and_gradient([[1.0, 2.0]], np.array([1], dtype))[0] == pytest.approx(0.3132617)


LOGITS = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (
            [0, 1],
            TypeError,
            r"labels should be an array of integers.* is a list; pass np.array\(lab",
        ),
        (Tensor(np.array([0, 1])), TypeError, r"is a Tensor; pass its \.data"),
        (np.array([0.0, 1.0]), TypeError, r"integers, the number of each.*but is float64 \(2,\)"),
        (np.array([True, False]), TypeError, "but is bool"),
        (np.array(["cat", "dog"]), TypeError, "but is <U3"),
        (np.array([0, 1, 2]), ShapeError, r"should be \(2,\), a class for each.*but is \(3,\)"),
        (np.eye(3, dtype=int)[:2], ShapeError, r"should be \(2,\).*but is \(2, 3\)"),
        (
            np.array([0, 3]),
            ShapeError,
            "from 0 to 2, since logits have 3 classes, but go from 0 to 3",
        ),
        (np.array([-1, 0]), ShapeError, "but go from -1 to 0"),
    ],
)
def test_labels_that_are_none(labels, kind, message):
    with pytest.raises(kind, match=message):
        ops.cross_entropy(Tensor(LOGITS), labels)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"class_weights": [1.0, 2.0, 3.0]},
            TypeError,
            "array of numbers, but is a list; pass np.arr",
        ),
        ({"class_weights": np.array(["a", "b", "c"])}, TypeError, "but is <U1"),
        (
            {"class_weights": np.ones(2)},
            ShapeError,
            r"class_weights should be \(3,\) but is \(2,\)",
        ),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing should be from 0 to 1 but is 1.5"),
    ],
)
def test_options_that_are_none(options, kind, message):
    with pytest.raises(kind, match=message):
        ops.cross_entropy(Tensor(LOGITS), np.array([0, 1]), **options)


def test_an_empty_batch_has_no_mean():
    with pytest.raises(ShapeError, match="the batch is empty"):
        ops.cross_entropy(Tensor(LOGITS[:0]), np.array([], int))
