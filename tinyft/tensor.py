"""The engine: a Tensor remembers which op made it, and `backward` walks that memory in reverse.

An op is a function that returns its result and a closure, `backward(dout)`, that turns the
gradient of the result into the gradients of its inputs. The decorator `@op` is the only place
where the tape is written: it puts the closure into a Node that points to the nodes of the inputs.
Nothing else here knows any mathematics but + - * / and @.

Next: tinyft/tensor_text.py
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import inspect
import itertools
import threading
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
from numpy import ndarray as Array

from tinyft import backends, op_mistakes, tensor_text
from tinyft.display import Displayed
from tinyft.errors import ShapeError, TinyftError

Backward = Callable[[Array], tuple[Array | None, ...]]


# ------------------------------------------------------------------------------------------- tensor


class Tensor(Displayed, op_mistakes.NotMethods):
    """An array, its gradient, and how it was made.

    `data` array of numbers; `grad` array of the same shape or None; `requires_grad`; `name`, for
    messages; `node`, the Node that made it, or None for a leaf. Lists and Python numbers become
    float32, arrays keep their dtype. Raises: TypeError for what is no number, and if anything but
    floats should require a gradient

    Example:
        >>> x = Tensor([3.0], requires_grad=True)
        >>> (x * x).backward()
        >>> x.grad
        array([6.], dtype=float32)
    """

    __slots__ = ("__weakref__", "data", "grad", "name", "node", "requires_grad")

    def __init__(self, data: Any, requires_grad: bool = False, name: str | None = None):
        if isinstance(data, Tensor):
            raise TypeError("this is a Tensor already; x.detach() has the same array, no history")
        is_array = hasattr(data, "dtype")
        is_number = not is_array or (data.shape == () and backends.device_of(data) == "cpu")
        array = np.array(data) if is_number else data.copy()
        if not is_array and array.dtype.kind in "iuf":
            array = array.astype(np.float32)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"a tensor holds numbers; got {array.dtype} from {type(data).__name__}")
        if requires_grad and array.dtype.kind != "f":
            raise TypeError(f"only float tensors have gradients; got {array.dtype}")
        self.data = array
        self.grad: Array | None = None
        self.requires_grad = requires_grad
        self.name = name
        self.node: Node | None = None

    @classmethod
    def wrap(cls, array: Array) -> Tensor:
        """A Tensor around `array` itself, not a copy."""
        tensor = cls.__new__(cls)
        tensor.data, tensor.grad, tensor.requires_grad = array, None, False
        tensor.name, tensor.node = None, None
        return tensor

    # Read in C: as methods, these four would be 740 calls of Python in a step.
    shape = property(attrgetter("data.shape"), doc="The size along each axis: a tuple of ints.")
    dtype = property(attrgetter("data.dtype"), doc="The type of its numbers.")
    ndim = property(attrgetter("data.ndim"), doc="How many axes there are.")
    size = property(attrgetter("data.size"), doc="How many numbers there are.")

    @property
    def backend(self) -> backends.Backend:
        return backends.of(self.data)

    def item(self) -> float:
        """The only element, as a Python number."""
        return self.data.item()

    def detach(self) -> Tensor:
        """The same array without its history."""
        return Tensor.wrap(self.data)

    def to(self, device: str) -> Tensor:
        """The same values on another device: "cpu", "gpu", "gpu:1".

        Raises: DeviceError if there is no such device
        """
        return move(self, device)

    def backward(self, gradient: Array | Tensor | None = None) -> None:
        """Add d self / d leaf to the `grad` of every leaf that self was made from; see
        `run_backward`.

        Raises: TypeError for a `gradient` that is no array; ShapeError if it has another shape, or
        is missing where self has not one element; TinyftError if nothing requires a gradient, or
        the graph was used before
        """
        if gradient is None:
            if self.size != 1:
                raise ShapeError(
                    f"backward: a tensor of shape {self.shape} has no single gradient to "
                    "start from; reduce it to one number first, or pass the gradient"
                )
            gradient = self.backend.zeros_like(self.data)
            gradient += 1
        if isinstance(gradient, Tensor):
            gradient = gradient.data
        if not hasattr(gradient, "dtype"):
            raise TypeError(f"backward: expected an array of shape {self.shape}; got {gradient!r}")
        if not self.requires_grad:
            raise TinyftError(
                "backward: nothing that this tensor was made from requires a gradient (gradients "
                "are arrays without history: second derivatives are not supported)"
            )
        if gradient.shape != self.shape:
            raise ShapeError(f"backward: gradient is {gradient.shape}, the tensor {self.shape}")
        run_backward(self, gradient.astype(self.dtype, copy=False))

    def __repr__(self) -> str:
        return tensor_text.as_repr(self)

    def __str__(self) -> str:
        return tensor_text.as_text(self)

    def __add__(self, other: Any) -> Tensor:
        return add(self, as_tensor(other, self))

    def __radd__(self, other: Any) -> Tensor:
        return add(as_tensor(other, self), self)

    def __sub__(self, other: Any) -> Tensor:
        return sub(self, as_tensor(other, self))

    def __rsub__(self, other: Any) -> Tensor:
        return sub(as_tensor(other, self), self)

    def __mul__(self, other: Any) -> Tensor:
        return mul(self, as_tensor(other, self))

    def __rmul__(self, other: Any) -> Tensor:
        return mul(as_tensor(other, self), self)

    def __truediv__(self, other: Any) -> Tensor:
        return div(self, as_tensor(other, self))

    def __rtruediv__(self, other: Any) -> Tensor:
        return div(as_tensor(other, self), self)

    def __matmul__(self, other: Any) -> Tensor:
        return matmul(self, as_tensor(other, self))

    def __rmatmul__(self, other: Any) -> Tensor:
        return matmul(as_tensor(other, self), self)

    def __neg__(self) -> Tensor:
        return neg(self)

    @op_mistakes.ForNumpyAlone
    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **_: Any) -> Tensor:
        """array * tensor, which NumPy asks as np.multiply(array, tensor), is ours; no other is."""
        ours = _NUMPY_OPERATORS.get(ufunc.__name__) if method == "__call__" else None
        if ours is None:
            called = "" if method == "__call__" else f".{method}"
            raise op_mistakes.no_array(f"np.{ufunc.__name__}{called}")
        return ours(*(as_tensor(x, self) for x in inputs))


def as_tensor(value: Any, like: Tensor) -> Tensor:
    """A Tensor as it is; a number, list or array as a constant on the device of `like`. Numbers,
    lists and integers take its dtype, so that they cannot change it.
    """
    if isinstance(value, Tensor):
        return value
    dtype = like.dtype
    is_array = hasattr(value, "dtype")
    array = value if is_array else np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"a tensor cannot take {value!r}, which is no number")
    if array.dtype.kind == "f" and dtype.kind != "f":
        raise TypeError(f"a tensor of {dtype} cannot take {value!r}; make it a float tensor first")
    if not is_array or array.ndim == 0 or array.dtype.kind != "f":
        given = backends.host(array)
        array = np.asarray(given.astype(dtype))
        if dtype.kind != "f" and not np.array_equal(array, given):
            raise TypeError(f"a tensor of {dtype} cannot take {value!r}: it has no such numbers")
    return Tensor.wrap(backends.beside(array, like.data))


# --------------------------------------------------------------------------------------------- tape


class Node:
    """One call of one op: what backward needs, and who provided the inputs.

    `inputs` holds, per tensor argument, the Node that made it, the Tensor itself if it is a leaf
    that requires a gradient, or None. Nodes point to nodes and never to a Tensor that an op made,
    so a result that nobody holds is freed.
    """

    __slots__ = ("backward", "inputs", "layer", "number", "op", "output_shape", "shapes")

    numbers = itertools.count()

    def __init__(self, op: str, inputs: list[Tensor], backward: Backward | None, out: Array):
        # It grows along every edge: sorting by it is a topological order.
        self.number = next(Node.numbers)
        self.op = op
        self.layer = ".".join(_state.layers)
        self.inputs: list[Node | Tensor | None] = []
        self.shapes: list[tuple[int, ...]] = []
        for x in inputs:
            self.inputs.append((x.node or x) if x.requires_grad else None)
            self.shapes.append(x.shape)
        self.backward = backward
        self.output_shape = out.shape

    def __deepcopy__(self, memo: dict) -> Node:
        """Itself: what happened is not done again for a copy of its result."""
        return self

    def __repr__(self) -> str:
        return f"<node {self.number}: {self.op} {self.layer} -> {self.output_shape}>"


class Observer(Protocol):
    """What can watch the engine: called after each op and after each op's backward, while
    `observe` is active.
    """

    def after_forward(self, node: Node) -> None: ...

    def after_backward(
        self, node: Node, gradient: Array, input_gradients: tuple[Array | None, ...]
    ) -> None: ...


class _State(threading.local):
    """Per thread: is the tape written, which layer is running, who watches, are saved arrays
    checked.
    """

    def __init__(self) -> None:
        self.recording = True
        self.checking = False
        self.layers: list[str] = []
        self.observers: list[Observer] = []


_state = _State()


def op(function: Callable) -> Callable:
    """Turn a function of Tensors that returns (array, backward) into an op that records itself.

    It computes with their `.data`. `backward(dout)` returns one array or None per Tensor argument,
    in order: positional ones first, then those passed by name. Each is a new array, or `dout`
    itself. Of a tuple of results only the first is differentiable.
    """
    signature = inspect.signature(function)
    names = list(signature.parameters)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        inputs = [a for a in (*args, *map(kwargs.get, names)) if isinstance(a, Tensor)]
        if {type(x.data) for x in inputs} != {Array}:  # all in main memory: the usual case
            arguments = signature.bind(*args, **kwargs).arguments
            op_mistakes.expect_one_device(function.__name__, arguments)
        made = function(*args, **kwargs)
        if not _is_made_by_an_op(made):
            raise op_mistakes.wrong_result(function.__name__, made)
        result, backward = made
        first, *others = result if isinstance(result, tuple) else (result,)
        out = Tensor.wrap(first)
        if _state.recording or _state.observers:
            _record(function.__name__, inputs, out, backward)
        return (out, *map(Tensor.wrap, others)) if isinstance(result, tuple) else out

    return call


def _is_made_by_an_op(made: Any) -> bool:
    """Whether it is (array, backward), or ((array, more arrays), backward)."""
    if not isinstance(made, tuple) or len(made) != 2 or not callable(made[1]):
        return False
    results = made[0] if isinstance(made[0], tuple) else made[:1]
    return all([hasattr(array, "dtype") and not isinstance(array, Tensor) for array in results])


def _record(name: str, inputs: list[Tensor], out: Tensor, backward: Backward) -> None:
    """Write one op onto the tape, if a gradient will ever ask for it, and tell the observers, who
    hear of an op under `no_grad` too.
    """
    out.requires_grad = _state.recording and any([x.requires_grad for x in inputs])
    if not out.requires_grad and not _state.observers:
        return
    if _state.checking:
        backward = _checked(name, backward)
    node = Node(name, inputs, backward if out.requires_grad else None, out.data)
    out.node = node if out.requires_grad else None
    for observer in _state.observers:
        observer.after_forward(node)


def run_backward(root: Tensor, gradient: Array) -> None:
    """Run each node's backward once, newest first, after everything that used its result; free it
    on the way.

    `waiting` is the frontier: nodes that have received a gradient and not passed it on. Creation
    numbers grow along every edge, so the newest waiting node can receive nothing more.
    """
    if root.node is None:
        _add_to_leaf(root, gradient, borrowed=True)
        return
    waiting = {root.node: gradient}
    newest_first = [(-root.node.number, root.node)]
    while newest_first:
        _, node = heapq.heappop(newest_first)
        dout = waiting.pop(node)
        gradients = _input_gradients(node, dout)
        owners = [_owner(array) for array in (dout, *gradients)]
        for parent, dinput, owner in zip(node.inputs, gradients, owners[1:], strict=True):
            if parent is None or dinput is None:
                continue
            if isinstance(parent, Tensor):
                _add_to_leaf(parent, dinput, borrowed=owners.count(owner) > 1)
            elif parent in waiting:
                # a new array: the first may be somebody else's
                waiting[parent] = backends.of(dinput).add(waiting[parent], dinput)
            else:
                waiting[parent] = dinput
                heapq.heappush(newest_first, (-parent.number, parent))
        node.inputs = []


def _input_gradients(node: Node, dout: Array) -> tuple[Array | None, ...]:
    """Call a node's backward, check what came, and drop all that the node kept."""
    if node.backward is None:
        raise TinyftError(
            f"backward: the graph through {node.op} was already used and is freed; call forward "
            "again (gradients are arrays, so second derivatives are not supported)"
        )
    gradients = node.backward(dout)
    node.backward = None
    if not _fit(gradients, node.shapes):
        raise op_mistakes.wrong_gradients(node, gradients)
    for observer in _state.observers:
        observer.after_backward(node, dout, gradients)
    return gradients


