"""Losses per example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def as_rows(inputs: Tensor, views: int) -> Tensor:
    """Inputs (n, views, ...) as rows (n · views, ...), an example's views one after the other; with one view, (n, ...) as they are."""
    return inputs if views == 1 else inputs.flatten(0, 1)


def for_each_view(labels: Tensor, views: int) -> Tensor:
    """The labels (n · views, …) of these rows."""
    return labels if views == 1 else labels.repeat_interleave(views, 0)


def mean_of_views(values: Tensor, views: int) -> Tensor:
    """Each example's mean (n,) of the values (n · views,) of its views."""
    return values if views == 1 else values.unflatten(0, (-1, views)).mean(1)


_TRIED = 8
"""Number of examples that a loss is tried on."""


@dataclass(frozen=True, kw_only=True)
class Loss(ABC):
    """Base of all losses: a frozen dataclass that is called with logits (n, classes), labels (n,) and the epoch, from 1.

    It returns one loss per example (n,), which must not depend on other examples unless `mixes_examples` says so: private gradients
    would be wrong.
    """

    uses_epoch: ClassVar[bool] = True
    """Whether the loss may change from epoch to epoch. If not, a captured step is used again in the next epoch."""
    mixes_examples: ClassVar[bool] = False
    """Whether an example's loss depends on the batch. A private mechanism then refuses it."""

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """The loss of each example (n,)."""

    def soft(self, logits: Tensor, soft_labels: Tensor, epoch: int) -> Tensor:
        """The loss of each example (n,), averaged over labels with the probabilities `soft_labels` (n, classes)."""
        n_examples, num_classes = soft_labels.shape
        every_label = torch.arange(num_classes, device=logits.device).repeat(n_examples)
        losses = self(logits.repeat_interleave(num_classes, 0), every_label, epoch)
        return (soft_labels * losses.view(n_examples, num_classes)).sum(1)


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

    def soft(self, logits: Tensor, soft_labels: Tensor, epoch: int) -> Tensor:
        """The base class's loss, without computing it for every label."""
        smoothed = (1 - self.label_smoothing) * soft_labels + self.label_smoothing / soft_labels.shape[1]
        return -(smoothed * logits.log_softmax(1)).sum(1)


def check_loss(loss: Loss, num_classes: int, epoch: int) -> None:
    """Check on random logits that a loss has one value per example, and that neither it nor its gradient depends on the others.

    Raises:
        ValueError: it does not.
    """
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(_TRIED, num_classes, generator=generator)).requires_grad_()
    labels = torch.randint(num_classes, (_TRIED,), generator=generator)
    name = type(loss).__name__
    with torch.enable_grad():
        together = loss(logits, labels, epoch)
        if together.shape != labels.shape:
            raise ValueError(
                f"loss {name} returned shape {tuple(together.shape)} for {len(labels)} examples; it must return one value for each"
            )
        alone = torch.cat([loss(each[None], label[None], epoch) for each, label in zip(logits, labels, strict=True)])
        gradients = [
            torch.stack([torch.autograd.grad(each, logits, retain_graph=True)[0] for each in losses])
            for losses in (together, alone)
        ]
    if loss.mixes_examples or not _close(together, alone) or not _close(*gradients):
        raise ValueError(
            f"loss {name} mixes examples in epoch {epoch}: its value or gradient for one example depends on the others in the batch. "
            "Compute it from each example's own logits"
        )


def _close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-4, atol=1e-5, equal_nan=True)
