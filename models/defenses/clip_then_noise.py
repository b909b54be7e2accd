"""Clipping, then noise of a given scale: "CA" in Lin et al. 2020."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from models.architectures.base import StagedModel
from models.defenses.base import AccountedMechanism, check_noise_scale, check_positive
from models.plan import TrainingPlan
from models.private.rules import ClipThenNoise, NoiseUnit


@dataclass(frozen=True, kw_only=True)
class ClipThenNoiseDefense(AccountedMechanism):
    """DP-SGD with a given noise scale: clips each example's gradient, then adds Gaussian noise to the batch's sum.

    The clip norm is `max_grad_norm`. The noise has standard deviation `noise_scale`, either in multiples of the clip norm
    (`noise_unit: clip_norm`; it is then DP-SGD's noise multiplier) or `absolute`. The guarantee is that of `dp_sgd`, for
    Poisson batches. With a `noise_scale` of 0 there is none.

    Deviation from the paper: the paper drew batches of a fixed size and stated no ε.
    """

    max_grad_norm: float = 1.0
    noise_scale: float = 0.5
    noise_unit: NoiseUnit = "clip_norm"

    revision: ClassVar[int] = 2
    source: ClassVar[str] = "Abadi et al. 2016; Lin, Bao, Li, Si & Chu 2020, section 4.2"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "max_grad_norm")
        check_noise_scale(self.noise_scale)

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        plan = replace(plan, sampling="poisson")
        rule = ClipThenNoise(max_grad_norm=self.max_grad_norm, noise_scale=self.noise_scale, noise_unit=self.noise_unit)
        if self.noise_scale == 0:
            return plan.with_rule(rule, no_guarantee_reason="gradients were clipped but no noise was added")
        noise_multiplier = self.noise_scale / (self.max_grad_norm if self.noise_unit == "absolute" else 1.0)
        return self.accounted(plan, rule, noise_multiplier, self.max_grad_norm)
