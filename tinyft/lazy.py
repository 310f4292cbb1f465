"""Names of a package that are looked up when first used, not when it is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def looked_up_in(
    package: str, home: dict[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562). `home` says which of its modules has a
    name (with a dot before it: a module beside the package); a module is its own home.
    """

    def look_up(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f".{home[name]}", package)
        value = module if home[name] == name else getattr(module, name)
        setattr(sys.modules[package], name, value)  # not asked for again
        return value

    return look_up, lambda: sorted(sys.modules[package].__all__)
