"""What loading a weights file found: a report for people, and a test whether all is well."""

from __future__ import annotations

from dataclasses import dataclass, field

_SHOWN = 5  # names per list in a message; the lists themselves are complete


@dataclass(frozen=True)
class LoadReport:
    """How a file's tensors fit a network.

    The first three lists are faults.  ``expected_differences`` are those the caller announced,
    such as the replaced last layer; ``ignored`` is what lay beside the weights; ``prefix`` was
    taken off each name; ``notes`` say whatever else was decided.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    expected_differences: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    prefix: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether there is no fault."""
        return not (self.missing or self.unexpected or self.mismatched)

    def lines(self) -> list[str]:
        """What there is to say.  Names are as in the file: a line may hold any character."""
        lines = [
            _line("missing from the file", self.missing),
            _line("not in the network", self.unexpected),
            _line("of another shape", self.mismatched),
            _line("different, as expected", self.expected_differences),
            _line("ignored", self.ignored),
            f"prefix taken off each name: {self.prefix}" if self.prefix else "",
            *self.notes,
        ]
        return [line for line in lines if line] or ["every name and shape is as expected"]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def _line(title: str, names: list[str]) -> str:
    """``"ignored: optimizer, epoch=89"``, or nothing for no names."""
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{title}: {', '.join(name[:120] for name in names[:_SHOWN])}{more}"
