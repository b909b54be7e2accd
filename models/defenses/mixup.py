"""Mixup."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from models.architectures.base import StagedModel
from models.augmentation import Mixing
from models.defenses.base import Defense
from models.plan import TrainingPlan


@dataclass(frozen=True, kw_only=True)
class Mixup(Defense):
    """Mixup: trains on mixtures of two examples and of their losses, with weights s and 1 − s, s ~ Beta(alpha, alpha).

    Each batch draws one s, and mixes each of its examples with another one of it. No gradient belongs to one example, so mixup
    cannot be combined with a private mechanism. No guarantee.
    """

    alpha: float = 1.0

    source: ClassVar[str] = "Zhang, Cissé, Dauphin & Lopez-Paz 2018"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha is {self.alpha}; it must be above 0 and finite")

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        if plan.mixing is not None:
            raise ValueError("two defenses mix examples; leave one of them out")
        return replace(plan, mixing=Mixing(alpha=self.alpha))
