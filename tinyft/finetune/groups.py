"""Layer groups: which parameters share a learning rate, what freezing a group means, and the proof
that what was frozen did not move.

Freezing touches two things that are easily confused. A frozen *parameter* gets no gradient, so no
step moves it. A batch norm in a frozen group also has running statistics, which no gradient ever
moves: whether they follow the batches is a separate switch. Presets name the usual combinations,
for the batch norms of a frozen group:

    bn       normalises with  running statistics  scale and shift
    fastai   the batch        move                train   (fastai's default)
    torch    the batch        move                frozen  (requires_grad=False and model.train())
    frozen   running          stay                frozen  (Keras's trainable=False)

Unfrozen, scale and shift train under each; `frozen` keeps the body's running statistics to the end,
and those of the head while its group is frozen.

Groups of one's own are named parts of the network, from the pictures to the head:

    {"first": ["conv1", "bn1", "layer1"], "rest": ["layer2", "layer3", "layer4"], "head": ["head"]}
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tinyft import backends
from tinyft.engine.tensor import Tensor
from tinyft.errors import DataError, RunError
from tinyft.nn.layers import BatchNorm
from tinyft.nn.module import Module
from tinyft.nn.resnet import ResNet

if TYPE_CHECKING:
    from tinyft.data.loader import PictureData

BN_PRESETS = ("fastai", "torch", "frozen")


@dataclass
class Group:
    """Parameters that share a learning rate. `lr` is per step; `undecayed` names those that weight
    decay leaves alone.
    """

    name: str
    parameters: dict[str, Tensor]
    batch_norms: dict[str, BatchNorm]
    undecayed: frozenset[str]
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.01
    frozen: bool = False
    norm_parameters: frozenset[str] = frozenset()

    @property
    def count(self) -> int:
        """Number of parameters: of elements, not of arrays."""
        return sum(parameter.size for parameter in self.parameters.values())

    @property
    def in_head(self) -> bool:
        """True if these are parameters of the head, or the group is called so in a network without
        a part of that name; no group of a learner holds others beside.
        """
        return self.name == "head" or all(map(_is_in_head, self.parameters))


Grouping = Mapping[str, str | Sequence[str]]
Network = TypeVar("Network", bound=Module)  # a function of the network may want one of its class


def layer_groups(
    model: Network, own: Grouping | Callable[[Network], Grouping] | Sequence[Group] | None = None
) -> tuple[Group, ...]:
    """The groups of a ResNet: the first half of the body, the second half, the head; of another
    network body and head, or without a part `head` each of its parts.

    Or one's `own`: {name: parts}, see above, a function of the network that returns that (with
    parts down to single parameters), or finished groups.

    Raises: ValueError unless each parameter is in exactly one group, and the groups are in order
    Source: fastai 2.8.12 `_resnet_split`: stem, layer1 and layer2; layer3 and layer4; head.
    """
    if callable(own):
        own = own(model)
    groups: Sequence[Group]
    if own is None:
        groups = [_group(name, model, parts) for name, parts in _usual(model).items()]
    elif isinstance(own, Mapping):
        groups = [_own_group(name, model, parts) for name, parts in own.items()]
    elif isinstance(own, Sequence) and all(isinstance(group, Group) for group in own):
        groups = own
    else:
        raise ValueError(
            "groups should be {name: [parts of the network]}, such as "
            '{"body": ["conv1", "bn1", "layer1", ...], "head": ["head"]}, or a function of the '
            f"network that returns that; got {own!r:.60}"
        )
    expect_grouped(groups, model)
    return tuple(groups)


def _usual(model: Module) -> dict[str, list[str]]:
    """The parts of each group that a network has where its caller names none."""
    if isinstance(model, ResNet):
        half = len(model.stages) // 2
        early, late = model.stages[:half], model.stages[half:]
        own = {"+".join(["stem", *early]): ["conv1", "bn1", *early], "+".join(late): late}
        return own | {"head": ["head" if model.head else "fc"]}
    parts = dict.fromkeys(name.split(".")[0] for name, _ in model.named_parameters())
    body = [part for part in parts if part != "head"]
    return {"body": body, "head": ["head"]} if len(body) < len(parts) else {p: [p] for p in parts}


def expect_grouped(groups: Sequence[Group], model: Module) -> None:
    """Raises: ValueError unless each parameter and batch norm of the network is in exactly one
    group, all have names, and their order is the network's, with the head's behind the body's
    """
    names = sorted((name for name, _ in model.named_parameters()), key=_is_in_head)
    own = {id(p) for _, p in model.named_parameters()}
    grouped = [(name, p) for group in groups for name, p in group.parameters.items()]
    norms = [n for n, m in model.named_modules() if isinstance(m, BatchNorm)]
    for kind, wanted, grouped_names in (
        ("parameters", names, [name for name, p in grouped if id(p) in own]),
        ("batch norms", norms, [name for group in groups for name in group.batch_norms]),
    ):
        counts = Counter(grouped_names)
        if wrong := [name for name in wanted if counts[name] != 1]:
            where = "several groups" if counts[wrong[0]] else "no group"
            raise ValueError(
                f"each of the network's {kind} should be in exactly one layer group; {wrong[0]} is "
                f"in {where}" + (f", as are {len(wrong) - 1} others" if len(wrong) > 1 else "")
            )
    titles = [group.name for group in groups]
    if len(set(titles)) < len(titles) or not all(isinstance(t, str) and t for t in titles):
        raise ValueError(f"layer groups should have names that differ; got {titles}")
    place = {name: i for i, name in enumerate(names)}
    first = [
        min((place[n] for n in g.parameters if n in place), default=len(names)) for g in groups
    ]
    in_head = [group.in_head for group in groups]
    if first != sorted(first) or in_head != sorted(in_head):
        raise ValueError(
            f"layer groups should be in the order of the network, from the pictures to the head, "
            f"because the first ones freeze first; got {', '.join(titles)}"
        )
    for group in groups if any(map(_is_in_head, names)) else ():
        inside = [*map(_is_in_head, group.parameters)]
        if (group.in_head or any(inside)) and not all(inside):
            raise ValueError(
                f"the layer group {group.name!r} holds parts of the body and of the head; give the "
                "head a group of its own, so that it can train alone"
            )


def head_at(groups: Sequence[Group], *, needed: bool = False) -> int:
    """Index of the head's first group: as many are frozen when the head trains alone.

    Raises: ValueError if the head is `needed`, and there is none
    """
    bodies = sum(not group.in_head for group in groups)
    if needed and bodies == len(groups):
        raise ValueError(
            "the network has no part called head to train alone: name its head's group, "
            'groups={"body": [...], "head": [...]}, or use fit_one_cycle'
        )
    return bodies


def grouping_of(model: Module, groups: Sequence[Group]) -> dict[str, list[str]] | None:
    """Name the parameters of each group, as JSON holds them; None for the default groups."""
    named = {group.name: [*group.parameters] for group in groups}
    usual = {group.name: [*group.parameters] for group in layer_groups(model)}
    return None if list(named.items()) == list(usual.items()) else named


def _is_in_head(name: str) -> bool:
    return name.split(".")[0] == "head"


def _own_group(name: str, model: Module, parts: str | Sequence[str]) -> Group:
    """Raises: ValueError for a part that the network does not have"""
    parts = [parts] if isinstance(parts, str) else list(parts)
    if not parts:
        raise ValueError(f"the layer group {name!r} names no part of the network")
    names = [n for n, _ in model.named_parameters()]
    for part in parts:
        if not any(f"{n}.".startswith(f"{part}.") for n in names):
            known = ", ".join(dict.fromkeys(n.split(".")[0] for n in names))
            raise ValueError(
                f"the layer group {name!r} names {part!r}, and no parameter of the network begins "
                f"so; its parts are {known}, and what is in them, as layer1.0.conv1"
            )
    return _group(name, model, parts)


def _group(name: str, model: Module, parts: Sequence[str]) -> Group:
    """The group of all parameters below the named parts of the network."""

    def below(full_name: str) -> bool:
        return any(f"{full_name}.".startswith(f"{part}.") for part in parts)

    everything = dict(model.named_parameters())
    parameters = {n: p for n, p in everything.items() if below(n)}
    all_norms = {n: m for n, m in model.named_modules() if isinstance(m, BatchNorm)}
    # A norm is where its scale is; one that shares another's scale, where it stands itself.
    scale = {n: f"{n}.weight" if f"{n}.weight" in everything else n for n in all_norms}
    norms = {n: m for n, m in all_norms.items() if below(scale[n])}
    in_norms = {f"{n}.{part}" for n in all_norms for part in ("weight", "bias")}
    norm_parameters = frozenset(in_norms & parameters.keys())
    biases = {n for n in parameters if n.endswith(".bias")}
    # as fastai: no decay for batch norms and biases (wd_bn_bias=False)
    return Group(name, parameters, norms, norm_parameters | biases, norm_parameters=norm_parameters)


def trains(group: Group, name: str, frozen: bool, bn: str) -> bool:
    """Say if a parameter of the group gets a gradient, where the group is frozen or not."""
    return not frozen or (bn == "fastai" and name in group.norm_parameters)


def norm_switches(bn: str, in_head: bool, frozen: bool) -> tuple[str, bool]:
    """Return which statistics a batch norm normalises with in training, and if its running ones
    move, where its group is frozen or not.
    """
    # differs from fastai: "frozen" is not among its choices
    return ("running", False) if bn == "frozen" and (frozen or not in_head) else ("batch", True)


def expect_comparable(data: PictureData, statistics: Iterable[str]) -> None:
    """Raises: DataError for batches of one picture where a batch norm, of those that normalise
    with these `statistics`, uses the batch's
    """
    if data.batch_size < 2 and "batch" in statistics:
        raise DataError(
            "a training batch needs at least two pictures, because BatchNorm compares them; "
            f"batch_size is {data.requested_batch_size} and there are {data.n_train} training "
            "pictures (one by one they can train with bn='frozen' and head='linear')"
        )


def rates_in_words(groups: Sequence[Group], rates: Sequence[float]) -> str:
    """ "learning rates: layer3+layer4 1.00e-04, head 1.00e-03" """
    pairs = zip(groups, rates, strict=True)
    return "learning rates: " + ", ".join(f"{group.name} {lr:.2e}" for group, lr in pairs)


def freeze_to(
    groups: Sequence[Group], first_trainable: int, bn: str, stale: frozenset[str] = frozenset()
) -> None:
    """Freeze the groups before `first_trainable`, unfreeze the others, and set their batch norms.

    A parameter that freezes loses its gradient, so that no optimizer visits it. Those named in
    `stale` get a gradient of zeros instead, as in fastai: the optimizer visits them, and weight
    decay goes on.
    """
    for i, group in enumerate(groups):
        group.frozen = i < first_trainable
        for name, parameter in group.parameters.items():
            parameter.requires_grad = trains(group, name, group.frozen, bn)
            # differs from fastai, where zeros are what all frozen parameters have
            if not parameter.requires_grad:
                zeros = parameter.backend.zeros_like
                parameter.grad = zeros(parameter.data) if name in stale else None
        for norm in group.batch_norms.values():
            norm.statistics, norm.updates = norm_switches(bn, group.in_head, group.frozen)


# ------------------------------------------------------------------------------- the freeze proof


@dataclass(frozen=True)
class Proof:
    """After a phase: the tensors that were proved bit-identical, and those that moved."""

    identical: tuple[str, ...]
    moved: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.identical)} tensors bit-identical, {len(self.moved)} moved"


def digests(model: Module) -> dict[str, str]:
    """A hash of the bits of every parameter and buffer."""
    return {
        name: hashlib.blake2b(backends.host(array).tobytes("A"), digest_size=16).hexdigest()
        for name, array in model.state_dict().items()
    }


def expected_identical(groups: Sequence[Group]) -> set[str]:
    """The tensors that no step can move as things are set now.

    A parameter moves if it has a gradient coming or a stale one; running statistics move if their
    layer says so.
    """
    names = {
        name
        for group in groups
        for name, parameter in group.parameters.items()
        if not parameter.requires_grad and parameter.grad is None
    }
    for group in groups:
        for name, norm in group.batch_norms.items():
            if not norm.statistics_move:
                names |= {f"{name}.running_mean", f"{name}.running_var"}
    return names


def prove(before: dict[str, str], model: Module, expected: set[str]) -> Proof:
    """Compare with the hashes from before the phase.

    Raises: RunError if a tensor moved that was to stay as it was
    """
    after = digests(model)
    identical = tuple(name for name in after if before[name] == after[name])
    moved = tuple(name for name in after if before[name] != after[name])
    broken = sorted(expected & set(moved))
    if broken:
        raise RunError(
            f"{len(broken)} tensors changed although they are frozen, first {broken[0]}; "
            "this is a bug in tinyft or in code that writes into the model"
        )
    return Proof(identical, moved)
