"""No defense: the baseline of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.defenses.base import Defense


@dataclass(frozen=True, kw_only=True)
class NoDefense(Defense):
    """The ordinary gradient of a batch, by whatever optimizer. No guarantee."""

    source: ClassVar[str] = "the baseline"
