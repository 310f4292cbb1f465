"""Layer groups: which parameters share a learning rate, and what freezing a group means.

Freezing touches two things that are easily confused. A frozen *parameter* gets no gradient, so no
step moves it. A batch norm in a frozen group also has running statistics, which no gradient ever
moves: whether they follow the batches is a separate switch. Presets name the usual combinations,
for the batch norms of a frozen group:

    bn       normalises with  running statistics  scale and shift
    fastai   the batch        move                train   (fastai's default)
    torch    the batch        move                frozen  (requires_grad=False and model.train())
    frozen   running          stay                frozen  (Keras's trainable=False)

Unfrozen, scale and shift train under each; `frozen` keeps the body's running statistics to the end.

Next: tinyft/finetune/optim.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinyft.nn.layers import BatchNorm
from tinyft.nn.module import Module
from tinyft.nn.resnet import ResNet
from tinyft.tensor import Tensor

BN_PRESETS = ("fastai", "torch", "frozen")


@dataclass
class Group:
    """Parameters that share a learning rate. `lr` is per step; `undecayed` names those that weight
    decay leaves alone.
    """

    name: str
    parameters: dict[str, Tensor]
    norms: dict[str, BatchNorm]
    undecayed: frozenset[str]
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.01
    frozen: bool = False
    norm_parameters: frozenset[str] = frozenset()

    @property
    def count(self) -> int:
        """How many numbers the parameters are."""
        return sum(parameter.size for parameter in self.parameters.values())


def layer_groups(model: ResNet) -> list[Group]:
    """Three groups of a network with a head: the first half of the body, the second half, the head.

    Source: fastai 2.8.12 `_resnet_split`: stem, layer1 and layer2; layer3 and layer4; head.
    """
    half = len(model.stages) // 2
    early, late = model.stages[:half], model.stages[half:]
    groups = [
        _group("+".join(["stem", *early]), model, ("conv1", "bn1", *early)),
        _group("+".join(late), model, tuple(late)),
        _group("head", model, ("head",)),
    ]
    grouped = [name for group in groups for name in group.parameters]
    expected = [name for name, _ in model.named_parameters()]
    if sorted(grouped) != sorted(expected):
        raise ValueError(f"not in exactly one group: {sorted(set(expected) ^ set(grouped))}")
    return groups


def _group(name: str, model: Module, children: tuple[str, ...]) -> Group:
    """The group of all parameters below the named children of the network."""

    def below(full_name: str) -> bool:
        return full_name.split(".")[0] in children

    parameters = {n: p for n, p in model.named_parameters() if below(n)}
    norms = {n: m for n, m in model.named_modules() if isinstance(m, BatchNorm) and below(n)}
    norm_parameters = frozenset(f"{n}.{part}" for n in norms for part in ("weight", "bias"))
    biases = {n for n in parameters if n.endswith(".bias")}
    # as fastai: no decay for batch norms and biases (wd_bn_bias=False)
    return Group(name, parameters, norms, norm_parameters | biases, norm_parameters=norm_parameters)


def trains(group: Group, name: str, frozen: bool, bn: str) -> bool:
    """Whether a parameter of the group gets a gradient; `frozen` says whether the group is."""
    return not frozen or (bn == "fastai" and name in group.norm_parameters)


def norm_switches(bn: str, in_body: bool) -> tuple[str, bool]:
    """Which statistics a batch norm normalises with in training, and whether its running ones
    move.
    """
    # differs from fastai: "frozen" is not among its choices
    return ("running", False) if bn == "frozen" and in_body else ("batch", True)


def rates_in_words(groups: list[Group], rates: Sequence[float]) -> str:
    """ "learning rates: layer3+layer4 1.00e-04, head 1.00e-03" """
    pairs = zip(groups, rates, strict=True)
    return "learning rates: " + ", ".join(f"{group.name} {lr:.2e}" for group, lr in pairs)


def freeze_to(
    groups: list[Group], first_trainable: int, bn: str, stale: frozenset[str] = frozenset()
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
        for norm in group.norms.values():
            norm.statistics, norm.updates = norm_switches(bn, group is not groups[-1])
