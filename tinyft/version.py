"""The version: of the package, in the files that it writes, and of what is installed beside it."""

__version__ = "0.1.0"


def installed(package: str) -> str:
    """The version of an installed package; "" if it is not there."""
    import importlib.metadata  # slow to import, and few ask

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
