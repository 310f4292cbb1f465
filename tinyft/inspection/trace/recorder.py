"""The microscope: the tape of one step, op by op, forward and backward side by side.

    with ft.trace() as trace:
        loss = ft.ops.cross_entropy(model(x), labels)
        loss.backward()
    print(trace)

It hangs on the engine's two observer calls and on a stand-in for the backend (kernel_watch.py);
without a trace neither exists. Milliseconds are those of an op's kernels; an op that calls none
gets the time since the one before it ended. Arrays are measured and let go, but for those of
nodes that are to be opened.
"""

from __future__ import annotations

import contextlib
import inspect
import time
import traceback
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinyft import backends
from tinyft.engine import tape
from tinyft.engine.tape import Backward, Node, Recorded, kept_arrays, observe
from tinyft.engine.tensor import Tensor, norm
from tinyft.errors import NonFiniteLossError
from tinyft.inspection.step.moment import Moment
from tinyft.inspection.trace.activations import Change, changing
from tinyft.inspection.trace.kernel_watch import KernelCall, KernelWatch
from tinyft.inspection.trace.open_node import check_entries, composition_of, derivative_of
from tinyft.inspection.trace.page import as_page, dot
from tinyft.inspection.trace.table import Input, TracedNode, TraceTable
from tinyft.nn.module import Module

NOT_RECORDED = "under no_grad nothing is recorded"
PACKAGE = Path(tape.__file__).parents[1]


class Trace(TraceTable):
    """A trace that also draws itself: in a notebook, as a page, as a graph."""

    def dot(self) -> str:
        """The graph in Graphviz's language."""
        return dot(self)

    def html(self) -> str:
        """A page that asks for nothing from outside, as UTF-8 text."""
        return as_page(self)


@contextlib.contextmanager
def trace(
    model: Module | None = None, *, open: Collection[int] = (), change: Mapping[str, Change] = {}
) -> Iterator[Trace]:
    """Trace all ops of this block, evaluation included; the Trace is complete at its end.

    `model` gives its parameters their names. Nodes whose numbers are in `open` are opened:
    their kernels are compared with the reference's, three entries of their gradients with finite
    differences; both take a while. `change` puts something else in place of layers' outputs, by the
    name that they have in `model`: see activations.py.
    Raises: ValueError for a `change` without a `model`, or of a layer that it does not have
    """
    if change and model is None:
        raise ValueError("a change is of a network's layers: ft.trace(model, change=...)")
    recorder = _Recorder(model, frozenset(open))
    begin = time.perf_counter()
    try:
        changed = contextlib.nullcontext() if model is None else changing(model, change)
        with changed, observe(recorder), recorder.watch.watching():
            yield recorder.trace
    finally:
        recorder.trace.others += recorder.watch.take()
        for call in recorder.trace.others:
            call.arguments = None
        recorder.trace.elapsed_ms = (time.perf_counter() - begin - recorder.own_seconds) * 1e3
        recorder.finish()


def trace_step(moment: Moment, *, open: Collection[int] = ()) -> Trace:
    """The tape of the step that a moment stands before; the step is made.

    It is made twice: the first time kernels are compiled or loaded and memory is taken for the
    first time, which says nothing about the step. A loss that is NaN or infinite ends the trace
    where it ended the run; the facts say so.
    """
    where = moment.where
    with contextlib.suppress(NonFiniteLossError):
        moment.take()
    moment.restore()
    failure = ""
    with trace(moment.learner.model, open=open) as traced:
        try:
            traced.loss = moment.take().loss
        except NonFiniteLossError as error:
            traced.loss, failure = float("nan"), str(error)
    traced.title = where
    traced.facts.append(failure or f"loss {traced.loss:.6g}")
    return traced


# ---------------------------------------------------------------------------------------- recording


