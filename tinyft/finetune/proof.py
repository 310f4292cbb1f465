"""The freeze proof: which tensors a phase may not change, and whether it did."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from tinyft import backends
from tinyft.errors import RunError
from tinyft.finetune.groups import Group
from tinyft.nn.module import Module


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


def expected_identical(groups: list[Group]) -> set[str]:
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
        for name, norm in group.norms.items():
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
