"""Differentially private SGD."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from models.architectures.base import StagedModel
from models.defenses.base import BudgetedMechanism, check_positive
from models.plan import TrainingPlan
from models.private.rules import ClipThenNoise


@dataclass(frozen=True, kw_only=True)
class DpSgd(BudgetedMechanism):
    """DP-SGD: clips each example's gradient, adds Gaussian noise to the sum, divides by the expected batch size.

    The clip norm is `max_grad_norm`. Give either `epsilon` or `noise_multiplier`. For an `epsilon`, the smallest noise
    multiplier that reaches it over the planned steps is found. Batches are Poisson samples of expected size `batch_size`,
    as the accounting requires.

    The (ε, δ) guarantee is proved for adding or removing one example. It covers the final and all intermediate weights,
    but not choosing among several runs. It assumes exact arithmetic, and noise that an attacker cannot reproduce: noise
    from a seed is enough for studies, but a model for release needs `secure_noise`. docs/guarantees.md lists what remains
    inexact.

    Deviations from Lomurno & Matteucci 2022: the paper shuffled its batches although its accountant assumed Poisson
    sampling; ours are Poisson. The paper does not state its clip norm; our default is 1.
    """

    max_grad_norm: float = 1.0

    revision: ClassVar[int] = 4
    source: ClassVar[str] = "Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar & Zhang 2016"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "max_grad_norm")

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        plan = replace(plan, sampling="poisson")
        noise_multiplier = self.resolved_noise_multiplier(plan)
        rule = ClipThenNoise(max_grad_norm=self.max_grad_norm, noise_scale=noise_multiplier)
        return self.accounted(plan, rule, noise_multiplier, self.max_grad_norm, self.epsilon)