def _fit(gradients: Any, shapes: list[tuple[int, ...]]) -> bool:
    """Whether they are a tuple of an array of its input's shape, or None, for each input."""
    if not isinstance(gradients, tuple) or len(gradients) != len(shapes):
        return False
    pairs = zip(gradients, shapes, strict=True)
    return all([g is None or (hasattr(g, "nbytes") and g.shape == shape) for g, shape in pairs])


def _add_to_leaf(leaf: Tensor, gradient: Array, borrowed: bool) -> None:
    """A leaf owns its `grad`, so what is borrowed is copied; later gradients are added in place."""
    if gradient.dtype != leaf.dtype:
        gradient, borrowed = gradient.astype(leaf.dtype), False
    if leaf.grad is None:
        leaf.grad = gradient.copy() if borrowed else gradient
    else:
        leaf.grad += gradient


def _owner(array: Array | None) -> int | None:
    """The identity of the array that owns the memory of this one, which may be a view."""
    if array is None:
        return None
    base = array.base
    return id(base if isinstance(base, type(array)) else array)


# ----------------------------------------------------------------------------------------- contexts


@contextlib.contextmanager
def _set(name: str, value: Any) -> Iterator[None]:
    previous = getattr(_state, name)
    setattr(_state, name, value)
    try:
        yield
    finally:
        setattr(_state, name, previous)


