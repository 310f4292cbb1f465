"""Searches the product that a gradient, or what is missing from it, consists of.

A vector-Jacobian product is made of few things: the upstream gradient, the inputs, the result,
their powers and sums. There are some thousand short products of these; the one that has the numbers
that were measured is a sentence that a person understands: "the term dout * b is missing".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, combinations, permutations, product

import numpy as np
from numpy import ndarray as Array

ALIKE = 1e-5  # of the norm: far above the error of a difference (1e-8), far below any mistake
FEWEST = 3  # elements: fewer fit anything
FACTORS = (1, -1, 2, -2, 0.5, -0.5, 3, -3)
LARGEST = 20_000  # elements of an array that products are made of

Term = tuple[str, Array]  # as it is written in NumPy, and its value


def alike(a: Array, b: Array) -> bool:
    """True if two arrays are equal up to the error of finite differences."""
    return bool(np.linalg.norm(a - b) <= ALIKE * np.linalg.norm(b))


def factors(known: dict[str, Array]) -> list[Term]:
    """List what a term may be multiplied by: each known array, its square and inverse, and what
    the derivatives of tanh, sigmoid and logarithms are made of.
    """
    single = []
    for name, x in known.items():
        single += [(name, x), (f"{name}**2", x**2), (f"(1 - {name})", 1 - x)]
        single += [(f"(1 - {name}**2)", 1 - x**2), (f"(1 + {name})", 1 + x)]
        if (x != 0).all():
            single += [(f"1 / {name}", 1 / x), (f"1 / {name}**2", 1 / x**2)]
    return single


def products(known: dict[str, Array]) -> Iterator[Term]:
    """Yield the products of up to two factors, the shortest first."""
    single = factors(known)
    yield from single
    for (a, x), (b, y) in combinations(single, 2):
        if _fit(x, y):
            yield _times(a, b), x * y


def _fit(x: Array, y: Array) -> bool:
    """True if their shapes broadcast."""
    pairs = zip(x.shape[::-1], y.shape[::-1], strict=False)
    return all(n == m or 1 in (n, m) for n, m in pairs)


def terms(dout: Array, known: dict[str, Array], shape: tuple[int, ...]) -> Iterator[Term]:
    """Yield what the gradient of an input of that `shape` may consist of, the shortest first:
    dout, times factors, summed over what broadcasting repeated, in a product of matrices, or within
    a mean.
    """
    plain: list[Term] = [("dout", dout)]
    plain += [(_times("dout", text), dout * x) for text, x in products(known) if _fit(dout, x)]
    for text, value in plain:
        if value.shape == shape:
            yield text, value
    for text, value in plain:
        yield from _sums(text, value, shape)
    yield from _matrix_products(dout, known, shape)
    if dout.shape == shape:
        for _, text, value in _centred(plain, known):
            yield text, value


def another_axis(
    dout: Array, known: dict[str, Array], missing: Array, elements: Array, shape: tuple[int, ...]
) -> str | None:
    """Say which sum or mean within a term runs over the wrong axis, if that is all there is."""
    if dout.shape != shape:
        return None
    plain = [("dout", dout)]
    plain += [(_times("dout", n), dout * x) for n, x in known.items() if x.shape == shape]
    by_term = defaultdict(list)
    for kind, text, value in _centred(plain, known):
        by_term[kind].append((text, value))
    for same in by_term.values():
        for (used, a), (right, b) in permutations(same, 2):
            if matching(missing, iter([("", b - a)]), elements) is not None:
                return f"{used} is used, where {right} belongs: another axis"
    return None


def _sums(text: str, value: Array, shape: tuple[int, ...]) -> Iterator[Term]:
    """The sums of a product over axes that leave as many elements as the input has."""
    size = int(np.prod(shape))
    for count in range(1, value.ndim + 1):
        for axes in combinations(range(value.ndim), count):
            summed = value.sum(axes)
            if summed.size == size and value.shape != shape:
                over = "" if count == value.ndim else f"{axes[0] if count == 1 else axes}"
                yield f"{_bracketed(text)}.sum({over})", summed.reshape(shape)


def _matrix_products(dout: Array, known: dict[str, Array], shape: tuple) -> Iterator[Term]:
    if dout.ndim < 2:
        return
    for name, x in known.items():
        pairs = [(("dout", dout), (name, x)), ((name, x), ("dout", dout))]
        for (a, left), (b, right) in pairs if x.ndim >= 2 else ():
            for turn_a, turn_b in product((False, True), repeat=2):
                first = left.swapaxes(-1, -2) if turn_a else left
                second = right.swapaxes(-1, -2) if turn_b else right
                if first.shape[-1] == second.shape[-2]:
                    try:
                        value = first @ second
                    except ValueError:
                        continue
                    if value.shape == shape:
                        yield f"{a}{'.T' * turn_a} @ {b}{'.T' * turn_b}", value


def _centred(plain: list[Term], known: dict[str, Array]) -> Iterator[tuple[str, str, Array]]:
    """Find terms through a mean or a sum over some axes, such as softmax's
    out * (dout * out).sum(-1): what they are but for the axes, as they are written, their values.
    """
    short = [term for term in plain if term[1].shape == plain[0][1].shape][: 1 + 7 * len(known)]
    ndim = plain[0][1].ndim
    sets = {(ndim - 1,), (0,), tuple(range(ndim)), tuple(range(ndim - 1)), tuple(range(1, ndim))}
    for axes in sorted(sets - {()}):
        over = "" if len(axes) == ndim else str(axes[0] if len(axes) == 1 else axes)
        for text, value in short:
            summed, mean = value.sum(axes, keepdims=True), value.mean(axes, keepdims=True)
            fitting = ((n, x) for n, x in known.items() if _fit(x, value))
            for name, factor in chain([("", np.ones(()))], fitting):
                for kind, moved in (("sum", summed), ("mean", mean)):
                    spread = factor * np.broadcast_to(moved, value.shape)
                    if spread.shape == value.shape:
                        written = _times(name, f"{_bracketed(text)}.{kind}")
                        yield written, f"{written}({over})", spread


def matching(target: Array, candidates: Iterator[Term], elements: Array | slice) -> str | None:
    """The first of the candidates that is the target at these elements, up to a factor that one
    writes: 1, -1, 2, 0.5, 3.
    """
    if target.size < FEWEST or not target.any():
        return None
    for text, value in candidates:
        flat = np.ascontiguousarray(value).reshape(-1)
        if flat.size == 1:
            continue
        flat = flat[elements]
        square = float(flat @ flat)
        if not np.isfinite(square) or square == 0:
            continue
        factor = float(flat @ target) / square
        nearest = min(FACTORS, key=lambda f: abs(f - factor))
        if abs(factor - nearest) < 1e-4 and alike(nearest * flat, target):
            return {1.0: "", -1.0: "-"}.get(nearest, f"{nearest:g} * ") + text
    return None


def factored(
    analytic: Array, numeric: Array, known: dict[str, Array], shape: tuple, elements: Array
) -> str | None:
    """The factor, of up to two, that all of `analytic` lacks."""
    for text, value in products(known):
        try:
            flat = np.broadcast_to(value, shape).reshape(-1)[elements]
        except ValueError:
            continue
        if matching(numeric, iter([("", analytic * flat)]), slice(None)) is not None:
            return text
    return None


def _times(a: str, b: str) -> str:
    if not a:
        return b
    return f"{a} / {b[4:]}" if b.startswith("1 / ") else f"{a} * {b}"


def _bracketed(text: str) -> str:
    return f"({text})" if " " in text else text
