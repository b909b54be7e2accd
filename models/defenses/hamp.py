"""HAMP: less confident training, and answers whose confidences are those of a random input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from models.answers import Answer
from models.architectures.base import StagedModel
from models.defenses.base import Defense
from models.hashing import hashed, uniforms
from models.losses import Loss
from models.plan import TrainingPlan


@dataclass(frozen=True, kw_only=True)
class _HighEntropy(Loss):
    """KL divergence from the soft label, minus `entropy_weight` times the entropy of the answer, in nats."""

    entropy_share: float
    entropy_weight: float

    uses_epoch: ClassVar[bool] = False

    def __call__(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        n_classes = logits.shape[1]
        top = top_probability(self.entropy_share, n_classes)
        soft = torch.full_like(logits, (1 - top) / (n_classes - 1)).scatter(1, labels[:, None], top)
        answer = logits.log_softmax(1)
        divergence = (soft * (soft.clamp_min(1e-30).log() - answer)).sum(1)
        entropy = -(answer.exp() * answer).sum(1)
        return divergence - self.entropy_weight * entropy


@cache
def top_probability(entropy_share: float, n_classes: int) -> float:
    """The true class's probability in a soft label whose entropy is `entropy_share` · log(n_classes), others alike."""

    def excess(top: float) -> float:
        rest = (1 - top) / (n_classes - 1)
        return -top * float(np.log(top)) - (1 - top) * float(np.log(rest)) - entropy_share * float(np.log(n_classes))

    return float(brentq(excess, 1 / n_classes, 1 - 1e-12))


@dataclass(frozen=True, kw_only=True)
class Hamp(Defense):
    """HAMP: trains on soft labels of high entropy, and answers with a random input's confidences in the true order.

    Training (`train_soft`): the target of each example has the entropy `entropy_share` · log(classes), its true class first and
    the others alike; the loss is KL(target ‖ answer) − `entropy_weight` · entropy(answer), summed over classes and averaged over
    examples. Answers (`hide_answers`): the class order of the answer to the query, with the values of the answer to a random
    input in their place, from the highest to the lowest; equal values are made to differ by the least amount, so that the order,
    and the decision, never changes. The random input follows from the query alone: uniform pixels, fair bits if all features of a
    table's row are 0 or 1, or else standard normal features. Attacks that need no values are untouched; the training alone works
    with a private mechanism, too. No guarantee.

    The paper's `entropy_share` and `entropy_weight`: .95 and .001 for CIFAR-10, .5 and .005 for CIFAR-100, .8 and .01 for Purchase-100,
    .6 and .01 for Texas-100, .5 and .001 for Location-30.

    Source: Chen & Pattabiraman 2024. Its public code divides the divergence by the number of classes, too, which makes
    `entropy_weight` as many times heavier (with 10 classes, .01 here is its .001), and makes its optimizer anew in every epoch.
    Deviation: the paper draws the random input anew for each query; here the same query has the same answer.
    """

    entropy_share: float = 0.95
    entropy_weight: float = 0.001
    train_soft: bool = True
    hide_answers: bool = True

    source: ClassVar[str] = "Chen & Pattabiraman 2024"
    adaptive_attacks: ClassVar[tuple[str, ...]] = ("label_only/label_only_ratio",)

    def __post_init__(self) -> None:
        if not 1e-6 <= self.entropy_share < 1:
            raise ValueError(f"entropy_share is {self.entropy_share}; it must be at least 1e-6 and below 1")
        if not 0 <= self.entropy_weight < float("inf"):
            raise ValueError(f"entropy_weight is {self.entropy_weight}; it must be zero or more, and finite")
        if not (self.train_soft or self.hide_answers):
            raise ValueError("train_soft and hide_answers are both false, which is no defense; set one, or use none")

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        if not self.train_soft:
            return plan
        return plan.with_loss(_HighEntropy(entropy_share=self.entropy_share, entropy_weight=self.entropy_weight))

    def edit_answers(self, answer: Answer) -> Answer:
        if not self.hide_answers:
            return answer

        def hidden(inputs: Tensor) -> Tensor:
            order = answer(inputs).argsort(dim=1, descending=True, stable=True)
            values = answer(random_inputs(inputs)).log_softmax(1).sort(dim=1, descending=True).values
            return torch.empty_like(values).scatter(1, order, _strictly_falling(values))

        return hidden


def _strictly_falling(values: Tensor) -> Tensor:
    """Values (n, classes) in descending order, each lowered to the next smaller number if it equals the one before it."""
    columns = [values[:, 0]]
    for column in values.unbind(1)[1:]:
        below = torch.nextafter(columns[-1], torch.full_like(column, -torch.inf))
        columns.append(torch.minimum(column, below))
    return torch.stack(columns, dim=1)


def random_inputs(inputs: Tensor) -> Tensor:
    """A random input for each query, of the same shape and type, that follows from the query's own values alone."""
    numbers = hashed(inputs, inputs[0].numel())
    if inputs.dtype == torch.uint8:
        return (numbers & 0xFF).to(torch.uint8).view_as(inputs)
    uniform = uniforms(numbers).view_as(inputs)
    if inputs.dim() > 2:  # images in [0, 1]
        return uniform.to(inputs.dtype)
    are_bits = ((inputs == 0) | (inputs == 1)).all(dim=1, keepdim=True)
    return torch.where(are_bits, (uniform < 0.5).to(uniform), torch.special.ndtri(uniform)).to(inputs.dtype)
