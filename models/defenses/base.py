"""Base classes of defenses. A defense may change the model before training, and the training plan.

Defenses compose: a list of defenses is applied in order. No other code names a defense.
"""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from models.answers import Answer
from models.architectures.base import StagedModel
from models.plan import TrainingPlan
from models.private.accounting import ACCOUNTANTS, PrivacyAccounting, find_noise_multiplier
from models.private.rules import Rule

if TYPE_CHECKING:
    from models.train import Recipe, TrainedTarget


@dataclass(frozen=True, kw_only=True)
class Defense(ABC):
    """Base of all defenses: a frozen dataclass with four methods. By default each changes nothing.

    `edit_model` changes the network, `edit_training` the plan of its training, `train` how it is trained (or what is trained:
    an ensemble, a teacher and a student), and `edit_answers` what happens when the trained model is asked.
    """

    source: ClassVar[str]
    revision: ClassVar[int] = 1
    """Raised when the same configuration would train a different target."""
    needs_reference: ClassVar[bool] = False
    """Whether training needs reference examples: other people's, which are neither trained on nor evaluated."""
    adaptive_attacks: ClassVar[tuple[str, ...]] = ()
    """Scores of cohort attacks, as `attack/score_name`, that adapt to this defense: fixed before any result, and tried beside LiRA."""
    worst_canaries: ClassVar[tuple[str, ...]] = ("mislabeled",)
    """Kinds of canaries (`models/canaries.py`) that expose this defense most: fixed before any result."""

    @property
    def name(self) -> str:
        """The name that users type."""
        return type(self).__module__.rpartition(".")[2]

    def edit_model(self, model: StagedModel) -> StagedModel:
        """The model to train instead of `model`."""
        return model

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        """The plan to follow instead of `plan`; `model` is the edited model."""
        return plan

    def train(self, recipe: Recipe) -> TrainedTarget:
        """Train by `recipe`, which has all other defenses of the target. At most one defense of a target may do so otherwise.

        The model that it returns must have the structure that `edit_model` gives, because recorded weights are loaded into that.
        """
        return recipe.fit()

    def edit_answers(self, answer: Answer) -> Answer:
        """The answers to give instead of `answer`'s, to the same inputs: finite logits (n, classes).

        Accuracy and every attack that asks the model see these. Answers must be repeatable: random numbers must follow from the
        input and from nothing else.
        """
        return answer


@dataclass(frozen=True, kw_only=True)
class Mechanism(Defense):
    """Base of the defenses that replace the ordinary gradient by a rule. A training takes at most one.

    If `poisson_sampling` is true, the mechanism always draws Poisson batches, whatever `training.sampling` says.
    """

    poisson_sampling: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class AccountedMechanism(Mechanism):
    """Base of the mechanisms with a proved ε, at `delta`, by `accountant`, under Poisson batches.

    Use `secure_noise` for a model that will be released: noise, batches and dropout masks then come from the operating
    system's cryptographic generator, so there is no seed to find. Such a target cannot be repeated; its record says so.
    """

    delta: float = 1e-5
    accountant: str = "prv"
    secure_noise: bool = False

    poisson_sampling: ClassVar[bool] = True
    worst_canaries: ClassVar[tuple[str, ...]] = ("mislabeled", "blank", "outlier_folder")

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
        """The plan with `rule` and its accounting. The plan's batches must be Poisson samples."""
        accounting = PrivacyAccounting(
            epsilon_target=epsilon_target,
            delta=self.delta,
            accountant=self.accountant,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            sample_rate=plan.sample_rate,
        )
        return plan.with_rule(rule, accounting=accounting, accounted_rule=rule, secure_noise=self.secure_noise)


@dataclass(frozen=True, kw_only=True)
class BudgetedMechanism(AccountedMechanism):
    """Base of the mechanisms that take either a target ε or a noise multiplier."""

    epsilon: float | None = None
    noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of epsilon and noise_multiplier")
        check_positive(self, "epsilon", "noise_multiplier")

    def resolved_noise_multiplier(self, plan: TrainingPlan) -> float:
        """The given noise multiplier, or else the smallest one that reaches `epsilon` over the plan's steps."""
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        assert self.epsilon is not None
        return find_noise_multiplier(self.epsilon, plan.sample_rate, plan.steps, self.delta, self.accountant)


def check_positive(defense: Defense, *names: str) -> None:
    """Check that each named field is None, or above 0 and finite.

    Raises:
        ValueError: a field is not.
    """
    for name in names:
        value = getattr(defense, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; it must be above 0 and finite")


def check_quantile(quantile: float) -> None:
    """Check a quantile.

    Raises:
        ValueError: it is not in [0, 1].
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}; it must be from 0 to 1")


def check_noise_scale(noise_scale: float) -> None:
    """Check a noise scale.

    Raises:
        ValueError: it is below 0 or not finite.
    """
    if not (math.isfinite(noise_scale) and noise_scale >= 0):
        raise ValueError(f"noise_scale is {noise_scale}; it must be zero or more, and finite")
