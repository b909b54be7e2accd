"""The sweeps that come with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def packaged_sweeps() -> dict[str, Path]:
    """The sweeps that come with the package, by name."""
    folder = Path(str(resources.files("sweeper.sweep") / "sweeps"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
