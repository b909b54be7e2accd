"""No defense: the baseline of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.defenses.base import Defense


@dataclass(frozen=True, kw_only=True)
class NoDefense(Defense):
    """No defense: the ordinary gradient of a batch, with any optimizer. No guarantee."""

    source: ClassVar[str] = "the baseline"
