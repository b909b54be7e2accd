"""RelaxLoss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.architectures.base import StagedModel
from models.defenses.base import Defense
from models.losses import Loss
from models.plan import TrainingPlan


@dataclass(frozen=True, kw_only=True)
class _Relaxed(Loss):
    """Cross-entropy that is held at `target_loss`; a batch's mean decides in which direction its examples go."""

    target_loss: float

    mixes_examples: ClassVar[bool] = True

    def __call__(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        loss = cross_entropy(logits, labels, reduction="none")
        is_above = loss.detach().mean() >= self.target_loss
        if epoch % 2 == 1:  # the paper counts epochs from 0
            return torch.where(is_above, loss, -loss)
        # What is left of the true class's probability is divided among the others alike.
        own = logits.detach().softmax(1).gather(1, labels[:, None])
        soft = ((1 - own) / (logits.shape[1] - 1)).expand_as(logits).scatter(1, labels[:, None], own)
        flattened = -(soft * logits.log_softmax(1)).sum(1)
        return torch.where(is_above, loss, flattened)


@dataclass(frozen=True, kw_only=True)
class Relaxloss(Defense):
    """RelaxLoss: keeps the mean loss of members near `target_loss`, which is that of non-members at best.

    In the first epoch and in every second one after it, a batch whose mean cross-entropy is below `target_loss` is trained to a
    larger one (gradient ascent). In the others, such a batch is trained on soft labels: the model's own probability of the true
    class, and the rest divided among the other classes alike (posterior flattening); no gradient passes through these labels.
    Above `target_loss`, the loss is cross-entropy. As the mean of a batch decides, the loss of one example depends on the others,
    and a private mechanism refuses it. No guarantee.

    The paper's `target_loss`: 1.0 for CIFAR-10 with a ResNet-20, .4 with VGG-11; 3 and .5 for CIFAR-100; .8 for Purchase-100, 2.5
    for Texas-100. It trains images without augmentation, so the attack that adapts asks only about the example itself.

    Source: Chen, Yu & Fritz 2022, Algorithm 1. The public code differs: it lets gradients through the soft labels, and ascends on
    all examples while it flattens those that are answered wrongly.
    """

    target_loss: float = 1.0

    source: ClassVar[str] = "Chen, Yu & Fritz 2022, Algorithm 1"
    adaptive_attacks: ClassVar[tuple[str, ...]] = ("lira/online_hinge_unaugmented", "lira/online_log_odds_unaugmented")

    def __post_init__(self) -> None:
        if not (math.isfinite(self.target_loss) and self.target_loss > 0):
            raise ValueError(f"target_loss is {self.target_loss}; it must be above 0 and finite")

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        return plan.with_loss(_Relaxed(target_loss=self.target_loss))
