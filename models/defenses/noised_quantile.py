"""Adaptive clipping with a guarantee: the clip norm follows a quantile estimated with noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from models.architectures.base import StagedModel
from models.defenses.base import BudgetedMechanism, check_positive, check_quantile
from models.plan import TrainingPlan
from models.private.rules import NoisedQuantile


@dataclass(frozen=True, kw_only=True)
class NoisedQuantileDefense(BudgetedMechanism):
    """DP-SGD whose clip norm follows a quantile of the gradient norms. ε includes the privacy cost of the quantile.

    Give either `epsilon` or `noise_multiplier`. Both apply to sum and count together, so the sum gets slightly more noise
    than in DP-SGD with the same multiplier. `count_noise_std` is the standard deviation of the noise on the count of
    unclipped examples. Its default, a twentieth of the batch size, and the defaults of `initial_clip_norm` and
    `clip_learning_rate` are the authors'. The guarantee is that of `dp_sgd`: Poisson batches, adding or removing one
    example.
    """

    quantile: float = 0.5
    initial_clip_norm: float = 0.1
    clip_learning_rate: float = 0.2
    count_noise_std: float | None = None

    revision: ClassVar[int] = 2
    source: ClassVar[str] = "Andrew, Thakkar, McMahan & Ramaswamy 2021"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "initial_clip_norm", "clip_learning_rate", "count_noise_std")
        check_quantile(self.quantile)

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        plan = replace(plan, sampling="poisson")
        noise_multiplier = self.resolved_noise_multiplier(plan)
        count_noise_std = plan.batch_size / 20 if self.count_noise_std is None else self.count_noise_std
        if noise_multiplier >= 2 * count_noise_std:
            raise ValueError(
                f"count_noise_std is {count_noise_std:g}; it must be above half of the noise multiplier, "
                f"{noise_multiplier:.4g}, or the count alone exceeds the privacy budget"
            )
        rule = NoisedQuantile(
            noise_scale=(noise_multiplier**-2 - (2 * count_noise_std) ** -2) ** -0.5,
            initial=self.initial_clip_norm,
            quantile=self.quantile,
            learning_rate=self.clip_learning_rate,
            count_noise_std=count_noise_std,
        )
        return self.accounted(plan, rule, noise_multiplier, None, self.epsilon)
