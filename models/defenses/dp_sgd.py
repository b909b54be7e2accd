"""Differentially private SGD."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from models.architectures.base import StagedModel
from models.defenses.base import BudgetedMechanism, TrainingPlan, check_positive
from models.private.rules import ClipThenNoise


@dataclass(frozen=True, kw_only=True)
class DpSgd(BudgetedMechanism):
    """Clips each example's gradient to `max_grad_norm`, adds Gaussian noise, averages over the expected batch.

    Give `epsilon`, and the smallest noise multiplier that reaches it for the planned steps is found; or
    give `noise_multiplier`, and ε follows. Batches are Poisson samples of expected size `batch_size`, as
    the accounting needs. The (ε, δ) guarantee is proved for adding or removing one example, for the
    final weights and all the intermediate ones; it does not cover choosing among several runs. It assumes noise
    that the attacker cannot reproduce and exact arithmetic: noise from a seed is good for studies; a model for release
    needs `secure_noise`. docs/guarantees.md says what is inexact still.

    Deviation from the paper: its batches were shuffled, while its ε came from an accountant for Poisson
    sampling; ours are Poisson. Its clip norm is not stated; ours is `max_grad_norm`, 1 by default.
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
