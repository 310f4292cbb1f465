"""Everything a learner remembers between two steps, as named arrays and plain JSON, and back.

What is not here is computed from the plan and the seed: batches, dropout masks, what is frozen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from tinyft import backends
from tinyft.errors import RunError
from tinyft.finetune.records import Evaluation, Losses, SmoothLoss
from tinyft.finetune.training import Training

Arrays = dict[str, np.ndarray]


def capture(training: Training) -> tuple[Arrays, dict[str, Any]]:
    """Copies of weights, buffers and optimizer state; and counters, rates, hashes in plain JSON."""
    training.read_losses()
    arrays = {f"model.{n}": _copied(a) for n, a in training.model.state_dict().items()}
    counts = {}
    for name, state in training.optimizer.state.items():
        for key, value in state.items():
            if hasattr(value, "dtype"):
                arrays[f"optimizer.{name}.{key}"] = _copied(value)
            else:
                counts[f"{name}.{key}"] = value
    values = {
        "step": training.step,
        "epoch": training.epoch,
        "smooth": asdict(training.smooth),
        "optimizer_counts": counts,
        "trained": sorted(training.trained),
        "phase_digests": training.phase_digests,
        "validation": asdict(training.validation) if training.validation else None,
        "groups": [[g.lr, g.momentum, g.weight_decay] for g in training.groups],
    }
    return arrays, values


def model_arrays(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The network's own arrays among those of a captured state, under their names there."""
    return {n.removeprefix("model."): a for n, a in arrays.items() if n.startswith("model.")}


def remembered(arrays: Arrays, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the optimizer remembered of each parameter in a captured state: {name: {key: value}}."""
    found: dict[str, dict[str, Any]] = {}
    own = {n.removeprefix("optimizer."): a for n, a in arrays.items() if n.startswith("optimizer.")}
    for full_name, value in (values["optimizer_counts"] | own).items():
        name, _, key = full_name.rpartition(".")
        found.setdefault(name, {})[key] = value
    return found


def restore(training: Training, arrays: Arrays, values: dict[str, Any]) -> None:
    """Put a captured state back, bit for bit. Gradients and the history of records are not part of
    it.

    Raises: RunError if the state is of another network; the learner is then as it was
    """
    model, given = training.model.state_dict(), model_arrays(arrays)
    shapes, came = ({(n, a.shape) for n, a in state.items()} for state in (model, given))
    if came != shapes:
        differing = sorted({name for name, _ in came ^ shapes})
        raise RunError(f"the state is of another network; they differ in {', '.join(differing)}")
    hashed = values["phase_digests"].keys()
    if len(values["groups"]) != len(training.groups) or (hashed and hashed != model.keys()):
        raise RunError("the state is of a network with other groups or tensors")
    for name, array in model.items():
        backends.assign(array, given[name])
    training.losses = Losses()
    training.optimizer.clear()
    memory = remembered(arrays, values)
    for group in training.groups:
        for name, parameter in group.parameters.items():
            if name in memory:
                state = {key: _placed(v, parameter.data) for key, v in memory[name].items()}
                training.optimizer.state[name] = state
    training.step, training.epoch = values["step"], values["epoch"]
    training.smooth = _made(SmoothLoss, values["smooth"])
    training.trained = frozenset(values["trained"])
    training.phase_digests = values["phase_digests"]
    validation = values["validation"]
    training.validation = _made(Evaluation, validation) if validation else None
    for group, settings in zip(training.groups, values["groups"], strict=True):
        group.lr, group.momentum, group.weight_decay = settings


def bookmark(training: Training) -> Callable[[], None]:
    """A function that puts the learner back as it is now, bit for bit, as often as it is called.

    Unlike a checkpoint this covers gradients, what is frozen, which modules train, and the history
    of records too.
    """
    saved = capture(training)
    grouped = training.groups
    groups = [(group, group.frozen) for group in training.groups]
    parameters = [
        (p, p.requires_grad, None if p.grad is None else p.grad.copy("K"))
        for group in training.groups
        for p in group.parameters.values()
    ]
    norms = [(norm, norm.statistics, norm.updates) for norm in training.batch_norms]
    put_modes_back = training.model.remember_modes()
    masks = [(dropout, dropout.step) for dropout in training.dropouts]
    history, weight_decay = list(training.history), training.weight_decay
    last_step = training.updates, training.optimizer.visited

    def put_back() -> None:
        training.optimizer.groups = grouped
        restore(training, *saved)
        for group, frozen in groups:
            group.frozen = frozen
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad = requires_grad
            parameter.grad = None if grad is None else grad.copy("K")
        for norm, statistics, updates in norms:
            norm.statistics, norm.updates = statistics, updates
        put_modes_back()
        for dropout, step in masks:
            dropout.step = step
        training.history[:], training.weight_decay = history, weight_decay
        training.updates, training.optimizer.visited = last_step

    return put_back


@contextlib.contextmanager
def undone(training: Training) -> Iterator[None]:
    """Train as you like within this block: afterwards the learner is as before, bit for bit; see
    `bookmark`.
    """
    put_back = bookmark(training)
    try:
        yield
    finally:
        try:
            put_back()
        except KeyboardInterrupt:  # it ended half-way
            put_back()
            raise


def _placed(value: Any, like: np.ndarray) -> Any:
    """A copy of what was remembered of the parameter `like`, an array in its memory order."""
    if not hasattr(value, "dtype"):  # a count
        return value
    if (value.shape, value.dtype) != (like.shape, like.dtype):
        # of an optimizer of the caller's own, with a number for each filter, say
        return backends.place_like(value.copy(), like)
    placed = backends.of(like).zeros_like(like)
    backends.assign(placed, value)
    return placed


def _made(kind: type, values: dict[str, Any]) -> Any:
    """A record of that kind from what it was written as, by an earlier version too."""
    return kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})


def _copied(array: np.ndarray) -> np.ndarray:
    """A copy in main memory, in the published order."""
    return np.array(backends.host(array), order="C")
