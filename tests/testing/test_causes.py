"""Wrong gradients as people write them: each must be refused, and most of them named.

EARLIER were there while the causes were written, LATER came after: 30 of 34 and 18 of 20 are named.
Of those with NOT_NAMED no cause is known.
"""

from pathlib import Path

import numpy as np
import pytest

import tinyft as ft

NOT_NAMED = "no short product"
rng = np.random.default_rng(0)


def n(*shape):
    return rng.standard_normal(shape)


def pos(*shape):
    return rng.uniform(0.5, 2, shape)


def sig(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


Y = np.array([0, 2, 1, 3])


def ce(x, y):
    return -np.log(softmax(x)[np.arange(len(y)), y]).mean()


def dce(dout, x, y, scale=True, one=True):
    dx = softmax(x)
    dx[np.arange(len(y)), y] -= one
    return dout * dx / (len(y) if scale else 1), None


def norm(x):
    return (x - x.mean(0)) / x.std(0)


def dnorm(dout, x, m=True, v=True):
    out = norm(x)
    return (dout - m * dout.mean(0) - v * out * (dout * out).mean(0)) / x.std(0)


def take(x):
    return x[[0, 0, 2]]


def dtake(dout, x):
    dx = np.zeros_like(x)
    dx[[0, 0, 2]] = dout
    return dx


def conv(x, w):
    return np.stack([(x[:, i : i + 3] * w).sum(1) for i in range(4)], 1)


def conv_grad(dout, x, w):
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for i in range(4):
        dx[:, i : i + 3] += dout[:, i : i + 1] * w[::-1]
        dw += (dout[:, i : i + 1] * x[:, i : i + 3]).sum(0)
    return dx, dw


# Name, words of the cause, forward, backward, inputs.
EARLIER = [
    ("mul: factor b forgotten", "the factor b is missing",
     lambda a, b: a * b, lambda d, a, b: (d, d * a), n(3, 4), n(3, 4)),
    ("mul: own instead of other", "this is the gradient of input 1 (b)",
     lambda a, b: a * b, lambda d, a, b: (d * a, d * b), n(3, 4), n(3, 4)),
    ("square: no 2", "half of what it should be", lambda x: x**2, lambda d, x: d * x, n(3, 4)),
    ("square: no x", "the factor x is missing", lambda x: x**2, lambda d, x: 2 * d, n(3, 4)),
    ("dout unused", "does not use dout", lambda x: x**2, lambda d, x: 2 * x, n(3, 4)),
    ("dout unused in bias", "does not use dout",
     lambda x, b: x + b, lambda d, x, b: (d, np.full(b.shape, float(len(x)))), n(5, 4), n(4)),
    ("div: sign", "the sign is wrong",
     lambda a, b: a / b, lambda d, a, b: (d / b, d * a / b**2), n(3, 4), pos(3, 4)),
    ("div: b not squared", "the factor 1 / b is missing",
     lambda a, b: a / b, lambda d, a, b: (d / b, -d * a / b), n(3, 4), pos(3, 4)),
    ("div: da times b", "the factor 1 / b**2 is missing",
     lambda a, b: a / b, lambda d, a, b: (d * b, -d * a / b**2), n(3, 4), pos(3, 4)),
    ("swish without 1+", "the term dout / x * out is missing",
     lambda x: x * sig(x), lambda d, x: d * sig(x) * x * (1 - sig(x)), n(2, 3)),
    ("sigmoid: 1-s missing", "the factor (1 - out) is missing",
     lambda x: sig(x), lambda d, x: d * sig(x), n(3, 4)),
    ("tanh not squared", "the factor (1 + out) is missing",
     np.tanh, lambda d, x: d * (1 - np.tanh(x)), n(3, 4)),
    ("exp: x for out", "the factor 1 / x * out is missing", np.exp, lambda d, x: d * x, n(3, 4)),
    ("bias: wrong axis", "computes dout.sum(1), and should compute dout.sum(0)",
     lambda x, b: x + b, lambda d, x, b: (d, d.sum(1)), n(4, 4), n(4)),
    ("bias: mean for sum", "5 times too small",
     lambda x, b: x + b, lambda d, x, b: (d, d.mean(0)), n(5, 4), n(4)),
    ("mean: not divided", "4 times too large",
     lambda x: x.mean(1), lambda d, x: np.repeat(d[:, None], x.shape[1], 1), n(5, 4)),
    ("mean: divided by N not C", "the same factor 0.8",
     lambda x: x.mean(1), lambda d, x: np.repeat(d[:, None], x.shape[1], 1) / len(x), n(5, 4)),
    ("linear: dW transposed", "transposed: the right numbers with axes in the order (1, 0)",
     lambda x, W: x @ W, lambda d, x, W: (d @ W.T, (x.T @ d).T), n(5, 4), n(4, 4)),
    ("linear: dx with W", "computes dout @ W, and should compute dout @ W.T",
     lambda x, W: x @ W, lambda d, x, W: (d @ W, x.T @ d), n(5, 4), n(4, 4)),
    ("softmax: no sum term", "the term -out * (dout * out).sum(1) is missing",
     softmax, lambda d, x: softmax(x) * d, n(4, 5)),
    ("softmax: sum over wrong axis", "out * (dout * out).sum(1) belongs",
     softmax, lambda d, x: softmax(x) * (d - (d * softmax(x)).sum(0, keepdims=True)), n(4, 5)),
    ("softmax: as sigmoid", NOT_NAMED,
     softmax, lambda d, x: softmax(x) * (1 - softmax(x)) * d, n(4, 5)),
    ("cross entropy: not / N", "4 times too large",
     ce, lambda d, x, y: dce(d, x, y, scale=False), n(4, 5), Y),
    ("cross entropy: no -1", "4 of 20 elements are wrong",
     ce, lambda d, x, y: dce(d, x, y, one=False), n(4, 5), Y),
    ("norm: no mean term", "a mean's part", norm, lambda d, x: dnorm(d, x, m=False), n(6, 3)),
    ("norm: no variance term", "the variance of a normalisation",
     norm, lambda d, x: dnorm(d, x, v=False), n(6, 3)),
    ("shift by one", NOT_NAMED, lambda x: x[:, 1:] - x[:, :-1],
     lambda d, x: np.concatenate([d, np.zeros((len(d), 1))], 1), n(4, 6)),
    ("cumsum not reversed", NOT_NAMED,
     lambda x: np.cumsum(x, 1), lambda d, x: np.cumsum(d, 1), n(4, 5)),
    ("roll wrong way", "right numbers in other places",
     lambda x: np.roll(x, 1, 1), lambda d, x: np.roll(d, 1, 1), n(4, 5)),
    ("take overwrites", "overwrite instead of adding up", take, dtake, n(4, 3)),
    ("relu: >= -1", "a mask is missing",
     lambda x: np.maximum(x, 0), lambda d, x: d * (x > -1), n(6, 5)),
    ("max: to all ties", "a mask is missing",
     lambda x: x.max(1), lambda d, x: np.repeat(d[:, None], x.shape[1], 1), n(5, 4)),
    ("conv1d flipped", NOT_NAMED, conv, conv_grad, n(3, 6), n(3)),
    ("border left out", "get nothing: is a border",
     lambda x: x * 3, lambda d, x: 3 * d * (np.arange(x.shape[1]) < x.shape[1] - 1), n(5, 4)),
]  # fmt: skip

rng = np.random.default_rng(7)
LATER = [
    ("log: d*x", "the factor 1 / x**2 is missing", np.log, lambda d, x: d * x, pos(3, 4)),
    ("sqrt: no half", "twice too large", np.sqrt, lambda d, x: d / np.sqrt(x), pos(3, 4)),
    ("sqrt: times out", "the factor 1 / x is missing",
     np.sqrt, lambda d, x: d * np.sqrt(x) / 2, pos(3, 4)),
    ("cube: 3x", "the factor x is missing", lambda x: x**3, lambda d, x: 3 * d * x, n(2, 5)),
    ("product of three, one forgotten", "the factor c is missing", lambda a, b, c: a * b * c,
     lambda d, a, b, c: (d * b * c, d * a, d * a * b), n(3, 3), n(3, 3), n(3, 3)),
    ("scale: dscale not times x", "computes dout.sum(0), and should compute (dout * x).sum(0)",
     lambda x, s: x * s, lambda d, x, s: (d * s, d.sum(0)), n(6, 3), n(3)),
    ("scale: dx without s", "the factor s is missing",
     lambda x, s: x * s, lambda d, x, s: (d, (d * x).sum(0)), n(6, 3), n(3)),
    ("sum axis 0, dx not broadcast scale", "4 times too small",
     lambda x: x.sum(0), lambda d, x: np.broadcast_to(d / len(x), x.shape).copy(), n(4, 3)),
    ("outer product swapped", "it should be (dout * b).sum(1)",
     lambda a, b: np.outer(a, b), lambda d, a, b: (d.T @ b, d @ a), n(4), n(4)),
    ("matvec", "transposed",
     lambda W, x: W @ x, lambda d, W, x: (np.outer(x, d), W.T @ d), n(4, 4), n(4)),
    ("residual forgotten: x + f(x)", "the term dout is missing",
     lambda x: x + np.tanh(x), lambda d, x: d * (1 - np.tanh(x) ** 2), n(3, 4)),
    ("leaky relu slope squared", "the factor x / out is missing",
     lambda x: np.where(x > 0, x, 0.1 * x), lambda d, x: np.where(x > 0, d, 0.01 * d), n(4, 5)),
    ("abs: no sign", "the factor x / out is missing", np.abs, lambda d, x: d, n(4, 5)),
    ("clip ignores bounds", "a mask is missing",
     lambda x: np.clip(x, -0.5, 0.5), lambda d, x: d.copy(), n(4, 5)),
    ("mse: mean over wrong count", "5 times too large", lambda p, t: ((p - t) ** 2).mean(),
     lambda d, p, t: (2 * d * (p - t) / len(p), -2 * d * (p - t) / len(p)), n(4, 5), n(4, 5)),
    ("mse: sign of dt", "the sign is wrong", lambda p, t: ((p - t) ** 2).mean(),
     lambda d, p, t: (2 * d * (p - t) / p.size, 2 * d * (p - t) / p.size), n(4, 5), n(4, 5)),
    ("layer norm: no variance term", NOT_NAMED,
     lambda x: (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True),
     lambda d, x: (d - d.mean(1, keepdims=True)) / x.std(1, keepdims=True), n(4, 6)),
    ("log softmax: minus mean", NOT_NAMED, lambda x: x - np.log(np.exp(x).sum(1, keepdims=True)),
     lambda d, x: d - np.exp(x) / np.exp(x).sum(1, keepdims=True) * d.mean(1, keepdims=True),
     n(3, 5)),
    ("max pool 1d to first", "right numbers in other places", lambda x: x.reshape(3, 4, 2).max(2),
     lambda d, x: np.stack([d, d * 0], 2).reshape(3, 8), n(3, 8)),
    ("average pool 1d no half", "twice too large",
     lambda x: x.reshape(3, 4, 2).mean(2), lambda d, x: np.repeat(d, 2, 1), n(3, 8)),
]  # fmt: skip


@pytest.mark.parametrize("mistake", EARLIER + LATER, ids=lambda mistake: mistake[0])
def test_a_planted_mistake_is_refused_and_named(mistake):
    _, words, forward, backward, *inputs = mistake
    with pytest.raises(AssertionError, match="is wrong") as refused:
        ft.gradcheck(forward, inputs, backward=backward)
    # of its own functions an older NumPy does not say that their argument is called x
    assert words in str(refused.value).replace("input_0", "x")


def test_the_page_counts_them():
    named = sum(mistake[1] != NOT_NAMED for mistake in EARLIER + LATER)
    page = (Path(__file__).parents[2] / "docs" / "gradients.md").read_text()
    assert f"Of {len(EARLIER + LATER)} mistakes that people make" in page
    assert f"all are refused and {named} named" in page


def test_the_elements_that_are_wrong_are_drawn():
    def border(dout, x):
        return 3 * dout * (np.arange(5) < 4)

    with pytest.raises(AssertionError) as refused:
        ft.gradcheck(lambda x: 3 * x, [n(2, 5)], backward=border)
    assert str(refused.value).endswith("right (.) and wrong (x):\n    ....x\n    ....x")


def test_numpys_functions_may_hand_a_cache_to_backward():
    def forward(x, w):
        return x * w, (x, w)

    def backward(dout, cache):
        x, w = cache
        return dout * w, dout * x

    report = ft.gradcheck(forward, [n(3, 2), n(3, 2)], backward=backward)
    assert [row.name for row in report.inputs] == ["input 0 (x)", "input 1 (w)"]


def test_a_class_like_pytorchs_function_is_taken_as_it_is():
    class Square:
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, dout):
            (x,) = ctx.saved_tensors
            return 2 * dout * x

    assert "gradcheck Square: passed" in str(ft.gradcheck(Square, [n(3, 2)]))
    Square.backward = staticmethod(lambda ctx, dout: dout * ctx.saved_tensors[0])
    with pytest.raises(AssertionError, match=r"input 0 .x. of Square is wrong"):
        ft.gradcheck(Square, [n(3, 2)])


