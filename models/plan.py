"""The plan of one training, which defenses edit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from models.augmentation import Augmentation, CropAndFlip, Mixing, check_augmentation
from models.companion import CompanionPlan
from models.datasets.base import DatasetInfo
from models.losses import CrossEntropy, Loss, check_loss
from models.private.accounting import PrivacyAccounting
from models.private.rules import Rule
from models.schedules import Schedule, constant


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Hold out `n_held_out` members, and stop after `patience` epochs in which their loss did not improve."""

    n_held_out: int
    patience: int


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How one target will be trained. Defenses replace parts of it.

    - `n_train`: examples that gradients are computed of. Members that are held out do not count. `n_models` are trained so, each
      on its own examples; if these do not divide evenly, some have one more.
    - `n_teachers` more are trained before, each on about the share `teacher_share` of these examples.
    - `loss`: per example; its mean is minimized.
    - `weight_decay` maps a parameter's name to λ; the loss gets the penalty λ‖w‖².
    - `augmentation` changes each input, `mixing` mixes the inputs of a batch. With an `augmentation_multiplicity` k above 1, each
      example of a batch is augmented k times independently. Its loss is the mean over these views, and so is its gradient, which a
      private mechanism clips as that of one example: the guarantee is that of k = 1 (De et al. 2022, section 3.2).
    - `schedule`: the factor of the learning rate, by the share of the steps that are done.
    - `momentum` and `nesterov`: of SGD.
    - `clip_grad_norm`: the largest norm of a batch's whole gradient; a private gradient is clipped after its noise.
    - `ema_decay`: the model is the exponential moving average of the weights, w̄ ← d w̄ + (1 − d) w after each step, with d the
      smaller of this and (1 + t) / (10 + t) at step t.
    - `companion` is a network that is trained in turn with the model, and adds a penalty to the loss of each example.
    - `rule` turns per-example gradient norms into weights and noise; without a rule, gradients are averaged as usual.
    - `accounting` proves a guarantee for the steps taken by `accounted_rule`; without it, `no_guarantee_reason` says why there is
      none.
    - `secure_noise`: noise, batches, dropout masks and augmentation come from the operating system's generator.
    """

    n_train: int
    epochs: int
    batch_size: int
    sampling: Literal["shuffled", "poisson"] = "shuffled"
    loss: Loss = field(default_factory=CrossEntropy)
    weight_decay: dict[str, float] = field(default_factory=dict)
    augmentation: Augmentation | None = None
    augmentation_multiplicity: int = 1
    mixing: Mixing | None = None
    schedule: Schedule = constant
    momentum: float = 0.0
    nesterov: bool = False
    clip_grad_norm: float | None = None
    ema_decay: float | None = None
    early_stopping: EarlyStopping | None = None
    companion: CompanionPlan | None = None
    rule: Rule | None = None
    accounting: PrivacyAccounting | None = None
    accounted_rule: Rule | None = None
    n_models: int = 1
    n_teachers: int = 0
    teacher_share: float = 1.0
    no_guarantee_reason: str = "no differentially private mechanism was used"
    secure_noise: bool = False

    @property
    def sample_rate(self) -> float:
        """Probability that one example is in a Poisson batch."""
        return self.batch_size / self.n_train

    def steps_until(self, epoch: int) -> int:
        """Number of steps after `epoch` epochs. With Poisson sampling: ⌊epoch · n / batch⌋, at least 1 if epoch > 0."""
        if self.sampling == "poisson":
            return max(1, epoch * self.n_train // self.batch_size) if epoch else 0
        return epoch * -(-self.n_train // self.batch_size)

    @property
    def steps(self) -> int:
        """Steps of the whole training of one model."""
        return self.steps_until(self.epochs)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training of all models; of teachers with random numbers of examples, as many as the mean number takes."""
        return self.steps * self.n_models + self._teacher.steps * self.n_teachers

    @property
    def _teacher(self) -> TrainingPlan:
        """The plan of one teacher."""
        return replace(self, n_train=round(self.teacher_share * self.n_train), n_teachers=0, teacher_share=1.0)

    def on_fewer(self, n_train: int, n_models: int = 1) -> TrainingPlan:
        """The plan for so many models, each on fewer training examples."""
        return replace(self, n_train=n_train, n_models=n_models)

    def with_loss(self, loss: Loss) -> TrainingPlan:
        """The plan with another loss than cross-entropy.

        Raises:
            ValueError: the plan has one already.
        """
        if self.loss != CrossEntropy():
            raise ValueError("two defenses replace the loss; keep one")
        return replace(self, loss=loss)

    def with_companion(self, companion: CompanionPlan) -> TrainingPlan:
        """The plan with `companion`.

        Raises:
            ValueError: the plan has one already.
        """
        if self.companion is not None:
            raise ValueError("two defenses train a network in turn with the model; keep one")
        return replace(self, companion=companion)

    def with_rule(self, rule: Rule, **changes: object) -> TrainingPlan:
        """The plan with `rule`.

        Raises:
            ValueError: the plan has a rule already.
        """
        if self.rule is not None:
            raise ValueError("two private mechanisms in one list of defenses; keep one")
        return replace(self, rule=rule, **changes)  # type: ignore[arg-type]

    def with_more_decay(self, weights: dict[str, float]) -> TrainingPlan:
        """The plan with further penalties, added to those that it has."""
        added = {name: self.weight_decay.get(name, 0.0) + weight for name, weight in weights.items()}
        return replace(self, weight_decay=self.weight_decay | added)

    def check(self) -> None:
        """Refuse what cannot be combined.

        Raises:
            ValueError: the batch is larger than the training data; examples are mixed although gradients per example are needed;
                a companion is trained beside a private mechanism or on soft labels; members are held out that ε would not cover;
                or the steps are no longer those that ε is proved for.
        """
        fewest = min(self.n_train, self._teacher.n_train)
        if fewest < 1:
            raise ValueError(
                "no member is left to train on; hold out fewer members, train fewer models, or take more examples"
            )
        if self.batch_size > fewest:
            raise ValueError(
                f"batch_size is {self.batch_size} but {'a sub-model has' if fewest < self.n_train else 'the target has'} only "
                f"{fewest} training examples; set training.batch_size to {fewest} or less"
            )
        if self.n_teachers and self.loss.mixes_examples:
            raise ValueError(
                f"loss {type(self.loss).__name__.lstrip('_')} depends on the whole batch and cannot be averaged over the soft labels "
                "that a student of an ensemble learns; leave one of them out"
            )
        if self.rule is not None and self.mixing is not None:
            raise ValueError(
                "mixup mixes examples, so that no gradient belongs to one of them, and a private mechanism clips each example's "
                "gradient; leave one of them out"
            )
        if self.companion is not None and self.rule is not None:
            raise ValueError(
                "a network that is trained in turn with the model reads the members, and a private mechanism bounds only what the "
                "model's own gradients reveal; leave one of them out"
            )
        if self.companion is not None and self.n_teachers:
            raise ValueError(
                "a network that is trained in turn with the model needs the members' labels, and a student has its teachers' "
                "answers in their place; leave one of them out"
            )
        if self.accounting is not None and self.early_stopping is not None:
            raise ValueError(
                "early stopping reads the held-out members after each epoch, and the proved ε does not cover that; leave early "
                "stopping out, and set training.epochs"
            )
        if self.accounting is not None and (
            self.sampling != "poisson"
            or self.accounting.sample_rate != self.sample_rate
            or self.rule != self.accounted_rule
        ):
            raise ValueError(
                "a defense after the private mechanism changes its rule, its batches or the number of examples, for which ε was "
                "computed; list that defense before the mechanism"
            )

    def check_inputs(self, info: DatasetInfo) -> None:
        """Refuse what these inputs do not have, and what has no gradient per example.

        Raises:
            ValueError: a multiplicity above 1 has no augmentation; the augmentation needs images, and the examples are rows of a
                table; or there is a private mechanism, and the loss or the augmentation of an example depends on others.
        """
        if self.augmentation_multiplicity > 1 and self.augmentation is None:
            raise ValueError(
                f"augmentation_multiplicity is {self.augmentation_multiplicity}, but nothing augments the examples, so that all views "
                "of one would be the same; set training.augmentation, for example to crop_flip, or leave the multiplicity out"
            )
        if self.augmentation_multiplicity > 1 and self.augmentation == CropAndFlip(padding=0, flip=False):
            raise ValueError(
                f"augmentation_multiplicity is {self.augmentation_multiplicity}, but with a padding of 0 and no flip all views of an "
                "example would be the same; set one of them, or leave the multiplicity out"
            )
        if (
            isinstance(self.augmentation, CropAndFlip)
            and info.is_images
            and self.augmentation.padding >= min(info.shape[1:])
        ):
            raise ValueError(
                f"the augmentation's padding is {self.augmentation.padding} pixels, and images are {info.shape[2]}x{info.shape[1]}; it "
                f"must be at most {min(info.shape[1:]) - 1}, so that something is left of each image"
            )
        if self.augmentation is not None and self.augmentation.needs_images and not info.is_images:
            raise ValueError(
                f"augmentation by {type(self.augmentation).__name__} needs images, and the examples are rows of {info.shape[0]} "
                "features; leave it out"
            )
        if self.rule is not None:
            for epoch in {1, min(2, self.epochs), self.epochs} if self.loss.uses_epoch else {1}:
                check_loss(self.loss, info.num_classes, epoch)
            if self.augmentation is not None:
                check_augmentation(self.augmentation, info.shape)
