"""Losses per example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy


@dataclass(frozen=True, kw_only=True)
class Loss(ABC):
    """Base of all losses: a frozen dataclass that is called with logits (n, classes), labels (n,) and the epoch, from 1.

    It returns one loss per example (n,), which must not depend on other examples: private gradients would be wrong.
    """

    uses_epoch: ClassVar[bool] = True
    """Whether the loss may change from epoch to epoch. If not, a captured step is used again in the next epoch."""

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """The loss of each example (n,)."""


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """Cross-entropy in nats.

    With `label_smoothing` s, the target is 1 − s + s/classes for the true class and s/classes for each other one (Szegedy et
    al. 2016, section 7). A negative s sharpens instead (Struppek et al. 2024).
    """

    label_smoothing: float = 0.0

    uses_epoch: ClassVar[bool] = False

    def __call__(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        loss = cross_entropy(logits, labels, reduction="none")
        if not self.label_smoothing:
            return loss
        uniform = -logits.log_softmax(1).mean(1)
        return (1 - self.label_smoothing) * loss + self.label_smoothing * uniform


def check_loss(loss: Loss, logits: Tensor, labels: Tensor, epoch: int) -> None:
    """Check on a few examples that a loss has one value per example, which does not depend on the others.

    Raises:
        ValueError: it does not.
    """
    losses = loss(logits, labels, epoch)
    name = type(loss).__name__
    if losses.shape != labels.shape:
        raise ValueError(
            f"loss {name} returned shape {tuple(losses.shape)} for {len(labels)} examples; it must return one value for each"
        )
    alone = loss(logits[:1], labels[:1], epoch)
    if not bool((alone - losses[:1]).abs() <= 1e-4 * (1 + losses[:1].abs())):
        raise ValueError(
            f"loss {name} mixes examples: it is {float(losses[0]):.6g} for one of {len(labels)} and {float(alone):.6g} for the same "
            "one alone. Compute it from each example's own logits"
        )
