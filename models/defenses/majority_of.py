"""A majority vote of models that were trained on disjoint parts of the members."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from models.architectures.base import StagedModel
from models.defenses.base import Defense
from models.plan import TrainingPlan
from models.seeds import Stream, numpy_generator

if TYPE_CHECKING:
    from models.train import Recipe, TrainedTarget


class Votes(nn.Module):
    """The logarithm of each class's share of the models' votes, after one more vote that is divided among all classes."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, inputs: Tensor) -> Tensor:
        logits = torch.stack([model(inputs) for model in self.models])
        num_classes = logits.shape[-1]
        votes = one_hot(logits.argmax(-1), num_classes).sum(0)
        return ((votes + 1 / num_classes) / (len(self.models) + 1)).log()


@dataclass(frozen=True, kw_only=True)
class MajorityOf(Defense):
    """Majority vote: trains `models` networks on disjoint random parts of the members, and answers by their votes alone.

    Each example is seen by one of the networks, which the others outvote. The answer is the logarithm of the share of votes
    (votes + 1/classes) / (models + 1), so that it is finite; of classes with equally many votes, the first is the decision. Each
    network is trained by the target's own recipe, for as many epochs. Cannot be combined with a private mechanism. No guarantee.
    """

    models: int = 5

    source: ClassVar[str] = (
        "Breiman 1996 (bagging), with disjoint parts; PATE's teachers (Papernot et al. 2017) without noise"
    )

    def __post_init__(self) -> None:
        if self.models < 2:
            raise ValueError(f"models is {self.models}; it must be at least 2")

    def edit_model(self, model: StagedModel) -> StagedModel:
        return _ensemble([deepcopy(model) for _ in range(self.models)])

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        return plan.on_fewer(plan.n_train // self.models, n_models=self.models)

    def train(self, recipe: Recipe) -> TrainedTarget:
        rng = numpy_generator(recipe.seed, Stream.PARTS, recipe.stream_index)
        parts = np.array_split(rng.permutation(recipe.members), self.models)
        trained = [recipe.fit(members=np.sort(part), part=number) for number, part in enumerate(parts)]
        ensemble = _ensemble([target.model for target in trained]).eval()
        return replace(trained[-1].after(trained[:-1]), model=ensemble, plan=trained[0].plan)


def _ensemble(models: Sequence[StagedModel]) -> StagedModel:
    return StagedModel(nn.Identity(), OrderedDict(votes=Votes(models)))
