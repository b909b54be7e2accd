"""Label smoothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.architectures.base import StagedModel
from models.defenses.base import Defense
from models.losses import CrossEntropy
from models.plan import TrainingPlan


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Defense):
    """Label smoothing: trains on targets that give a share `smoothing` to all classes alike, the rest to the true one.

    A negative `smoothing` sharpens instead. Works with a private mechanism. No guarantee of its own.
    """

    smoothing: float = 0.1

    source: ClassVar[str] = "Szegedy et al. 2016, section 7; Struppek et al. 2024 (negative)"

    def __post_init__(self) -> None:
        if not -1 <= self.smoothing < 1:
            raise ValueError(f"smoothing is {self.smoothing}; it must be at least -1 and below 1")

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        return plan.with_loss(CrossEntropy(label_smoothing=self.smoothing))
