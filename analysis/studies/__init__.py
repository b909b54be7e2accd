"""The papers that results are compared with: one folder each. `base.Study` says what a folder holds.

A study is found by scanning this folder. Nothing outside it names one, so a new study is one new folder.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.studies.base import Study


@cache
def found() -> tuple[Study, ...]:
    """`STUDY` of every package in this folder, in the order of their names."""
    names = sorted(each.name for each in pkgutil.iter_modules(__path__) if each.ispkg)
    return tuple(importlib.import_module(f"{__name__}.{name}").STUDY for name in names)
