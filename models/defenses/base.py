"""What a defense may change: the model before training, and the plan of the training.

Defenses compose: a list of them is applied in order. None of them is named anywhere else.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from models.architectures.base import StagedModel
from models.private.accounting import PrivacyAccounting
from models.private.rules import Rule


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How one target is going to be trained; defenses replace parts of it.

    `weight_decay` maps parameter names to λ of a penalty λ‖w‖² added to the loss. `rule` turns
    per-example gradient norms into weights and noise; without one, gradients are averaged as usual.
    `accounting` proves a guarantee for the steps taken; without one, `no_guarantee_reason` says why not.
    """

    n_train: int
    epochs: int
    batch_size: int
    sampling: Literal["shuffled", "poisson"] = "shuffled"
    weight_decay: dict[str, float] = field(default_factory=dict)
    rule: Rule | None = None
    accounting: PrivacyAccounting | None = None
    no_guarantee_reason: str = "no differentially private mechanism was used"

    @property
    def sample_rate(self) -> float:
        """Probability of one example to be in a Poisson batch."""
        return self.batch_size / self.n_train

    def steps_until(self, epoch: int) -> int:
        """Steps after `epoch` epochs, an integer: Poisson epochs share ⌊epochs · n / batch⌋ steps."""
        if self.sampling == "poisson":
            return max(1, epoch * self.n_train // self.batch_size) if epoch else 0
        return epoch * -(-self.n_train // self.batch_size)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.steps_until(self.epochs)

    def with_rule(self, rule: Rule, **changes: object) -> TrainingPlan:
        """The plan under `rule`; a second rule in one training is refused."""
        if self.rule is not None:
            raise ValueError("two private mechanisms in one list of defenses; keep one")
        return replace(self, rule=rule, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Defense(ABC):
    """Base of all defenses: a frozen dataclass with two methods, each of which may do nothing."""

    source: ClassVar[str]
    revision: ClassVar[int] = 1
    """Goes up when the same configuration would train another target."""

    def edit_model(self, model: StagedModel) -> StagedModel:
        """The model to train in place of `model`."""
        return model

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        """The plan to follow in place of `plan`; `model` is the edited one."""
        return plan
