"""Finds the files that travel with tinyft: the weights registry, class names, pictures.

In an installed wheel they lie inside the package, in `tinyft/bundled/`.  In a checkout (or an
editable install) they lie beside the package, where a reader of the repository expects them.
"""

from __future__ import annotations

from pathlib import Path

from tinyft.errors import TinyftError

_PACKAGE = Path(__file__).resolve().parent


def bundled(relative_path: str) -> Path:
    """The path of a file or folder that travels with tinyft, such as `weights/registry.toml`.

    Raises: TinyftError if neither the installed package nor the checkout has it.
    """
    places = (_PACKAGE / "bundled", _PACKAGE.parent)
    for place in places:
        if (place / relative_path).exists():
            return place / relative_path
    looked = " and ".join(str(place) for place in places)
    raise TinyftError(
        f"tinyft's own file {relative_path} is missing (looked in {looked}); "
        f"the installation is incomplete: install tinyft again"
    )
