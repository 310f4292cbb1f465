"""The contract that every kernel and every op of every backend keeps, as functions to run.

    ft.testing.check_backend("cpu")          # all of it, for whoever writes a backend
    ft.testing.check_kernel(case, "cpu")     # one case of ft.testing.KERNEL_CASES
    ft.testing.check_op(case, "cpu")         # one case of ft.testing.OP_CASES
    ft.testing.check_function(f, inputs)     # an operation of your own

What is right is what the reference backend computes in float64. A float32 result may differ from
it by what rounding explains, and that is measured, not tuned: the float64 computation is repeated
with inputs that are off by one float32 rounding. Where that moves the result by s, an algorithm
that sums K terms one after the other may be off by about sqrt(K) s.

NaN and infinity come through. A denormal number, below 1.2e-38 in float32, may count as 0, given or
as a result on the way: a CPU may be a hundred times as slow with such.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy import ndarray as Array

from tinyft import backends, ops
from tinyft.engine.tape import check_saved, no_grad
from tinyft.engine.tensor import Tensor
from tinyft.errors import TinyftError
from tinyft.testing.function import argument_names, as_op
from tinyft.testing.gradient_check import GradcheckError, GradcheckReport, gradcheck
from tinyft.testing.kernel_cases import KERNEL_CASES, Case, KernelCase
from tinyft.testing.op_cases import OP_CASES, REFUSALS, OpCase, Refusal

Run = Callable[[str, dict[str, Array]], list[Array]]  # (backend's name, arrays) -> results
AnyCase = KernelCase | OpCase | Refusal
Kind = TypeVar("Kind", bound=Case)

ROUNDING = 2.0**-24  # half the distance between two float32 numbers near 1
BF16_ROUNDING = 2.0**-8  # the same of bf16, to which `cpu:bf16` rounds the factors of convolutions
# sqrt(K) s is the error's size, not its bound: 5 is what Winograd's transforms cost against a
# plain sum (cpu backend's README), and covers direct kernels, whose order of summing differs.
SLACK = 5
LARGEST = 4  # the largest of 10,000 normal errors is four times their root mean square
VARIATIONS = 6  # how often inputs are varied to measure s
THREADED, THREADS = ("cpu", "cpu:bf16"), (1, 2, 4)
DENORMAL = 1e-40
SMALLEST = float(np.finfo(np.float32).smallest_normal)  # 1.2e-38: with all its digits


__tracebackhide__ = True  # as in function.py


class ContractError(TinyftError, AssertionError):
    """A kernel or an op that does not keep the contract; one line per promise broken."""


def check_backend(name: str) -> str:
    """Run the whole contract against the backend of that name; a sentence on what was checked.

    Raises: ContractError with everything that failed
    """
    failures = [failure for family in check_families(name) for failure in family.failures]
    if failures:
        raise ContractError("\n".join([f"{len(failures)} cases failed on {name}", *failures]))
    return (
        f"{name}: {len(KERNEL_CASES)} kernel cases, {len(OP_CASES)} op cases and "
        f"{len(REFUSALS)} refusals passed"
    )


@dataclass(frozen=True)
class Family:
    """The cases of one kernel, or of one op and its refusals, and which of them failed."""

    kind: str  # "kernel" or "op"
    subject: str
    cases: int
    failures: list[str]


def subjects() -> list[str]:
    """The names of all kernels and ops, in the order of the alphabet."""
    return sorted({case.subject for case in _every_case()})


def _every_case() -> list[AnyCase]:
    return [*KERNEL_CASES, *OP_CASES, *REFUSALS]


def check_families(backend: str, only: str | None = None) -> Iterator[Family]:
    """Run the contract of every kernel and op, or of `only` one; each as soon as it has run.

    A GPU's convolutions work in fp32 meanwhile. Raises: DeviceError if there is no such backend
    """
    families: defaultdict[tuple[str, str], list[AnyCase]] = defaultdict(list)
    for case in _every_case():
        kind = "kernel" if isinstance(case, KernelCase) else "op"
        if only in (None, case.subject):
            families[kind, case.subject].append(case)
    with precision(backend, "fp32"):
        for (kind, subject), cases in families.items():
            failures = []
            for case in cases:
                try:
                    check_case(case, backend)
                except ContractError as error:
                    failures.append(str(error))
                except Exception as error:  # a wrong kernel may raise anything
                    failures.append(f"{case} on {backend}: raises {type(error).__name__}: {error}")
            yield Family(kind, subject, len(cases), failures)


def check_case(case: AnyCase, backend: str) -> None:
    """Check one case of any kind. Raises: ContractError"""
    if isinstance(case, KernelCase):
        check_kernel(case, backend)
    elif isinstance(case, OpCase):
        check_op(case, backend)
    else:
        check_refusal(case, backend)


def check_kernel(case: KernelCase, backend: str = "auto") -> None:
    """Check one call of one kernel: values, dtype, layout, inputs, strides, threads, NaN.

    Raises: ContractError
    """
    findings = _Findings(case, backend, functools.partial(kernel_results, case), draw(case))
    findings.common(itertools.repeat(case.any_order))
    findings.own_memory()
    findings.raise_if_any()


def kernel_results(case: KernelCase, backend: str, arrays: dict[str, Array]) -> list[Array]:
    """Call the kernel of a case with these arrays; its results in main memory."""
    given = {n: a.copy() if n in case.written else a for n, a in arrays.items()}
    computing = backends.get(backend)
    placed = {n: computing.upload(a) for n, a in given.items()}
    with computing.current(), np.errstate(all="ignore"):
        result = case.call(computing, **placed)
    _show_changes(given, placed)
    return list(map(backends.host, result if isinstance(result, tuple) else [result]))


def check_op(case: OpCase, backend: str = "auto") -> None:
    """Check one call of one op: what `check_kernel` checks, for its result and all its gradients,
    and the gradients against finite differences.

    Raises: ContractError
    """

    def run(name: str, arrays: dict[str, Array]) -> list[Array]:
        placed = {n: backends.get(name).upload(a) for n, a in arrays.items()}
        tensors, upstream = _tensors(case, placed), placed["upstream"]
        with backends.use(name), check_saved(), np.errstate(all="ignore"):
            out = _first(case.call(**tensors))
            out.backward(upstream)
        _show_changes(arrays, placed)
        leaves = [t for t in tensors.values() if isinstance(t, Tensor)]
        gradients = [t.backend.zeros_like(t.data) if t.grad is None else t.grad for t in leaves]
        return list(map(backends.host, [out.data, *gradients]))

    arrays = draw(case)
    with backends.use("reference"), no_grad():
        out = result_of(case, arrays)
    upstream = np.random.default_rng(1).standard_normal(out.shape)
    arrays["upstream"] = np.asarray(upstream, np.float32)
    findings = _Findings(case, backend, run, arrays)
    differentiable = [n for n, t in _tensors(case, arrays).items() if isinstance(t, Tensor)]
    findings.common([False, *(n in case.any_order for n in differentiable)])
    findings.differences(differentiable)
    findings.one_gradient(differentiable)
    if case.subject.startswith("batch_norm"):
        findings.unfused()
    findings.raise_if_any()


def check_function(
    fn: Callable[..., Any],
    inputs: Iterable[Array],
    *,
    backward: Callable[..., Any] | None = None,
    backend: str = "auto",
) -> None:
    """Check a function of yours as the contract checks an op: `fn(*inputs)` in float32 against
    float64 in every memory layout, with NaN and denormal numbers, on all threads, its gradients
    against finite differences, and that no input is written to.

    `fn` is an op, a function of Tensors, or with `backward` a pair for NumPy, as for `gradcheck`.

    Raises: ContractError with every promise that is not kept
    """
    name = getattr(fn, "__name__", type(fn).__name__).replace("<lambda>", "your function")
    inputs = [np.asarray(x) for x in inputs]
    names = [n or f"input_{i}" for i, n in enumerate(argument_names(fn, len(inputs)))]
    given = dict(zip(names, inputs, strict=True))
    compute = as_op(fn, backward) if backward else fn
    terms = max(x.size for x in given.values())
    check_op(
        OpCase(
            name, "as given", lambda rng: given, terms, compute=lambda **x: compute(*x.values())
        ),
        backend,
    )


def check_gradients(
    case: OpCase, arrays: dict[str, Array], backend: str = "auto", **options: Any
) -> GradcheckReport:
    """Compare the gradients of one call of an op with finite differences, in float64; `options` are
    those of `gradcheck`.

    Raises: GradcheckError
    """
    exact, computing = as_float64(arrays), backends.get(backend)
    checked = [name for name, x in _tensors(case, exact).items() if isinstance(x, Tensor)]
    fixed = {n: computing.upload(a) for n, a in exact.items() if n not in (*checked, "upstream")}

    def function(*values: Tensor) -> Tensor:
        moved = [value.to(computing.device) for value in values]
        return _first(case.call(**dict(zip(checked, moved, strict=True)), **fixed)).to("cpu")

    function.__name__ = case.subject
    inputs = [exact[name] for name in checked]
    empty = any(not x.size for x in inputs)  # then no gradient is another than 0
    with backends.use(backend):
        return gradcheck(function, inputs, names=checked, allow_zero=empty, **options)


def check_refusal(case: Refusal, backend: str = "auto") -> None:
    """Check that a wrong call raises the right error, which names op, argument, expected and given.

    Raises: ContractError
    """
    with backends.use(backend):
        try:
            case.call()
        except case.error as error:
            missing = [w for w in (f"{case.subject}:", *case.words) if w not in str(error)]
            if missing:
                raise ContractError(f"{case}: {str(error)!r} does not say {missing}") from None
            return
        except Exception as error:
            raise ContractError(
                f"{case}: expected {case.error.__name__}, got {type(error).__name__}: {error}"
            ) from error
    raise ContractError(f"{case}: expected {case.error.__name__}, nothing was raised")


# -------------------------------------------------------------------------------------- comparisons


class Spread(NamedTuple):
    """The distance between two results: the norm of their difference, and its largest element."""

    norm: float
    largest: float


def rounding_spread(
    run: Callable[[dict[str, Array]], list[Array]], arrays: dict[str, Array],
    fixed: tuple[str, ...], rounding: float = ROUNDING,
) -> list[Spread]:  # fmt: skip
    """Measure how far each result moves if the inputs are off by one rounding, float32's.

    `run` computes in float64; arrays named in `fixed`, and integers, are not varied.
    """
    rng = np.random.default_rng(2)
    exact = [np.asarray(r, np.float64) for r in run(arrays)]
    varied = dict(arrays)
    moved = [Spread(0.0, 0.0)] * len(exact)
    for _ in range(VARIATIONS):
        for name, array in arrays.items():
            if array.dtype.kind == "f" and name not in fixed:
                varied[name] = array * (1 + rounding * rng.standard_normal(array.shape))
        with np.errstate(all="ignore"):
            steps = [np.asarray(r) - e for r, e in zip(run(varied), exact, strict=True)]
        for i, step in enumerate(steps):
            largest = max(moved[i].largest, np.abs(step).max(initial=0))
            moved[i] = Spread(max(moved[i].norm, float(np.linalg.norm(step))), largest)
    return moved


def close_enough(result: Array, exact: Array, spread: Spread, terms: int) -> str | None:
    """None if a float32 result is as near to the exact one as rounding allows, else what is wrong.

    `spread` comes from `rounding_spread`. The result itself is rounded too, once.
    """
    if exact.dtype.kind in "iub":
        return None if np.array_equal(result, exact) else "integers differ from the reference"
    error = np.asarray(result, np.float64) - exact
    growth = SLACK * np.sqrt(terms)
    norm_allowed = growth * (spread.norm + ROUNDING * np.linalg.norm(exact))
    largest = np.abs(error).max(initial=0)
    largest_allowed = growth * LARGEST * (spread.largest + ROUNDING * np.abs(exact).max(initial=0))
    if np.linalg.norm(error) <= norm_allowed and largest <= largest_allowed:
        return None
    return (
        f"differs from the float64 reference by {np.linalg.norm(error):.3g} in norm and "
        f"{largest:.3g} at most, where rounding explains {norm_allowed:.3g} and "
        f"{largest_allowed:.3g}"
    )


def layouts(array: Array) -> dict[str, Array]:
    """The same values in other memory: transposed, every second element, offset, read-only."""
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]) if array.ndim else (2,), array.dtype)
    sliced = wide[..., ::2] if array.ndim else wide[0:1].reshape(())
    sliced[...] = array
    shifted = np.zeros(array.size + 1, array.dtype)[1:].reshape(array.shape)
    shifted[...] = array
    frozen = np.array(array)
    frozen.flags.writeable = False
    return {
        "transposed": np.array(array, order="F"),
        "sliced": sliced,
        "offset": shifted,
        "read-only": frozen,
    }


def draw(case: KernelCase | OpCase) -> dict[str, Array]:
    """The arrays of a case in float32, drawn with a seed of its own."""
    seed = list(str(case).encode())
    arrays = case.arrays(np.random.default_rng(seed))
    return {n: _as(np.float32, np.asarray(array)) for n, array in arrays.items()}


def as_float64(arrays: dict[str, Array]) -> dict[str, Array]:
    """The float arrays in float64, all others as they are."""
    return {n: _as(np.float64, array) for n, array in arrays.items()}


def _as(dtype: type, array: Array) -> Array:
    return array.astype(dtype) if array.dtype.kind == "f" else array


def _tensors(case: OpCase, arrays: dict[str, Array]) -> dict[str, Any]:
    """Arguments of an op: Tensors around the arrays themselves, constants as they are."""
    arguments: dict[str, Any] = {n: a for n, a in arrays.items() if n != "upstream"}
    for name, array in arguments.items():
        if name not in case.constants and array.dtype.kind == "f":
            arguments[name] = Tensor.wrap(array)
            arguments[name].requires_grad = True
    return arguments


def _show_changes(given: dict[str, Array], placed: dict[str, Array]) -> None:
    """Write into the originals what a kernel wrote into arrays that were moved to its device."""
    for name, array in placed.items():
        after = backends.host(array)
        if after is not given[name] and not _equal([after], [given[name]]):
            given[name].setflags(write=True)
            given[name][...] = after


def result_of(case: OpCase, arrays: dict[str, Array]) -> Tensor:
    """Compute the case's op: its result, or of several the one with a gradient."""
    return _first(case.call(**_tensors(case, arrays)))


