"""L2 regularization of the prediction layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from models.architectures.base import StagedModel
from models.defenses.base import Defense
from models.plan import TrainingPlan


@dataclass(frozen=True, kw_only=True)
class L2(Defense):
    """Adds weight·‖w‖² to the loss, for the weights (not the bias) of the prediction layer only.

    This is Keras's `kernel_regularizer`, which the paper used. PyTorch's `weight_decay` multiplies w itself, so the
    optimizer gets 2·weight for this parameter. No guarantee.
    """

    weight: float = 2e-2

    revision: ClassVar[int] = 2
    source: ClassVar[str] = "Lomurno & Matteucci 2022, section 4"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight is {self.weight}; it must be zero or more")

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        last = f"stages.{model.stage_names[-1]}."
        names = [
            name
            for name, value in model.named_parameters()
            if name.startswith(last) and name.endswith("weight") and value.ndim > 1
        ]
        return plan.with_more_decay(dict.fromkeys(names, self.weight))
