"""The tape: what happened on the way forward, and the walk back along it (reverse mode).

An op is a function that returns its result and a closure, `backward(dout)`, that turns the
gradient of the result into the gradients of its inputs: a vector-Jacobian product. The decorator
`@op` is the only place where the tape is written: it puts the closure into a Node that points to
the nodes of the inputs. `run_backward` applies the chain rule, newest node first.
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
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, Protocol, Self, TypeVar

import numpy as np
from numpy import ndarray as Array

from tinyft import backends
from tinyft.engine.checks import expect_gradients, expect_one_device, expect_result
from tinyft.errors import TinyftError

Backward = Callable[[Array], tuple[Array | None, ...]]
Made = tuple[Array, Backward]  # what the function of an op returns

T = TypeVar("T", bound="Recorded")
P = ParamSpec("P")


class Recorded:
    """A tensor as the tape knows it: its array, its gradient, and the node that made it."""

    __slots__ = ("__weakref__", "data", "grad", "name", "node", "requires_grad")

    data: Array
    grad: Array | None
    name: str | None
    node: Node | None
    requires_grad: bool

    @classmethod
    def wrap(cls, array: Array) -> Self:
        """One around `array` itself, not a copy, without a history."""
        tensor = cls.__new__(cls)
        tensor.data, tensor.grad, tensor.requires_grad = array, None, False
        tensor.name, tensor.node = None, None
        return tensor

    if TYPE_CHECKING:
        shape: tuple[int, ...]
        dtype: np.dtype[Any]
        ndim: int
        size: int
    else:  # Read in C: as methods, these four would be 740 calls of Python in a step.
        shape = property(attrgetter("data.shape"), doc="The size along each axis: a tuple of ints.")
        dtype = property(attrgetter("data.dtype"), doc="The type of its elements.")
        ndim = property(attrgetter("data.ndim"), doc="How many axes there are.")
        size = property(attrgetter("data.size"), doc="How many elements there are.")

    @property
    def backend(self) -> backends.Backend:
        return backends.of(self.data)


class Node:
    """One call of one op: what backward needs, and who provided the inputs.

    `inputs` holds, per tensor argument, the Node that made it, the Tensor itself if it is a leaf
    that requires a gradient, or None. Nodes point to nodes and never to a Tensor that an op made,
    so a result that nobody holds is freed. `call` is set only while observers hear of the op.
    """

    __slots__ = ("backward", "call", "inputs", "layer", "number", "op", "output_shape", "shapes")

    numbers: Iterator[int] = itertools.count()

    def __init__(self, op: str, inputs: list[Recorded], backward: Backward | None, out: Array):
        # It grows along every edge: sorting by it is a topological order.
        self.number: int = next(Node.numbers)
        self.op: str = op
        self.layer: str = ".".join(_state.layers)
        self.inputs: list[Node | Recorded | None] = []
        self.shapes: list[tuple[int, ...]] = []
        for x in inputs:
            self.inputs.append((x.node or x) if x.requires_grad else None)
            self.shapes.append(x.shape)
        self.backward: Backward | None = backward
        self.output_shape: tuple[int, ...] = out.shape
        self.call: Call | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Node:
        """Itself: what happened is not done again for a copy of its result."""
        return self

    def __repr__(self) -> str:
        return f"<node {self.number}: {self.op} {self.layer} -> {self.output_shape}>"


class Call(NamedTuple):
    """One call of an op, for observers: a node has it during `after_forward` alone.

    `inputs` are the Tensors among the arguments, in the order of their gradients; what backward
    keeps is `kept_arrays(node.backward)`.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]
    inputs: list[Recorded]
    out: Recorded


class Observer(Protocol):
    """Watches the engine: called after each op (when `node.call` is set) and after each op's
    backward, while `observe` is active.
    """

    def after_forward(self, node: Node) -> None: ...

    def after_backward(
        self, node: Node, gradient: Array, input_gradients: tuple[Array | None, ...]
    ) -> None: ...