def no_grad() -> contextlib.AbstractContextManager[None]:
    """Within this block no op is recorded: evaluation, prediction."""
    return _set("recording", False)


def observe(observer: Observer) -> contextlib.AbstractContextManager[None]:
    """Within this block `observer` is told of each op and each op's backward."""
    return _set("observers", [*_state.observers, observer])


def current_layers() -> list[str]:
    """The names of the layers that are running in this thread, outermost first. Nodes carry them:
    `layer3` and then `0` as `layer3.0`. A module adds its own while it runs.
    """
    return _state.layers


def check_saved() -> contextlib.AbstractContextManager[None]:
    """Within this block an array that an op saved for backward may not be changed: backward names
    the op if it was.

    Every saved array is read twice, so this is for tests and for finding a mistake.
    """
    return _set("checking", True)


def kept_arrays(backward: Backward) -> list[Array]:
    """The arrays that a backward closure keeps in memory."""
    values = []
    for cell in getattr(backward, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # a variable that was never set
            values.append(cell.cell_contents)
    flat = [v for value in values for v in (value if isinstance(value, tuple | list) else [value])]
    return [v for v in flat if hasattr(v, "nbytes") and hasattr(v, "tobytes")]


def _checked(name: str, backward: Backward) -> Backward:
    kept = kept_arrays(backward)
    before = [hash(array.tobytes()) for array in kept]

    def checked(dout: Array) -> tuple[Array | None, ...]:
        if [hash(array.tobytes()) for array in kept] != before:
            raise TinyftError(
                f"{name}: an array that its backward needs was changed after the forward pass"
            )
        return backward(dout)

    return checked


# --------------------------------------------------------------------------- moves and arithmetic


@op
def move(x, device):
    """x on another device. Gradient: dout, moved back. Keeps: nothing."""
    home = backends.device_of(x.data)
    return backends.place(x.data, device), lambda dout: (backends.place(dout, home),)


def unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum a gradient over the axes along which an input of that `shape` was repeated."""
    if gradient.shape == shape:
        return gradient
    added = gradient.ndim - len(shape)
    repeated = [added + i for i, n in enumerate(shape) if n == 1 and gradient.shape[added + i] != 1]
    axes = (*range(added), *repeated)
    return backends.of(gradient).sum(gradient, axes).reshape(shape)


def _expect_pair(name: str, a: Tensor, b: Tensor, axes: slice = slice(None)) -> None:
    """Raise unless a and b broadcast (along `axes`) and have one float dtype: a mixture would
    silently compute in the wider one.
    """
    if a.dtype != b.dtype and "f" in (a.dtype.kind, b.dtype.kind):
        raise TypeError(
            f"{name}: both tensors must have the same dtype, but a is {a.dtype} and b is {b.dtype}"
        )
    pairs = zip(reversed(a.shape[axes]), reversed(b.shape[axes]), strict=False)
    if any(m != n and m != 1 and n != 1 for m, n in pairs):
        raise ShapeError(f"{name}: {a.shape} and {b.shape} do not broadcast to one shape")


@op
def add(a, b):
    """a + b, broadcast. Gradient: dout to both. Keeps: nothing."""
    _expect_pair("add", a, b)
    shapes = a.shape, b.shape
    needs = a.requires_grad, b.requires_grad

    def backward(dout):
        return tuple(
            unbroadcast(dout, s) if n else None for s, n in zip(shapes, needs, strict=True)
        )

    return a.data + b.data, backward


@op
def sub(a, b):
    """a - b, broadcast. Gradient: dout and -dout. Keeps: nothing."""
    _expect_pair("sub", a, b)
    a_shape, b_shape, needs_a, needs_b = a.shape, b.shape, a.requires_grad, b.requires_grad

    def backward(dout):
        da = unbroadcast(dout, a_shape) if needs_a else None
        db = unbroadcast(-dout, b_shape) if needs_b else None
        return da, db

    return a.data - b.data, backward


@op
def mul(a, b):
    """a * b, broadcast. Gradient: dout * b and dout * a. Keeps: b for a's gradient, a for b's."""
    _expect_pair("mul", a, b)
    a_shape, b_shape = a.shape, b.shape
    kept_b = b.data if a.requires_grad else None
    kept_a = a.data if b.requires_grad else None

    def backward(dout):
        da = None if kept_b is None else unbroadcast(dout * kept_b, a_shape)
        db = None if kept_a is None else unbroadcast(dout * kept_a, b_shape)
        return da, db

    return a.data * b.data, backward


@op
def div(a, b):
    """a / b, broadcast. Gradient: dout / b and -dout * (a / b) / b. Keeps: b; the result for b's
    gradient.
    """
    _expect_pair("div", a, b)
    a_shape, b_shape, needs_a = a.shape, b.shape, a.requires_grad
    divisor = b.data
    out = a.data / divisor
    kept_out = out if b.requires_grad else None

    def backward(dout):
        da = unbroadcast(dout / divisor, a_shape) if needs_a else None
        db = None if kept_out is None else unbroadcast(-dout * kept_out / divisor, b_shape)
        return da, db

    return out, backward


@op
def neg(a):
    """-a. Gradient: -dout. Keeps: nothing."""
    return -a.data, lambda dout: (-dout,)


@op
def matmul(a, b):
    """a @ b for (..., M, K) and (..., K, N). Gradient: dout @ b.T and a.T @ dout. Keeps: b for
    a's, a for b's. Raises: ShapeError, TypeError for mixed dtypes
    """
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ShapeError(f"matmul: expected (..., M, K) @ (..., K, N), got {a.shape} @ {b.shape}")
    _expect_pair("matmul", a, b, axes=slice(None, -2))
    backend = a.backend
    a_shape, b_shape = a.shape, b.shape
    kept_b = b.data if a.requires_grad else None
    kept_a = a.data if b.requires_grad else None

    def backward(dout):
        da = db = None
        if kept_b is not None:
            da = unbroadcast(backend.matmul(dout, kept_b.swapaxes(-1, -2)), a_shape)
        if kept_a is not None:
            db = unbroadcast(backend.matmul(kept_a.swapaxes(-1, -2), dout), b_shape)
        return da, db

    return backend.matmul(a.data, b.data), backward


_NUMPY_OPERATORS = {"add": add, "subtract": sub, "multiply": mul, "divide": div, "matmul": matmul}
