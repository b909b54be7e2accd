"""Prediction purification: answers pass an autoencoder that was trained on other people's examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.architectures.base import StagedModel
from models.defenses.base import Defense
from models.reference import Mask, relu_network, shuffled_batches, train_with_mask, with_mask

if TYPE_CHECKING:
    from models.train import Recipe, TrainedTarget

_BATCH = 64
_LEARNING_RATE = 1e-3


@dataclass(frozen=True, kw_only=True)
class PredictionPurification(Defense):
    """Prediction purification: an autoencoder over the answers' probabilities makes members' and others' look alike.

    The autoencoder has `hidden` ReLU layers. It learns in `epochs` to rebuild the target's probabilities p of reference examples, by
    ‖purified − p‖² + `label_weight` · cross-entropy(purified, argmax p), so that it knows of no member. Decisions mostly stay, which
    nothing enforces. The answers of a model are all that changes. No guarantee.

    The split must set `reference` examples aside.

    Source: Yang, Shao, Xuan, Chang & Zhang 2020 (arXiv 2005.03915), sections III and IV. No public code was found. Deviations: the
    part that is trained against an inversion network is left out; sizes of the layers and `label_weight` are ours.
    """

    hidden: tuple[int, ...] = (32, 8, 32)
    epochs: int = 200
    label_weight: float = 0.1

    source: ClassVar[str] = "Yang, Shao, Xuan, Chang & Zhang 2020"
    adaptive_attacks: ClassVar[tuple[str, ...]] = ("label_only/label_only_ratio",)
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden is {list(self.hidden)}; it must have at least one layer, each of at least 1 unit")
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; it must be at least 1")
        if not 0 <= self.label_weight < float("inf"):
            raise ValueError(f"label_weight is {self.label_weight}; it must be zero or more, and finite")

    def edit_model(self, model: StagedModel) -> StagedModel:
        return with_mask(model, self.name, self._mask(model.num_classes))

    def train(self, recipe: Recipe) -> TrainedTarget:
        return train_with_mask(recipe, self.name, self._mask, self._learn)

    def _mask(self, n_classes: int) -> _Purifier:
        return _Purifier(n_classes, self.hidden)

    def _learn(self, mask: Mask, members: Tensor, reference: Tensor, generator: torch.Generator) -> None:
        probabilities = reference.softmax(1)
        optimizer = torch.optim.Adam(mask.parameters(), lr=_LEARNING_RATE)
        for (own,) in shuffled_batches((probabilities,), _BATCH, self.epochs, generator):
            purified = mask.masked(own.log())
            error = (purified.exp() - own).square().sum(1).mean()
            optimizer.zero_grad()
            (error + self.label_weight * cross_entropy(purified, own.argmax(1))).backward()
            optimizer.step()


class _Purifier(Mask):
    """The autoencoder; it returns the logarithms of purified probabilities."""

    def __init__(self, n_classes: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.autoencoder = relu_network(n_classes, *hidden, n_classes)

    def masked(self, logits: Tensor) -> Tensor:
        purified: Tensor = self.autoencoder(logits.softmax(1)).log_softmax(1)
        return purified
