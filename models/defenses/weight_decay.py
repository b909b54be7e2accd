"""Weight decay of all parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from models.architectures.base import StagedModel
from models.defenses.base import Defense
from models.plan import TrainingPlan


@dataclass(frozen=True, kw_only=True)
class WeightDecay(Defense):
    """Weight decay: adds weight · w to the gradient of every parameter w, biases included, as PyTorch's optimizers do.

    The loss's penalty is weight/2 · ‖w‖², half of what `l2` adds for the same number. It comes on top of `training.weight_decay`.
    No guarantee.
    """

    weight: float = 5e-4

    source: ClassVar[str] = "Krogh & Hertz 1991"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight is {self.weight}; it must be zero or more, and finite")

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        return plan.with_more_decay({name: self.weight / 2 for name, _ in model.named_parameters()})