def test_the_contract_of_a_function_of_ones_own():
    ft.testing.check_function(ft.ops.tanh, [n(3, 4)])

    def swish(x):
        return x * sig(x)

    def slope(dout, x):
        return dout * sig(x) * (1 + x * (1 - sig(x)))

    ft.testing.check_function(swish, [n(3, 4)], backward=slope)
    with pytest.raises(ft.testing.ContractError, match=r"the term dout / x \* out is missing"):
        ft.testing.check_function(
            swish, [n(3, 4)], backward=lambda dout, x: dout * sig(x) * x * (1 - sig(x))
        )

    def writes(x):
        x *= 2
        return x * 1

    with pytest.raises(ft.testing.ContractError, match="writes into x"):
        ft.testing.check_function(writes, [n(3, 4)], backward=lambda dout, x: 2 * dout)


@pytest.mark.parametrize(
    ("gradients", "said"),
    [
        (lambda dout, both: (dout, None), r"input 1 \(b\) .*backward returns no gradient"),
        (lambda dout, both: (dout, dout) if both else (None, None), "of a alone is another"),
    ],
)
def test_the_contract_names_the_gradient_that_does_not_come(gradients, said):
    @ft.op
    def add(a, b):
        both = a.requires_grad and b.requires_grad
        return a.data + b.data, lambda dout: gradients(dout, both)

    with pytest.raises(ft.testing.ContractError, match=f"(?s){said}"):
        ft.testing.check_function(add, [n(3, 4), n(3, 4)])


def test_pytest_shows_the_line_of_the_test():
    with pytest.raises(AssertionError) as refused:
        ft.gradcheck(np.tanh, [n(3)], backward=lambda dout, x: dout)
    shown = [entry for entry in refused.traceback if not entry.ishidden(refused)]
    assert [entry.path.name for entry in shown] == ["test_causes.py"]


def test_the_upstream_gradient_is_not_what_inputs_are_drawn_from():
    x = np.random.default_rng(0).standard_normal((4, 3))
    seen = []

    def backward(dout, x):
        seen.append(dout)
        return dout

    ft.gradcheck(lambda x: x * 1, [x], backward=backward)
    assert not any(np.allclose(dout, x) for dout in seen)
