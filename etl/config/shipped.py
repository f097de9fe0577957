"""The files that come with the program: in the package, or beside it in a checkout."""

from pathlib import Path


def shipped(name: str) -> Path:
    """Where such a file or folder is."""
    package = Path(__file__).parents[1]
    inside = package / name
    return inside if inside.exists() else package.parent / name
