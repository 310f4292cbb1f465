"""Optimizers: they visit every parameter that has a gradient, group by group, and remember what
they need.

A parameter without a gradient is not visited: it is not moved, not decayed, and nothing is
remembered for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tinyft import backends
from tinyft.engine.tensor import Tensor
from tinyft.finetune.groups import Group

if TYPE_CHECKING:
    from tinyft.finetune.records import UpdateMeasure


class Optimizer:
    """The base of Adam and SGD: groups, state by parameter name, and the walk over both."""

    has_momentum = True  # or the schedule's momentum means nothing
    default_weight_decay: float = 0.0  # fastai's; Adam has another
    remembers: frozenset[str] | None = None  # of each parameter it visited; None: not told
    by_kernel = False  # True in a class whose update is one backend kernel, which measures itself

    def __init__(self, groups: Sequence[Group]):
        # the only list of them: a learner's `groups` are these
        self.groups: tuple[Group, ...] = tuple(groups)
        self.state: dict[str, dict[str, Any]] = {}
        self.visited: frozenset[str] = frozenset()  # by the last step

    def step(self, measure: UpdateMeasure | None = None) -> None:
        """Update every parameter that has a gradient, with its group's learning rate, momentum and
        decay. `measure` looks at each before and after.
        """
        moving = [
            (group, name, parameter)
            for group in self.groups
            for name, parameter in group.parameters.items()
            if parameter.grad is not None
        ]
        by_kernel = vars(type(self)).get("by_kernel", False)  # a subclass may do more
        # A device may put the updates off and make them all at once, unless they are watched.
        with backends.deferred_updates(moving[0][2].data if moving and not measure else None):
            for group, name, parameter in moving:
                decay = 0.0 if name in group.undecayed else group.weight_decay
                if measure is None:
                    self.update(name, parameter, group, decay)
                    continue
                with measure.update(name, parameter, group.lr * decay, by_kernel=by_kernel):
                    self.update(name, parameter, group, decay)
        self.visited = frozenset([name for _, name, _ in moving])

    def update(self, name: str, parameter: Tensor, group: Group, weight_decay: float) -> None:
        """Move `parameter.data` in place, one step along `parameter.grad`, by group.lr and
        group.momentum; `weight_decay` is 0 for what does not decay. What is to be remembered,
        arrays and counts, goes into self.state[name].
        """
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Forget the gradients of this step."""
        for group in self.groups:
            for parameter in group.parameters.values():
                if parameter.requires_grad:  # a frozen one may keep a stale gradient of zeros
                    parameter.grad = None

    def clear(self) -> None:
        """Forget everything remembered about earlier steps."""
        self.state.clear()

    def to(self, device: str) -> None:
        """Move what is remembered to a device; counts are no arrays and stay."""
        for state in self.state.values():
            for key, value in state.items():
                if hasattr(value, "dtype"):
                    state[key] = backends.place(value, device)


class Adam(Optimizer):
    """Adam with decoupled weight decay and fastai's constants.

    Source: Kingma and Ba (2015); Loshchilov and Hutter (2019); fastai 2.8.12 `Adam(mom=0.9,
    sqr_mom=0.99, eps=1e-5, wd=0.01)`
    """

    by_kernel = True
    default_weight_decay: float = 0.01
    remembers: frozenset[str] | None = frozenset(("step", "average", "average_square"))

    def __init__(
        self, groups: Sequence[Group], *, square_momentum: float = 0.99, eps: float = 1e-5
    ):
        super().__init__(groups)
        self.square_momentum = square_momentum
        self.eps = eps

    def update(self, name: str, parameter: Tensor, group: Group, weight_decay: float) -> None:
        backend = parameter.backend
        assert parameter.grad is not None  # `step` visits no other
        state = self.state.get(name)
        if state is None:
            state = self.state[name] = {
                "step": 0,
                "average": backend.zeros_like(parameter.data),
                "average_square": backend.zeros_like(parameter.data),
            }
        state["step"] += 1
        backend.adam_step(
            parameter.data,
            parameter.grad,
            state["average"],
            state["average_square"],
            step=state["step"],
            lr=group.lr,
            momentum=group.momentum,
            square_momentum=self.square_momentum,
            eps=self.eps,
            weight_decay=weight_decay,
        )


class SGD(Optimizer):
    """Stochastic gradient descent with decoupled weight decay.

    As in fastai, `momentum` says only whether there is any: with 0 the group's momentum is ignored,
    with any other number it is used. How large it is, the schedule says at each step.

    Source: fastai 2.8.12 `SGD`
    """

    by_kernel = True

    def __init__(self, groups: Sequence[Group], *, momentum: float = 0.0):
        super().__init__(groups)
        self.has_momentum: bool = momentum != 0
        remembered = ("velocity",) if self.has_momentum else ()
        self.remembers: frozenset[str] | None = frozenset(remembered)

    def update(self, name: str, parameter: Tensor, group: Group, weight_decay: float) -> None:
        backend = parameter.backend
        assert parameter.grad is not None  # `step` visits no other
        velocity = None
        if self.has_momentum:
            if name not in self.state:
                self.state[name] = {"velocity": backend.zeros_like(parameter.data)}
            velocity = self.state[name]["velocity"]
        backend.sgd_step(
            parameter.data,
            parameter.grad,
            velocity,
            lr=group.lr,
            momentum=group.momentum,
            weight_decay=weight_decay,
        )


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": Adam,
    "sgd": SGD,
    "momentum": functools.partial(SGD, momentum=0.9),
}


def optimizer_of(asked: str | Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """What makes it of groups. Raises: ValueError for a name that there is not"""
    if not isinstance(asked, str):
        return asked
    if asked not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {asked!r}")
    return OPTIMIZERS[asked]


def name_of(optimizer: Optimizer) -> str | None:
    """Under which of these names it can be made again; None for one of the caller's own."""
    kind = type(optimizer), optimizer.has_momentum
    made = ((name, make(())) for name, make in OPTIMIZERS.items())
    return next((name for name, like in made if (type(like), like.has_momentum) == kind), None)
