"""Differentially private SGD."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from models.architectures.base import StagedModel
from models.defenses.base import Defense, TrainingPlan
from models.private.accounting import ACCOUNTANTS, PrivacyAccounting, find_noise_multiplier
from models.private.rules import ClipThenNoise


@dataclass(frozen=True, kw_only=True)
class DpSgd(Defense):
    """Clips each example's gradient to `max_grad_norm`, adds Gaussian noise, averages over the expected batch.

    Give `epsilon`, and the smallest noise multiplier that reaches it for the planned steps is found; or
    give `noise_multiplier`, and ε follows. Batches are Poisson samples of expected size `batch_size`, as
    the accounting needs. The (ε, δ) guarantee is proved for adding or removing one example, for the
    final weights and all the intermediate ones; it does not cover choosing among several runs. It assumes noise
    that the attacker cannot reproduce and exact arithmetic: here noise is float32 from a seeded generator, good
    for studies; a model for release needs a secret seed and a cryptographic generator.

    Deviation from the paper: its batches were shuffled, while its ε came from an accountant for Poisson
    sampling; ours are Poisson. Its clip norm is not stated; ours is `max_grad_norm`, 1 by default.
    """

    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-5
    max_grad_norm: float = 1.0
    accountant: str = "prv"

    revision: ClassVar[int] = 3
    source: ClassVar[str] = "Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar & Zhang 2016"

    def __post_init__(self) -> None:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of epsilon and noise_multiplier")
        for name in ("epsilon", "noise_multiplier", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; it must be above 0 and finite")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta is {self.delta}; it must be above 0 and below 1, and well below 1/n")
        if self.accountant not in ACCOUNTANTS:
            raise ValueError(f"accountant is '{self.accountant}'; allowed: {', '.join(ACCOUNTANTS)}")

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        plan = replace(plan, sampling="poisson")
        sample_rate = plan.sample_rate
        noise_multiplier = self.noise_multiplier
        if noise_multiplier is None:
            assert self.epsilon is not None
            noise_multiplier = find_noise_multiplier(self.epsilon, sample_rate, plan.steps, self.delta, self.accountant)
        return plan.with_rule(
            ClipThenNoise(max_grad_norm=self.max_grad_norm, noise_multiplier=noise_multiplier),
            accounting=PrivacyAccounting(
                epsilon_target=self.epsilon,
                delta=self.delta,
                accountant=self.accountant,
                noise_multiplier=noise_multiplier,
                max_grad_norm=self.max_grad_norm,
                sample_rate=sample_rate,
            ),
        )
