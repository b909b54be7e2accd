"""Augmentation by crops and mirror images, as a defense."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from models.architectures.base import StagedModel
from models.augmentation import CropAndFlip
from models.defenses.base import Defense
from models.plan import TrainingPlan


@dataclass(frozen=True, kw_only=True)
class Augmentation(Defense):
    """Augmentation: trains on images that are shifted by up to `padding` pixels and, with `flip`, mirrored in half of the cases.

    Each image is changed anew in each batch. As a setting of all arms, use `training.augmentation`. Works with a private
    mechanism. Needs images. No guarantee of its own.
    """

    padding: int = 4
    flip: bool = True

    source: ClassVar[str] = "He, Zhang, Ren & Sun 2016, section 4.2"

    def __post_init__(self) -> None:
        CropAndFlip(padding=self.padding, flip=self.flip)

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        if plan.augmentation is not None:
            raise ValueError(
                "the defense augmentation stands beside training.augmentation or a second such defense, and only one can change the "
                "images; leave one of them out"
            )
        return replace(plan, augmentation=CropAndFlip(padding=self.padding, flip=self.flip))