def _first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


@contextlib.contextmanager
def precision(backend: str, name: str) -> Iterator[None]:
    """Within this block a GPU's convolutions work in "fp32" or "tf32"; others have no choice."""
    computing = backends.get(backend)
    before = computing.precision if backend.startswith("gpu") else None
    if before:
        computing.precision = name
    try:
        yield
    finally:
        if before:
            computing.precision = before


@contextlib.contextmanager
def working_with_threads(count: int) -> Iterator[None]:
    """Within this block the CPU backend works with `count` threads."""
    from tinyft.backends.cpu.runtime import threads  # where Numba is

    before = threads.get_num_threads()
    threads.set_num_threads(count)
    try:
        yield
    finally:
        threads.set_num_threads(before)


# ----------------------------------------------------------------------------------------- findings


class _Findings(Generic[Kind]):
    """Checks one case on one backend, promise by promise, and collects what is wrong."""

    def __init__(self, case: Kind, backend: str, run: Run, arrays: dict[str, Array]):
        self.case, self.run, self.arrays = case, run, arrays
        self.backend = backends.get(backend).name
        self.lines: list[str] = []
        given = as_float64(arrays)
        self.exact = run("reference", given)
        in_bf16 = case.subject.startswith("conv2d") and self.backend == "cpu:bf16"  # sums are not
        self.terms, unit = (1, BF16_ROUNDING) if in_bf16 else (case.terms, ROUNDING)
        self.spread = rounding_spread(lambda a: run("reference", a), given, case.decisive, unit)

    def add(self, line: str) -> None:
        self.lines.append(f"{self.case} on {self.backend}: {line}")

    def raise_if_any(self) -> None:
        if self.lines:
            raise ContractError("\n".join(self.lines))

    def common(self, any_order: Iterable[bool]) -> None:
        """The promises that kernels and ops share."""
        before = {n: a.copy() for n, a in self.arrays.items()}
        results = self.run(self.backend, self.arrays)
        for name, array in self.arrays.items():
            if not np.array_equal(array, before[name]):
                self.add(f"writes into {name}")
        for i, (result, truth, free) in enumerate(
            zip(results, self.exact, any_order, strict=False)
        ):
            self._form(i, result, truth, free)
        if self.lines:
            return
        self._values("", results)
        every = {n: layouts(a) for n, a in self.arrays.items()}
        for kind in next(iter(every.values())):
            given = {n: every[n][kind] for n in self.arrays}
            self._values(f" of {kind} inputs", self.run(self.backend, given))
        self._repeated(results)
        self._float64()
        self._threads(results)
        self._not_finite()
        self._denormal()

    def _form(self, i: int, result: Array, truth: Array, any_order: bool) -> None:
        if result.shape != truth.shape:
            self.add(f"result {i} has shape {result.shape}, expected {truth.shape}")
        kind = np.dtype(np.float32) if truth.dtype.kind == "f" else truth.dtype
        both_integers = {result.dtype.kind, kind.kind} <= set("iu")
        if result.dtype != kind and not both_integers:
            self.add(f"result {i} is {result.dtype}, expected {kind}")
        if not any_order and not result.flags.c_contiguous:
            self.add(f"result {i} is not C-contiguous")

    def _values(self, how: str, results: list[Array]) -> None:
        for i, (result, truth) in enumerate(zip(results, self.exact, strict=True)):
            problem = close_enough(result, truth, self.spread[i], self.terms)
            if problem:
                self.add(f"result {i}{how} {problem}")

    def _repeated(self, results: list[Array]) -> None:
        """The same bits again; and a later call leaves the earlier result alone."""
        kept = [r.copy() for r in results]
        again = self.run(self.backend, self.arrays)
        self.run(
            self.backend, {n: a * 2 if a.dtype.kind == "f" else a for n, a in self.arrays.items()}
        )
        if not _equal(results, kept) or not _equal(again, kept):
            self.add("a second call gives other bits, or changes the first call's result")

    def _float64(self) -> None:
        """Up to the order of a sum; on the host to the bit, where the reference computes it."""
        results = self.run(self.backend, as_float64(self.arrays))
        for result, exact in zip(results, self.exact, strict=True):
            largest = 0 if exact.dtype.kind != "f" else 1e-10 * np.abs(exact).max(initial=0)
            if largest:
                same = np.allclose(result, exact, rtol=1e-10, atol=largest, equal_nan=True)
            else:
                same = _equal([result], [exact])
            if not same:
                self.add("float64 does not give the reference's result")
        if any(a.dtype != b.dtype for a, b in zip(results, self.exact, strict=True)):
            self.add(f"float64 inputs give {[r.dtype.name for r in results]}")

    def _threads(self, results: list[Array]) -> None:
        for count in THREADS if self.backend in THREADED else ():
            with working_with_threads(count):
                if not _equal(self.run(self.backend, self.arrays), results):
                    self.add(f"{count} threads give other bits")

    def _having(self, value: float, name: str, backend: str) -> list[Array]:
        """The results where one number of array `name` is `value`."""
        changed = self.arrays[name].copy()
        changed.reshape(-1)[changed.size // 2] = value
        return self.run(backend, {**self.arrays, name: changed})

    def _not_finite(self) -> None:
        """Check that no finite number comes out where NaN or infinity in an input makes the
        reference's result NaN or infinite. These may reach further: Winograd mixes a tile's
        pixels.
        """
        for name in self._floats():
            for value in (np.nan, np.inf, -np.inf):
                expected = self._having(value, name, "reference")
                results = self._having(value, name, self.backend)
                for i, (result, truth) in enumerate(zip(results, expected, strict=True)):
                    hidden = np.isfinite(result) & ~np.isfinite(truth)
                    if hidden.any():
                        self.add(f"result {i} hides {value} in {name} at {hidden.sum()} places")

    def _denormal(self) -> None:
        """A denormal number counts as 0, or as itself: as in the reference, or where that rounds
        otherwise, as the smallest number that is normal.
        """
        for name in self._floats():
            right = [
                self._having(0, name, self.backend),
                self._having(DENORMAL, name, "reference"),
                self._having(np.finfo(self.arrays[name].dtype).tiny, name, self.backend),
            ]
            for i, result in enumerate(self._having(DENORMAL, name, self.backend)):
                # to five digits, or to less than the smallest normal number
                near = [np.isclose(result, x[i], 1e-5, SMALLEST, equal_nan=True) for x in right]
                wrong = ~np.any(near, axis=0)
                if wrong.any():
                    self.add(f"result {i}: {DENORMAL} in {name} is wrong at {wrong.sum()} places")

    def _floats(self) -> list[str]:
        return [n for n, a in self.arrays.items() if a.dtype.kind == "f" and a.size]

    def own_memory(self: _Findings[KernelCase]) -> None:
        """A kernel's results are new arrays, but for those that it may lend."""
        lent = (*self.case.lent, *self.case.written)
        for i, result in enumerate(self.run(self.backend, self.arrays)):
            for name, array in self.arrays.items():
                if name not in lent and np.shares_memory(result, array):
                    self.add(f"result {i} shares memory with {name}")

    def differences(self: _Findings[OpCase], differentiable: list[str]) -> None:
        """Every gradient against finite differences: every element where that is quick (300: about
        0.1 s), projections above.
        """
        few = sum(self.arrays[name].size for name in differentiable) <= 300
        options = {"mode": "full", "rounds": 1} if few else {"mode": "fast", "rounds": 3}
        try:
            check_gradients(self.case, self.arrays, self.backend, **options)
        except GradcheckError as error:
            self.add(str(error))

    def one_gradient(self: _Findings[OpCase], differentiable: list[str]) -> None:
        """Asked for one input's gradient alone, an op gives that one, the same, and no other."""
        whole = self._gradients(differentiable, differentiable)
        for name in differentiable:
            alone = self._gradients(differentiable, [name])
            if not _equal([alone[name]], [whole[name]]):
                self.add(f"the gradient of {name} alone is another than with all others")
            if any(alone[other] is not None for other in differentiable if other != name):
                self.add(f"asked for the gradient of {name} alone, others come too")

    def _gradients(
        self: _Findings[OpCase], differentiable: list[str], wanted: list[str]
    ) -> dict[str, Array | None]:
        placed = {n: backends.get(self.backend).upload(a) for n, a in self.arrays.items()}
        tensors = _tensors(self.case, placed)
        for name in differentiable:
            tensors[name].requires_grad = name in wanted
        with backends.use(self.backend):
            _first(self.case.call(**tensors)).backward(placed["upstream"])
        grads = {name: tensors[name].grad for name in differentiable}
        return {n: grad if grad is None else backends.host(grad) for n, grad in grads.items()}

    def unfused(self) -> None:
        """Normalising, adding and rectifying one after the other gives the same."""
        with ops.unfused():
            self._values(", unfused,", self.run(self.backend, self.arrays))


def _equal(results: Sequence[Array | None], others: Sequence[Array | None]) -> bool:
    """True if all bits agree (two NaN do, and two None)."""
    for a, b in zip(results, others, strict=True):
        if a is None or b is None:
            same = a is b
        else:
            same = a is b or np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        if not same:
            return False
    return True
