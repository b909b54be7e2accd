"""Self-distillation from an ensemble in which each member is answered by models that have not seen it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from models.answers import answer_of, predict
from models.architectures.base import StagedModel
from models.defenses.base import Defense
from models.plan import TrainingPlan
from models.seeds import Stream, numpy_generator

if TYPE_CHECKING:
    from models.train import Recipe, TrainedTarget


@dataclass(frozen=True, kw_only=True)
class Selena(Defense):
    """SELENA: distills `models` sub-models into a student; each member's soft label is from the `left_out` not trained on it.

    Split-AI (section 4.1): for each member, `left_out` of the `models` sub-models are drawn uniformly and independently of other
    members, and are trained without it. A sub-model has (models − left_out)/models of the members on average. Self-distillation
    (section 4.2): a member's soft label is the mean of the probabilities that its `left_out` sub-models give it. The student, which
    is the target, is trained on all members with soft labels in place of labels, by soft cross-entropy. Sub-models and student have
    the target's own architecture and recipe, and the student the initialization and batches of a target without this defense.

    Deviations: the last epoch is taken, where the authors' code keeps the epochs with the best accuracy on the test set. Soft
    labels are of inputs without augmentation, also if the student sees augmented ones, as in the authors' code. A loss that another
    defense brings is averaged over the soft label. With `early_stopping`, the student's epoch is chosen by labels of held-out
    members.

    The paper has 25 and 10 for all datasets, so 26 models are trained, and a checkpoint holds all that are finished. A duplicate of
    a member is left out of other sub-models than the member, which then answer the member by its duplicate's label. Cannot be
    combined with a private mechanism. No guarantee.
    """

    models: int = 25
    left_out: int = 10

    source: ClassVar[str] = "Tang, Mahloujifar, Song, Shejwalkar, Nasr, Houmansadr & Mittal 2022"
    worst_canaries: ClassVar[tuple[str, ...]] = ("duplicate_mislabeled",)

    def __post_init__(self) -> None:
        if self.models < 2:
            raise ValueError(f"models is {self.models}; it must be at least 2")
        if not 1 <= self.left_out < self.models:
            raise ValueError(f"left_out is {self.left_out}; it must be from 1 to {self.models - 1}, below models")

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        return replace(plan, n_teachers=self.models, teacher_share=1 - self.left_out / self.models)

    def train(self, recipe: Recipe) -> TrainedTarget:
        members = recipe.members
        rng = numpy_generator(recipe.seed, Stream.PARTS, recipe.stream_index)
        ranks = rng.permuted(np.tile(np.arange(self.models), (len(members), 1)), axis=1)
        is_left_out = ranks < self.left_out
        fewest = int((~is_left_out).sum(axis=0).min())
        if recipe.training.batch_size > fewest:
            raise ValueError(
                f"batch_size is {recipe.training.batch_size} but one of the sub-models has only {fewest} training examples; set "
                f"training.batch_size to {fewest} or less"
            )
        soft_labels = torch.zeros(len(members), recipe.data.info.num_classes)
        sub_models = []
        for number, left_out in enumerate(is_left_out.T):
            trained = recipe.fit(members=members[~left_out], part=number)
            logits, _ = predict(answer_of(trained.model), recipe.data, members[left_out])
            soft_labels[torch.from_numpy(left_out)] += logits.softmax(1) / self.left_out
            sub_models.append(trained)
        return recipe.fit(soft_labels=soft_labels).after(sub_models)
