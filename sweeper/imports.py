"""Makes imports of sweeper's packages find their own files, even if other packages are called `models` or `attacks`.

Many machine-learning projects have such names in the working directory or on PYTHONPATH, where Python looks first.
This module imports nothing of ours, so that it can travel to a worker by value and run before `sweeper` is found.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

PACKAGES = ("sweeper", "models", "attacks", "analysis")


class _OwnPackages:
    """A finder that `import` asks first. It knows the folder of each package."""

    def __init__(self, folders: dict[str, str]) -> None:
        self._folders = folders

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._folders:
            return None
        return importlib.machinery.PathFinder.find_spec(name, [self._folders[name]])


def pin_packages(folders: Sequence[str]) -> None:
    """Make each of our packages be imported from the first of `folders` that has it."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        for folder in folders:
            if os.path.isfile(os.path.join(folder, name, "__init__.py")):  # noqa: PTH113, PTH118  few imports
                found[name] = folder
                break
    sys.meta_path.insert(0, _OwnPackages(found))


def worker_hook(folder: str | None) -> Callable[[], None]:
    """The function that a Ray worker calls at its start. It pins the packages to `folder`, else to the shipped code.

    Ray puts the shipped code first on the worker's PYTHONPATH.
    """

    def pin_own_packages() -> None:
        shipped = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        pin_packages([folder] if folder is not None else [each for each in shipped if each])

    return pin_own_packages
