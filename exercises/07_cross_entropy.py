"""cross_entropy: the gradient of softmax with cross-entropy (20 minutes)

A network gives each picture one number for each class, its logits (N, C). Softmax makes
probabilities of them: exp(logit), divided by the sum of the row. The loss is minus the logarithm of
the probability of the right class (its label), averaged over the N pictures.

Each of the two has a clumsy derivative; together they have a simple one. Write
`backward`: the probabilities, and dlogits. (For the probabilities, subtract the largest logit of
each row first, as forward does: exp(800) is infinite, and the result is the same.)
"""

import numpy as np


def forward(logits, labels):
    shifted = logits - logits.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -log_probabilities[np.arange(len(labels)), labels].mean()


def backward(logits, labels):
    """logits (N, C), labels (N,) whole numbers -> probabilities (N, C), dlogits (N, C)"""
    probabilities = ...
    dlogits = ...
    return probabilities, dlogits


# ------------------------------------------- below: what `tinyft exercises` knows, and you do not

HINTS = [
    "loss of one picture = log(sum of exp(logits)) - logits[label]. What is the derivative of the "
    "first term by one logit? exp(that logit) / sum of exp(logits): its probability.",
    "The second term concerns the label's logit alone: there, subtract 1. "
    "dlogits[np.arange(N), labels] -= 1 does it for all rows.",
    "The loss is a mean over N pictures, so each gets its share: divide by N. The derivation: "
    "docs/derivations.md, 3.",
]


def check(yours):
    import tinyft as ft

    rng = np.random.default_rng(0)
    values, labels = 2 * rng.normal(size=(5, 3)), rng.integers(0, 3, 5)
    logits = ft.Tensor(values, requires_grad=True)
    ft.ops.cross_entropy(logits, labels).backward()
    probabilities, dlogits = yours.backward(values.copy(), labels)
    yield "probabilities", probabilities, np.exp(values) / np.exp(values).sum(1, keepdims=True)
    yield "dlogits", dlogits, logits.grad
    large, _ = yours.backward(values[:1] + np.array([800.0, 0, 0]), labels[:1])
    yield "probabilities of a large logit", large, np.array([[1.0, 0, 0]])
    assert not np.shares_memory(probabilities, dlogits), (
        "both results are one array: what was subtracted for dlogits, probabilities lost too; "
        "begin dlogits with a copy"
    )
