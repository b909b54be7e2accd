"""Noise, then clipping: the "noisy gradient" or "AC" in Lin et al. 2020."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from models.architectures.base import StagedModel
from models.defenses.base import Mechanism, check_noise_scale, check_positive
from models.plan import TrainingPlan
from models.private.rules import NoiseThenClip, NoiseUnit

REASON = (
    "noise was added to each gradient before clipping, so nothing bounds what one example can change relative to the "
    "noise; clipping afterwards is post-processing and adds no protection"
)


@dataclass(frozen=True, kw_only=True)
class NoiseThenClipDefense(Mechanism):
    """Adds Gaussian noise to each example's gradient, then clips it to `max_grad_norm`. No guarantee.

    Each coordinate of each gradient gets noise of standard deviation `noise_scale`, in multiples of the clip norm
    (`noise_unit: clip_norm`) or `absolute`. Before clipping, the noise in a batch's sum is therefore √batch times that of
    `clip_then_noise` with the same scale. `form` says how noise is drawn: a full vector for each example (`literal`), two
    numbers for each example (`two_scalar`), or whichever suits the model's size (`auto`). See
    `models.private.rules.NoiseThenClip`.

    No (ε, δ) is known, because the gradients that get noise are unbounded. `training.sampling` decides how batches are
    drawn.

    Deviation from the paper: its Algorithm 1 is lost, so the unit of its noise scale is unknown.
    """

    max_grad_norm: float = 1.0
    noise_scale: float = 0.5
    noise_unit: NoiseUnit = "clip_norm"
    form: Literal["auto", "two_scalar", "literal"] = "auto"

    revision: ClassVar[int] = 2
    source: ClassVar[str] = "Lin, Bao, Li, Si & Chu 2020, section 4.1"

    def __post_init__(self) -> None:
        check_positive(self, "max_grad_norm")
        check_noise_scale(self.noise_scale)

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        rule = NoiseThenClip(
            max_grad_norm=self.max_grad_norm, noise_scale=self.noise_scale, noise_unit=self.noise_unit, form=self.form
        )
        return plan.with_rule(rule, no_guarantee_reason=REASON)
