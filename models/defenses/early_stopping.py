"""Early stopping."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from models.architectures.base import StagedModel
from models.defenses.base import Defense
from models.plan import EarlyStopping as Stopping
from models.plan import TrainingPlan


@dataclass(frozen=True, kw_only=True)
class EarlyStopping(Defense):
    """Early stopping: keeps the weights of the epoch with the least loss on a share `held_out` of the members.

    Training ends after `patience` epochs without a smaller loss, or after `training.epochs`. The held-out members are drawn at
    random and are not trained on; they stay members in all evaluations, because the training was given them. Part of what is
    gained in privacy is theirs. Cannot be combined with a mechanism that proves an ε, which would not cover the choice of the
    epoch. No guarantee.
    """

    held_out: float = 0.1
    patience: int = 5

    source: ClassVar[str] = "Prechelt 1998"

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; it must be above 0 and below 1")
        if self.patience < 1:
            raise ValueError(f"patience is {self.patience}; it must be at least 1 epoch")

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        if plan.early_stopping is not None:
            raise ValueError("early stopping is listed twice; keep one")
        n_held_out = max(1, round(self.held_out * plan.n_train))
        stopping = Stopping(n_held_out=n_held_out, patience=self.patience)
        return replace(plan, n_train=plan.n_train - n_held_out, early_stopping=stopping)
