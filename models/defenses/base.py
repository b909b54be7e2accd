"""What a defense may change: the model before training, and the plan of the training.

Defenses compose: a list of them is applied in order. None of them is named anywhere else.
"""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from models.architectures.base import StagedModel
from models.private.accounting import ACCOUNTANTS, PrivacyAccounting, find_noise_multiplier
from models.private.rules import Rule


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How one target is going to be trained; defenses replace parts of it.

    `weight_decay` maps parameter names to λ of a penalty λ‖w‖² added to the loss. `rule` turns
    per-example gradient norms into weights and noise; without one, gradients are averaged as usual.
    `accounting` proves a guarantee for the steps taken; without one, `no_guarantee_reason` says why not. `secure_noise`
    draws noise, batches and dropout masks from the system's generator.
    """

    n_train: int
    epochs: int
    batch_size: int
    sampling: Literal["shuffled", "poisson"] = "shuffled"
    weight_decay: dict[str, float] = field(default_factory=dict)
    rule: Rule | None = None
    accounting: PrivacyAccounting | None = None
    no_guarantee_reason: str = "no differentially private mechanism was used"
    secure_noise: bool = False

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


@dataclass(frozen=True, kw_only=True)
class Mechanism(Defense):
    """Base of the defenses that put a rule in place of the ordinary gradient; a training takes one of them.

    `poisson_sampling` says whether the mechanism draws Poisson batches, whatever the training asks for.
    """

    poisson_sampling: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class AccountedMechanism(Mechanism):
    """Base of the mechanisms whose ε is proved: with `delta`, by `accountant`, under Poisson batches.

    `secure_noise` is for a model that is released: noise, batches and dropout masks come from the operating system's
    cryptographic generator, without a seed that anyone could find. Such a target cannot be repeated, and its record says so.
    """

    delta: float = 1e-5
    accountant: str = "prv"
    secure_noise: bool = False

    poisson_sampling: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ValueError(f"delta is {self.delta}; it must be above 0 and below 1, and well below 1/n")
        if self.accountant not in ACCOUNTANTS:
            raise ValueError(f"accountant is '{self.accountant}'; allowed: {', '.join(ACCOUNTANTS)}")

    def accounted(
        self,
        plan: TrainingPlan,
        rule: Rule,
        noise_multiplier: float,
        max_grad_norm: float | None,
        epsilon_target: float | None = None,
    ) -> TrainingPlan:
        """A plan whose batches are Poisson samples, under `rule` and its accounting."""
        accounting = PrivacyAccounting(
            epsilon_target=epsilon_target,
            delta=self.delta,
            accountant=self.accountant,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            sample_rate=plan.sample_rate,
        )
        return plan.with_rule(rule, accounting=accounting, secure_noise=self.secure_noise)


@dataclass(frozen=True, kw_only=True)
class BudgetedMechanism(AccountedMechanism):
    """Base of the mechanisms that are given either an ε to reach or a noise multiplier."""

    epsilon: float | None = None
    noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of epsilon and noise_multiplier")
        check_positive(self, "epsilon", "noise_multiplier")

    def resolved_noise_multiplier(self, plan: TrainingPlan) -> float:
        """The noise multiplier given, or the smallest that reaches `epsilon` over the plan's steps."""
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        assert self.epsilon is not None
        return find_noise_multiplier(self.epsilon, plan.sample_rate, plan.steps, self.delta, self.accountant)


def check_positive(defense: Defense, *names: str) -> None:
    """Refuse fields that are not above 0 and finite; None passes.

    Raises:
        ValueError: one of them is not.
    """
    for name in names:
        value = getattr(defense, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; it must be above 0 and finite")


def check_quantile(quantile: float) -> None:
    """Refuse a quantile that is none.

    Raises:
        ValueError: it is not from 0 to 1.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}; it must be from 0 to 1")


def check_noise_scale(noise_scale: float) -> None:
    """Refuse a noise scale that is below 0 or not finite.

    Raises:
        ValueError: it is.
    """
    if not (math.isfinite(noise_scale) and noise_scale >= 0):
        raise ValueError(f"noise_scale is {noise_scale}; it must be zero or more, and finite")
