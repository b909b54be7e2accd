"""Clipping to a quantile of the batch's own norms: Algorithm 2 of Lin et al. 2020."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from models.architectures.base import StagedModel
from models.defenses.base import Mechanism, check_noise_scale, check_quantile
from models.plan import TrainingPlan
from models.private.rules import NoiseUnit, QuantileClipping

REASON = (
    "gradients were clipped to a quantile of the batch's own norms, which was not noised: one example can move the clip "
    "norm of all others"
)


@dataclass(frozen=True, kw_only=True)
class QuantileClippingDefense(Mechanism):
    """Clips each example's gradient to a quantile of the batch's norms, then adds noise to the sum. No guarantee.

    `layers: flat` clips the whole gradient; `per_layer` clips each layer's part to that layer's own quantile. The noise has
    standard deviation `noise_scale`, in multiples of the largest norm that one example can add to the sum (`noise_unit:
    clip_norm`) or `absolute`. The private counterpart is `noised_quantile`.

    Deviation: of Lin et al.'s Algorithm 2 only the steps survive (gradients, quantile, clipping, update). The noise, its
    scale and its unit are our choice; they follow DP-SGD.
    """

    quantile: float = 0.5
    layers: Literal["flat", "per_layer"] = "flat"
    noise_scale: float = 0.5
    noise_unit: NoiseUnit = "clip_norm"

    revision: ClassVar[int] = 2
    source: ClassVar[str] = "Lin, Bao, Li, Si & Chu 2020, Algorithm 2; Thakkar, Andrew & McMahan 2019"

    def __post_init__(self) -> None:
        check_quantile(self.quantile)
        check_noise_scale(self.noise_scale)

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        rule = QuantileClipping(
            quantile=self.quantile, layers=self.layers, noise_scale=self.noise_scale, noise_unit=self.noise_unit
        )
        return plan.with_rule(rule, no_guarantee_reason=REASON)