class _Recorder:
    """The observer that fills a trace."""

    def __init__(self, model: Module | None, open: frozenset[int]) -> None:
        self.trace, self.watch, self.open = Trace(), KernelWatch(), open
        parameters = list(model.named_parameters()) if model is not None else []
        self.parameters = {id(p): name for name, p in parameters}
        self.parameters_kept_alive = parameters  # or an id could be given to another Tensor
        self.makers: weakref.WeakKeyDictionary[Recorded, int] = weakref.WeakKeyDictionary()
        self.by_node: dict[int, TracedNode] = {}
        self.kept_by: dict[int, int] = {}  # address of a kept array -> the node that counted it
        self.opened: dict[int, tuple[Callable[..., Any], tuple, dict, list[str]]] = {}
        self.own_seconds = 0.0
        self.last = time.perf_counter()

    @contextlib.contextmanager
    def _off_the_clock(self) -> Iterator[float]:
        """The seconds since the op before; what is done within is not counted."""
        begin = time.perf_counter()
        with backends.watch(None):  # what is measured here is no kernel of the step
            yield begin - self.last
        self.last = time.perf_counter()
        self.own_seconds += self.last - begin

    def after_forward(self, node: Node) -> None:
        with self._off_the_clock() as seconds:
            assert node.call is not None  # observers hear of ops while it is set
            function, args, options, tensors, out = node.call
            names = _argument_names(function, args, options)
            calls = self._calls()
            traced = TracedNode(
                number=len(self.trace.nodes),
                op=node.op,
                composition=composition_of(node.op, options),
                layer=node.layer,
                inputs=[self._input(node, n, t) for n, t in zip(names, tensors, strict=True)],
                shape=tuple(node.output_shape),
                dtype=str(out.dtype),
                source=_place(function.__code__.co_filename, function.__code__.co_firstlineno),
                call=_caller(),
                formula=inspect.getdoc(function) or "(no docstring)",
                derivative=derivative_of(function),
                forward=calls,
                forward_ms=_milliseconds(calls, seconds),
                kept_bytes=0 if node.backward is None else self._kept(node, node.backward, tensors),
                recorded=node.backward is not None,
                is_finite=bool(np.isfinite(backends.host(out.data)).all()),
                is_open=len(self.trace.nodes) in self.open,
            )
            self.makers[out] = traced.number
            self.by_node[node.number] = traced
            self.trace.nodes.append(traced)
            if traced.is_open:
                self.opened[traced.number] = function, args, options, names
            self._release(traced, calls)

    def after_backward(
        self, node: Node, gradient: np.ndarray, input_gradients: tuple[np.ndarray | None, ...]
    ) -> None:
        with self._off_the_clock() as seconds:
            traced = self.by_node.pop(node.number, None)
            calls = self._calls()
            if traced is None:  # its forward was before the trace
                return
            traced.backward = calls
            traced.backward_ms = _milliseconds(calls, seconds)
            traced.gradient_norm = norm(gradient)
            for given, found in zip(traced.inputs, input_gradients, strict=True):
                given.gradient_norm = None if found is None else norm(found)
            if traced.number in self.opened:
                opened = self.opened.pop(traced.number)
                seed = traced.number
                traced.entries = check_entries(*opened, gradient, input_gradients, seed)
            self._release(traced, calls)

    def _calls(self) -> list[KernelCall]:
        """The kernels of the op that just ended; others go where they belong."""
        calls = self.watch.take()
        outside = [call for call in calls if not call.inside_an_op]
        for call in outside:
            call.arguments = None
        self.trace.others += outside
        return [call for call in calls if call.inside_an_op]

    def _release(self, traced: TracedNode, calls: list[KernelCall]) -> None:
        """Compare the kernels of a node that is opened, and let go of their arrays."""
        for call in calls:
            if traced.is_open:
                call.compare()
            call.arguments = None

    def _input(self, node: Node, name: str, tensor: Recorded) -> Input:
        made_by = self.makers.get(tensor)
        layer = f"{node.layer}." if node.layer else ""
        label = self.parameters.get(id(tensor)) or tensor.name or layer + name
        if made_by is not None:
            label = f"node {made_by}"
        stop = "" if tensor.requires_grad else self._why_no_gradient(tensor, made_by)
        return Input(name, tuple(tensor.shape), made_by, label, stop=stop)

    def _why_no_gradient(self, tensor: Recorded, made_by: int | None) -> str:
        if made_by is not None:
            maker = self.trace.nodes[made_by]
            has_gradients = any(not i.stop or i.stop == NOT_RECORDED for i in maker.inputs)
            return NOT_RECORDED if has_gradients else "nothing before it trains"
        if id(tensor) in self.parameters:
            return "frozen"
        return "a constant: it asks for no gradient"

    def _kept(self, node: Node, backward: Backward, tensors: list[Recorded]) -> int:
        """Bytes of the arrays that a node's backward keeps and no other node does."""
        parameters = {_address(t.data) for t in tensors if t.node is None and t.requires_grad}
        parameters |= {_address(t.data) for t in tensors if id(t) in self.parameters}
        total = 0
        for array in kept_arrays(backward):
            address = _address(array)
            if address not in parameters and address not in self.kept_by:
                self.kept_by[address] = node.number
                total += array.nbytes
        return total

    def finish(self) -> None:
        """Say of nodes that backward did not reach why it did not."""
        for node in self.trace.nodes:
            reason = "the op gives it no gradient"
            if node.backward is None:
                reason = "backward did not come here" if node.recorded else NOT_RECORDED
            for given in node.inputs:
                if given.gradient_norm is None and not given.stop:
                    given.stop = reason


def _milliseconds(calls: list[KernelCall], seconds: float) -> float:
    return sum(call.milliseconds for call in calls) if calls else seconds * 1e3


def _address(array: np.ndarray) -> int:
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr  # CuPy's


def _argument_names(
    function: Callable[..., Any], args: tuple, options: dict[str, Any]
) -> list[str]:
    """The names of an op's tensor arguments, in the order in which it gets gradients for them."""
    parameters = list(inspect.signature(function).parameters.values())
    plain = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
    several = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    names = [f"{several}[{i}]" for i in range(len(args))] if several else plain
    found = [name for name, a in zip(names, args, strict=False) if isinstance(a, Tensor)]
    return found + [name for name in plain if isinstance(options.get(name), Tensor)]


def _caller() -> str:
    """Find where an op was called: the nearest line that is neither op nor operator of Tensor."""
    inside = (__file__, str(PACKAGE / "engine"), str(PACKAGE / "ops"))
    for frame, line in traceback.walk_stack(inspect.currentframe()):
        if not frame.f_code.co_filename.startswith(inside):
            return _place(frame.f_code.co_filename, line)
    return ""


def _place(file: str, line: int) -> str:
    """ "tinyft/ops/conv2d.py:17"; a path from here, or the whole path, for files of others."""
    path = Path(file)
    for root in (PACKAGE.parent, Path.cwd()):
        if path.is_relative_to(root):
            return f"{path.relative_to(root).as_posix()}:{line}"
    return f"{file}:{line}"
