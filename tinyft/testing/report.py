"""What a gradient check says: a table if the gradients agree, an error if they do not."""

from __future__ import annotations

from dataclasses import dataclass, field

from tinyft.display import aligned
from tinyft.errors import TinyftError


class GradcheckError(TinyftError, AssertionError):
    """A gradient that disagrees with differences, or a function that cannot be checked."""


@dataclass(frozen=True)
class InputReport:
    """What was compared for one input or parameter, and how well it agreed."""

    name: str
    shape: tuple[int, ...]
    gradient_norm: float
    compared: int  # projections (fast) or elements (full), times the upstream gradients
    worst: float  # the largest difference, in units of what is allowed
    kinks: list[tuple[int, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class GradcheckReport:
    """The result of a check that passed. True in a condition; as text, a table."""

    op: str
    mode: str
    eps: float
    seed: int
    inputs: list[InputReport]

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        head = f"gradcheck {self.op}: passed (mode {self.mode}, eps {self.eps:g}, seed {self.seed})"
        columns = (
            "gradient of",
            "shape",
            "|gradient|",
            "compared",
            "worst / allowed",
            "kinks left out",
        )
        rows = [columns] + [
            (
                row.name,
                str(row.shape),
                f"{row.gradient_norm:.4g}",
                str(row.compared),
                f"{row.worst:.2g}",
                places(row.kinks) if row.kinks else "none",
            )
            for row in self.inputs
        ]
        return "\n".join([head, *(f"  {line}" for line in aligned(rows))])


def places(indices: list[tuple[int, ...]]) -> str:
    """The first few of some elements' indices."""
    shown = ", ".join(map(str, indices[:5]))
    return f"{len(indices)}: {shown}" + (", ..." if len(indices) > 5 else "")