class _State(threading.local):
    """Of one thread: is the tape written, are saved arrays checked, what runs, who watches."""

    def __init__(self) -> None:
        self.recording = True
        self.checking = False
        self.layers: list[str] = []
        self.observers: list[Observer] = []
        self.running = 0  # forwards and backwards of observed ops that are running


_state = _State()


def op(function: Callable[Concatenate[T, P], Made]) -> Callable[Concatenate[T, P], T]:
    """Turn a function of Tensors that returns (array, backward) into an op that records itself.

    It computes with their `.data`. `backward(dout)` returns one array or None per Tensor argument,
    in order: positional ones first, then those passed by name. Each is a new array, or `dout`
    itself. Of a tuple of results only the first is differentiable.
    """
    # An editor is told that the result is of the first argument's type; `tensor.op`, the same for
    # who has that type's name, knows the first argument's name too.
    signature = inspect.signature(function)
    names = list(signature.parameters)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        inputs = [a for a in (*args, *map(kwargs.get, names)) if isinstance(a, Recorded)]
        if {type(x.data) for x in inputs} != {Array}:  # all in main memory: the usual case
            arguments = signature.bind(*args, **kwargs).arguments
            expect_one_device(function.__name__, arguments)
        observed = bool(_state.observers)
        made = _run(function, *args, **kwargs) if observed else function(*args, **kwargs)
        expect_result(function.__name__, made)
        result, backward = made
        first, *others = result if isinstance(result, tuple) else (result,)
        if not inputs:
            raise TypeError(f"{function.__name__}: an op needs a Tensor among its arguments")
        kind = type(inputs[0])  # Tensor, which this file need not know
        out = kind.wrap(first)
        if _state.recording or observed:
            called = Call(function, args, kwargs, inputs, out) if observed else None
            _record(function.__name__, inputs, out, backward, called)
        return (out, *map(kind.wrap, others)) if isinstance(result, tuple) else out

    return call


def _record(
    name: str, inputs: list[Recorded], out: Recorded, backward: Backward, called: Call | None
) -> None:
    """Write one op onto the tape, if a gradient will ever ask for it, and tell the observers, who
    hear of an op under `no_grad` too, how it was called.
    """
    out.requires_grad = _state.recording and any([x.requires_grad for x in inputs])
    if not out.requires_grad and called is None:
        return
    if _state.checking:
        backward = _checked(name, backward)
    node = Node(name, inputs, backward if out.requires_grad else None, out.data)
    out.node = node if out.requires_grad else None
    if called is not None:
        node.call = called
        for observer in _state.observers:
            observer.after_forward(node)
        node.call = None  # or the arrays of the step would live on with the node


def _run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the forward or the backward of an op that is observed; see `inside_an_op`."""
    _state.running += 1
    try:
        return function(*args, **kwargs)
    finally:
        _state.running -= 1


def inside_an_op() -> bool:
    """True while an op's forward or backward runs in this thread, within a block of `observe`."""
    return _state.running > 0


def run_backward(root: Recorded, gradient: Array) -> None:
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
        owners = [owner_of(array) for array in (dout, *gradients)]
        for parent, dinput, owner in zip(node.inputs, gradients, owners[1:], strict=True):
            if parent is None or dinput is None:
                continue
            if isinstance(parent, Recorded):
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
    gradients = _run(node.backward, dout) if _state.observers else node.backward(dout)
    node.backward = None
    expect_gradients(node.op, node.shapes, gradients)
    for observer in _state.observers:
        observer.after_backward(node, dout, gradients)
    return gradients


def _add_to_leaf(leaf: Recorded, gradient: Array, borrowed: bool) -> None:
    """A leaf owns its `grad`, so what is borrowed is copied; later gradients are added in place."""
    if gradient.dtype != leaf.dtype:
        gradient, borrowed = gradient.astype(leaf.dtype), False
    if leaf.grad is None:
        leaf.grad = gradient.copy() if borrowed else gradient
    else:
        leaf.grad += gradient


def owner_of(array: Array | None) -> int | None:
    """Find the identity of the array that owns the memory of this one, which may be a view."""
    if array is None:
        return None
    base = array.base
    return id(base if isinstance(base, type(array)) else array)


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
