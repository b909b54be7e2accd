"""The single training loop for all defenses."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from models.answers import answer_of, loss_and_accuracy, predict
from models.architectures.base import Architecture, StagedModel
from models.augmentation import CropAndFlip, views_of
from models.averaging import WeightAverage, averaged
from models.companion import Surroundings
from models.datasets.base import DatasetInfo, Examples, IntArray
from models.defenses.base import Defense, Mechanism
from models.gradient import PlainGradient
from models.performance import Performance, Precision, check_precision
from models.plan import TrainingPlan
from models.private.accounting import PrivacyGuarantee
from models.private.gradients import PrivateGradient
from models.private.noise import uniform
from models.schedules import SCHEDULES
from models.seeds import Stream, numpy_generator, seed_global_torch, torch_generator, torch_seed

_PARTS = 1000
"""Distance of the stream indices of the models that one defense trains."""


class DivergedError(ArithmeticError):
    """The loss, or a trained model's answers, are no finite numbers."""


LEARNING_RATES = {"sgd": 0.1, "adam": 0.001, "adagrad": 0.01, "adadelta": 1.0}
"""Default learning rates: PyTorch's own, except 0.1 for SGD."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The optimizer and its settings, the same for every arm of a comparison.

    - `learning_rate`: default in `LEARNING_RATES`. `schedule`: its factor over the training (`models/schedules.py`).
    - `momentum`, `nesterov`: for SGD only. Other settings are PyTorch's defaults.
    - `weight_decay`: PyTorch's, of every parameter: its gradient gets weight_decay · w.
    - `augmentation`: `crop_flip` shifts images by up to 4 pixels and mirrors half of them, anew in each epoch.
    - `augmentation_multiplicity`: how many independent augmentations of each example are in a batch; `TrainingPlan` says exactly
      what is averaged. Above 1, there must be an augmentation. A step takes about as many times longer.
    - `clip_grad_norm`: the largest norm of a batch's whole gradient. `ema_decay`: the trained model is the exponential moving
      average of the weights. Both are null for none; `TrainingPlan` says exactly how they work.
    - `sampling`: how batches are drawn. `shuffled`: each example once per epoch. `poisson`: Poisson samples of expected
      size `batch_size`, by which summed gradients are divided. A mechanism whose guarantee needs Poisson samples always
      draws them.
    - `paired_batches`: accounted mechanisms draw batches and dropout masks from the seed alone, as all other trainings do.
      The arms of one seed then differ only by their mechanisms, but their guarantees do not compose.
    - `evaluate_every`: number of epochs between measurements on test and validation examples in the history; 0 for none.
      The finished target is always measured.
    - `precision`: of activations in training, private or not. bf16 is faster if the machine computes in it. Weights, their
      gradients, losses and all measurements are fp32.
    """

    epochs: int = 30
    batch_size: int = 200
    optimizer: Literal["sgd", "adam", "adagrad", "adadelta"] = "sgd"
    learning_rate: float | None = None
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    augmentation: Literal["none", "crop_flip"] = "none"
    augmentation_multiplicity: int = 1
    clip_grad_norm: float | None = None
    ema_decay: float | None = None
    sampling: Literal["shuffled", "poisson"] = "shuffled"
    paired_batches: bool = False
    evaluate_every: int = 0
    precision: Precision = "fp32"

    revision: ClassVar[int] = 3
    """Raised when the same configuration would train a different target."""

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("augmentation_multiplicity", 1), ("evaluate_every", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        if self.learning_rate is None:
            # Resolved here, so that the default and the same value set by hand are one configuration
            object.__setattr__(self, "learning_rate", LEARNING_RATES[self.optimizer])
        assert self.learning_rate is not None
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0 and finite")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be at least 0 and below 1")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(
                f"momentum is {self.momentum}, but only sgd takes one, and the optimizer is {self.optimizer}"
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is true, but momentum is 0; set momentum, for example 0.9")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be zero or more, and finite")
        if self.clip_grad_norm is not None and not (math.isfinite(self.clip_grad_norm) and self.clip_grad_norm > 0):
            raise ValueError(
                f"clip_grad_norm is {self.clip_grad_norm}; it must be above 0 and finite, or null for none"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must be above 0 and below 1, or null for none")


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One row of a target's history; the table `history` defines the columns."""

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float | None
    test_accuracy: float | None
    held_out_loss: float | None
    validation_accuracy: float | None
    epsilon_spent: float | None
    clip_norm: float | None
    clipped_fraction: float | None
    train_time_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishedPart:
    """One of the models of a target, in a checkpoint of the next one."""

    part: int | None
    model: dict[str, Tensor]
    history: tuple[EpochRecord, ...]
    first_step_time_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """Everything needed to resume a training after an epoch as if it had never stopped. It shares no memory with it.

    `clip_norms` are those of private gradients, or None for ordinary ones. `average` has the averaged weights, `best` the model
    with the least loss on held-out members, and `companion` the network that is trained in turn; None without them.
    `part` is the number of the model, and `finished` are those of the same target before it.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    generators: dict[str, Tensor]
    clip_norms: Tensor | None
    history: tuple[EpochRecord, ...]
    first_step_time_s: float
    average: dict[str, Tensor] | None = None
    best: dict[str, Tensor] | None = None
    companion: dict[str, Tensor] | None = None
    part: int | None = None
    finished: tuple[FinishedPart, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedTarget:
    """A trained model in eval mode, with its plan, history and times.

    `steps` is the number of steps actually taken. `guarantee` is computed from it; it is None if nothing is proved.
    """

    model: StagedModel
    plan: TrainingPlan
    steps: int
    guarantee: PrivacyGuarantee | None
    history: tuple[EpochRecord, ...]
    first_step_time_s: float
    train_time_s: float

    @property
    def seconds_per_step(self) -> float | None:
        """Mean over all steps except the first, which includes set-up; None if there was only one step."""
        return self.train_time_s / (self.steps - 1) if self.steps > 1 else None

    def after(self, earlier: Sequence[TrainedTarget]) -> TrainedTarget:
        """This target with the steps, history and times of models that were trained for it before; epochs and steps count on."""
        trained = [*earlier, self]
        history: list[EpochRecord] = []
        for target in trained:
            epoch, step = (history[-1].epoch, history[-1].step) if history else (0, 0)
            history += [replace(each, epoch=epoch + each.epoch, step=step + each.step) for each in target.history]
        return replace(
            self,
            steps=sum(target.steps for target in trained),
            history=tuple(history),
            first_step_time_s=trained[0].first_step_time_s,
            train_time_s=sum(target.train_time_s for target in trained),
        )


def make_plan(training: Training, defenses: tuple[Defense, ...], model: StagedModel, n_train: int) -> TrainingPlan:
    """The plan for `training` on `n_train` examples, after all `defenses` edited it in order.

    A defense that trains in its own way edits the plan first, because it is the one that cuts the members into parts.

    Raises:
        ValueError: the batch is larger than the training data, or the defenses cannot be combined.
    """
    plan = TrainingPlan(
        n_train=n_train,
        epochs=training.epochs,
        batch_size=training.batch_size,
        sampling=training.sampling,
        augmentation=CropAndFlip() if training.augmentation == "crop_flip" else None,
        augmentation_multiplicity=training.augmentation_multiplicity,
        schedule=SCHEDULES[training.schedule],
        momentum=training.momentum,
        nesterov=training.nesterov,
        clip_grad_norm=training.clip_grad_norm,
        ema_decay=training.ema_decay,
    )
    if training.weight_decay:
        plan = plan.with_more_decay({name: training.weight_decay / 2 for name, _ in model.named_parameters()})
    trainer = own_trainer(defenses)
    plan.check()
    for defense in sorted(defenses, key=lambda defense: defense is not trainer):
        plan = defense.edit_training(plan, model)
        plan.check()
    if trainer is not None and plan.rule is not None:
        raise ValueError(
            f"{trainer.name} trains in a way of its own, and a private mechanism bounds only what its one training reveals; leave one "
            "of them out"
        )
    return plan


def own_trainer(defenses: tuple[Defense, ...]) -> Defense | None:
    """The defense that trains by a method of its own, if there is one.

    Raises:
        ValueError: there are two, or it is itself a private mechanism.
    """
    found = [defense for defense in defenses if type(defense).train is not Defense.train]
    if len(found) > 1:
        names = " and ".join(defense.name for defense in found)
        raise ValueError(f"{names} both train in their own way; keep one")
    if found and isinstance(found[0], Mechanism):
        raise ValueError(
            f"{found[0].name} is a private mechanism with a `train` of its own, which the accounting does not know; edit the "
            "plan instead"
        )
    return found[0] if found else None


def check_reference(defenses: tuple[Defense, ...], n_reference: int) -> None:
    """Check that there are reference examples if a defense needs them.

    Raises:
        ValueError: there are none.
    """
    for defense in defenses:
        if defense.needs_reference and not n_reference:
            raise ValueError(
                f"{defense.name} needs reference examples, on which no target is trained or evaluated; set `reference` in the split, "
                "for example splits: [{name: coins, reference: 500}]"
            )


def build_model(
    architecture: Architecture, defenses: tuple[Defense, ...], info: DatasetInfo, init_seed: int
) -> StagedModel:
    """The model for a dataset, initialized from `init_seed` alone, then edited by the defenses.

    A defense that trains in its own way edits the model last: it may be made of several.
    """
    trainer = own_trainer(defenses)
    with torch.random.fork_rng(devices=[]):
        seed_global_torch(init_seed)
        model = architecture.build(info)
        for defense in sorted(defenses, key=lambda defense: defense is trainer):
            model.num_classes = info.num_classes
            model = defense.edit_model(model)
    return model


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """Everything that makes one target: trains it on the examples at `members`, on the device that holds `data`.

    `reference` are positions of examples that are neither trained on nor evaluated, for defenses that need such. Accuracy on the
    examples at `validation`, if there are any, is measured as often as that on `test`; with `may_stop`, after each epoch.

    Randomness: initialization, batches, dropout, augmentation, held-out members, companions and noise each have their own stream,
    derived from `seed` and `stream_index` (0 for a target, 1 and up for its shadows, which share no stream with it). Noise also
    derives from `target_id` and the hash of the data. So do batches, dropout masks and augmentation under an accounted mechanism,
    unless `training.paired_batches` is true; two private runs then share none of the random numbers that their guarantees depend
    on. With `secure_noise`, all of these but initialization come from the operating system's generator, so each call gives
    different weights.

    `on_epoch` is called with each epoch's record and the number of epochs. `on_checkpoint` is called with a checkpoint
    after each epoch if `is_checkpoint_due` returns true. Given such a checkpoint as `resume` and otherwise the same
    arguments, training ends with the weights and ε of an uninterrupted run.
    """

    architecture: Architecture
    defenses: tuple[Defense, ...]
    training: Training
    data: Examples
    members: IntArray
    test: IntArray
    seed: int
    target_id: str
    reference: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    validation: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    may_stop: bool = False
    stream_index: int = 0
    performance: Performance | None = None
    on_epoch: Callable[[EpochRecord, int], None] | None = None
    on_checkpoint: Callable[[Checkpoint], None] | None = None
    is_checkpoint_due: Callable[[], bool] = lambda: True
    resume: Checkpoint | None = None
    finished: list[FinishedPart] = field(default_factory=list)
    """The models that `fit` has trained, filled by it."""

    def train(self) -> TrainedTarget:
        """Train the target, in the way of the defense that has its own, if there is one.

        Raises:
            DivergedError: the loss of an epoch is not finite.
            ValueError: see `make_plan` and `check_reference`; or this device does not compute in `training.precision`.
        """
        check_reference(self.defenses, len(self.reference))
        trainer = own_trainer(self.defenses)
        others = tuple(defense for defense in self.defenses if defense is not trainer)
        recipe = replace(self, defenses=others, finished=[])
        if trainer is None:
            return recipe.fit()
        model = build_model(self.architecture, self.defenses, self.data.info, 0)
        make_plan(self.training, self.defenses, model, len(self.members))  # refuses what cannot be combined
        return trainer.train(recipe)

    def fit(
        self, members: IntArray | None = None, part: int | None = None, soft_labels: Tensor | None = None
    ) -> TrainedTarget:
        """Train one model by this recipe: on all members, or for a defense that trains several, on these as its model `part`.

        With `soft_labels`, the probabilities of the classes (members, classes) for each member in their order, these are what the
        model learns in place of the labels: its loss is averaged over them, and `train_accuracy` is agreement with their most
        probable class. To resume a training, `fit` must be given the same ones.

        Parts share no random stream with each other, with the model without a part, or with those of another `stream_index` below
        1,000.

        Raises:
            DivergedError, ValueError: as `train`; or this part is trained already, or the soft labels are not one row for each member.
        """
        recipe = self if members is None else replace(self, members=members)
        if part is not None:
            recipe = replace(recipe, stream_index=self.stream_index + _PARTS * (part + 1))
        if any(each.part == part for each in self.finished):
            raise ValueError(f"part {part} is trained already; give each model of a target another number as its part")
        resume, on_checkpoint = self.resume, self.on_checkpoint
        known = [] if resume is None else [each for each in resume.finished if each.part == part]
        if known:
            self.finished.append(known[0])
            return _restored(recipe, known[0])

        def checkpoint(taken: Checkpoint) -> None:
            assert on_checkpoint is not None
            on_checkpoint(replace(taken, part=part, finished=tuple(self.finished)))

        target = _fit(
            replace(
                recipe,
                on_checkpoint=None if on_checkpoint is None else checkpoint,
                resume=resume if resume is not None and resume.part == part else None,
            ),
            soft_labels,
        )
        self.finished.append(
            FinishedPart(
                part=part,
                model={name: value.clone() for name, value in target.model.state_dict().items()},
                history=target.history,
                first_step_time_s=target.first_step_time_s,
            )
        )
        return target


def _restored(recipe: Recipe, part: FinishedPart) -> TrainedTarget:
    """A model that was trained before the training was interrupted."""
    model = build_model(recipe.architecture, recipe.defenses, recipe.data.info, 0).to(recipe.data.inputs.device)
    model.load_state_dict(part.model)
    plan = make_plan(recipe.training, recipe.defenses, model, len(recipe.members))
    return _trained(model.eval(), plan, part.history, part.first_step_time_s)


def _trained(
    model: StagedModel, plan: TrainingPlan, history: Sequence[EpochRecord], first_step_time_s: float
) -> TrainedTarget:
    steps = history[-1].step
    return TrainedTarget(
        model=model,
        plan=plan,
        steps=steps,
        guarantee=plan.accounting.guarantee(steps) if plan.accounting else None,
        history=tuple(history),
        first_step_time_s=first_step_time_s,
        train_time_s=sum(record.train_time_s for record in history),
    )


def _fit(recipe: Recipe, soft_labels: Tensor | None = None) -> TrainedTarget:
    training, defenses, data, seed, stream_index = (
        recipe.training,
        recipe.defenses,
        recipe.data,
        recipe.seed,
        recipe.stream_index,
    )
    device, performance = data.inputs.device, recipe.performance or Performance()
    check_precision(training.precision, device)
    init_seed = torch_seed(seed, Stream.INIT, stream_index)
    model = build_model(recipe.architecture, defenses, data.info, init_seed).to(device)
    plan = make_plan(training, defenses, model, len(recipe.members))
    plan.check_inputs(data.info)
    members, held_out = recipe.members, recipe.members[:0]
    if plan.early_stopping is not None:
        shuffled = numpy_generator(seed, Stream.HELD_OUT, stream_index).permutation(members)
        held_out, members = (
            shuffled[: plan.early_stopping.n_held_out],
            np.sort(shuffled[plan.early_stopping.n_held_out :]),
        )
    if plan.n_train != len(members):
        raise ValueError(
            f"n_train of the plan is {plan.n_train}, but there are {len(members)} examples to train on; a defense that takes fewer "
            "must also train on fewer"
        )
    labels_of = data.labels
    if soft_labels is not None:
        if plan.companion is not None:
            raise ValueError(
                "a network that is trained in turn with the model needs labels, and these are soft; leave it out"
            )
        if soft_labels.shape != (len(recipe.members), data.info.num_classes):
            raise ValueError(
                f"soft labels have shape {tuple(soft_labels.shape)}, but there are {len(recipe.members)} members and "
                f"{data.info.num_classes} classes"
            )
        labels_of = torch.zeros(len(data.labels), data.info.num_classes, device=device)
        labels_of[torch.from_numpy(recipe.members).to(device)] = soft_labels.to(device, torch.float32)
    if performance.channels_last:
        # Convolutions are faster on CPU and GPU with channels innermost; results differ by rounding only.
        model.to(memory_format=torch.channels_last)
    optimizer = _optimizer(training, plan, _parameter_groups(model, plan))
    # An identity does not contain what is in a dataset's files, and other data must not get the same noise.
    owner = f"{recipe.target_id} {data.sha256}"
    is_own = plan.accounting is not None and not training.paired_batches
    batches_of = owner if is_own else ""
    sampling = noise = augmenting = None
    if not plan.secure_noise:
        sampling = torch_generator(seed, Stream.SAMPLING, stream_index, target_id=batches_of)
        noise = torch_generator(seed, Stream.NOISE, stream_index, str(device), owner)
        augmenting = torch_generator(seed, Stream.AUGMENTATION, stream_index, target_id=batches_of)
    companion = None
    companions_own = torch_generator(seed, Stream.COMPANION, stream_index)
    if plan.companion is not None:
        companion = plan.companion.start(
            Surroundings(
                model=model,
                data=data,
                members=members,
                reference=recipe.reference,
                batch_size=plan.batch_size,
                generator=companions_own,
            )
        )
    private: PrivateGradient | None = None
    plain: PlainGradient | None = None
    expected = plan.batch_size if plan.sampling == "poisson" else None
    views = plan.augmentation_multiplicity
    if plan.rule is None:
        plain = PlainGradient(
            model,
            expected,
            loss=plan.loss,
            views=views,
            companion=companion,
            precision=training.precision,
            performance=performance,
        )
    else:
        private = PrivateGradient(
            model,
            plan.rule,
            expected,
            noise,
            loss=plan.loss,
            views=views,
            precision=training.precision,
            performance=performance,
        )
    learning_rate = training.learning_rate
    assert learning_rate is not None
    average = None if plan.ema_decay is None else WeightAverage(model, plan.ema_decay)
    best: dict[str, Tensor] | None = None
    batches = _batches(plan, torch.from_numpy(members), sampling)
    epochs = range(1, plan.epochs + 1)
    spent: list[float] | list[None] = [None] * plan.epochs
    if plan.accounting:
        spent = plan.accounting.epsilons([plan.steps_until(epoch) for epoch in epochs])
    history: list[EpochRecord] = []
    first_step_time_s = 0.0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        dropout_seed = secrets.randbits(128)
        if not plan.secure_noise:
            dropout_seed = torch_seed(seed, Stream.DROPOUT, stream_index, batches_of)
        seed_global_torch(dropout_seed, device)
        generators = {"dropout": torch.default_generator}
        if sampling is not None and noise is not None and augmenting is not None:
            generators |= {"sampling": sampling, "noise": noise, "augmentation": augmenting}
        if companion is not None:
            generators["companion"] = companions_own
        if device.type == "cuda":
            generators["dropout_cuda"] = torch.cuda.default_generators[device.index or 0]
        resume = recipe.resume
        if resume is not None:
            model.load_state_dict(resume.model)
            optimizer.load_state_dict(deepcopy(resume.optimizer))
            for name, generator in generators.items():
                generator.set_state(resume.generators[name])
            if private is not None and resume.clip_norms is not None:
                private.clip_norms = resume.clip_norms.clone()
            if average is not None and resume.average is not None:
                average.load(resume.average)
            if companion is not None and resume.companion is not None:
                companion.load(resume.companion)
            best = resume.best
            history, first_step_time_s = list(resume.history), resume.first_step_time_s
        step = history[-1].step if history else 0
        for epoch in epochs[len(history) :]:
            if _has_stopped(plan, history):
                break
            model.train()
            loss_sum, n_right = torch.zeros((), device=device), torch.zeros((), device=device)
            n_seen = 0
            if private is not None:
                private.n_within.zero_()
                private.start_epoch(epoch)
            if plain is not None:
                plain.start_epoch(epoch)
            first_step_in_epoch_s = 0.0
            started = time.perf_counter()
            while step < plan.steps_until(epoch):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * plan.schedule(step / plan.steps)
                if companion is not None:
                    companion.step()
                index = next(batches).to(device)
                inputs, labels = data.inputs[index], labels_of[index]
                inputs = views_of(inputs, plan.augmentation, views, augmenting)
                if private is not None:
                    batch_loss, batch_right = private.step(inputs, labels)
                else:
                    assert plain is not None
                    mixed: tuple[Tensor, ...] = ()
                    if plan.mixing is not None and augmenting is not None and len(labels):
                        inputs, *others = plan.mixing(inputs, labels, augmenting)
                        mixed = tuple(others)
                    batch_loss, batch_right = plain.step(inputs, labels, *mixed)
                if plan.clip_grad_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), plan.clip_grad_norm)
                optimizer.step()
                loss_sum += batch_loss
                n_right += batch_right
                n_seen += len(index)
                step += 1
                if average is not None:
                    average.update(step)
                if step == 1:
                    _synchronize(device)
                    first_step_in_epoch_s = first_step_time_s = time.perf_counter() - started
            _synchronize(device)
            epoch_time_s = time.perf_counter() - started - first_step_in_epoch_s
            train_loss = float(loss_sum) / max(1, n_seen)
            if not math.isfinite(train_loss):
                raise DivergedError(f"the training loss is {train_loss} in epoch {epoch}; lower training.learning_rate")
            is_evaluated = training.evaluate_every and (epoch % training.evaluate_every == 0 or epoch == plan.epochs)
            test_loss = test_accuracy = held_out_loss = validation_accuracy = None
            with averaged(average):
                if len(recipe.validation) and (is_evaluated or recipe.may_stop):
                    _, validation_accuracy = loss_and_accuracy(*predict(answer_of(model), data, recipe.validation))
                if is_evaluated:
                    test_loss, test_accuracy = loss_and_accuracy(*predict(answer_of(model), data, recipe.test))
                if plan.early_stopping is not None:
                    held_out_loss, _ = loss_and_accuracy(*predict(answer_of(model), data, held_out))
                    if all(
                        held_out_loss < record.held_out_loss for record in history if record.held_out_loss is not None
                    ):
                        best = {name: value.clone() for name, value in model.state_dict().items()}
            record = EpochRecord(
                epoch=epoch,
                step=step,
                train_loss=train_loss,
                train_accuracy=float(n_right) / max(1, n_seen),
                test_loss=test_loss,
                test_accuracy=test_accuracy,
                held_out_loss=held_out_loss,
                validation_accuracy=validation_accuracy,
                epsilon_spent=spent[epoch - 1],
                clip_norm=None if private is None else float(torch.linalg.vector_norm(private.clip_norms)),
                clipped_fraction=None if private is None or not n_seen else 1 - float(private.n_within) / n_seen,
                train_time_s=epoch_time_s,
            )
            history.append(record)
            if recipe.on_checkpoint is not None and recipe.is_checkpoint_due():
                recipe.on_checkpoint(
                    Checkpoint(
                        model={name: value.clone() for name, value in model.state_dict().items()},
                        optimizer=deepcopy(optimizer.state_dict()),
                        generators={name: generator.get_state() for name, generator in generators.items()},
                        clip_norms=None if private is None else private.clip_norms.clone(),
                        history=tuple(history),
                        first_step_time_s=first_step_time_s,
                        average=None if average is None else {k: v.clone() for k, v in average.values.items()},
                        best=None if best is None else dict(best),
                        companion=None if companion is None else companion.state(),
                    )
                )
            if recipe.on_epoch is not None:
                recipe.on_epoch(record, plan.epochs)
    if private is not None:
        private.close()
    if average is not None:
        average.swap()
    if best is not None:
        model.load_state_dict(best)
    model.zero_grad(set_to_none=True)
    model.to(memory_format=torch.contiguous_format).eval()
    return _trained(model, plan, history, first_step_time_s)


def _has_stopped(plan: TrainingPlan, history: list[EpochRecord]) -> bool:
    """Whether the loss on held-out members has not improved for as many epochs as the plan is patient."""
    if plan.early_stopping is None or not history:
        return False
    losses = [record.held_out_loss for record in history if record.held_out_loss is not None]
    return len(losses) - 1 - losses.index(min(losses)) >= plan.early_stopping.patience


def _optimizer(training: Training, plan: TrainingPlan, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    learning_rate = training.learning_rate
    assert learning_rate is not None
    match training.optimizer:
        case "adam":
            return torch.optim.Adam(groups, lr=learning_rate)
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=learning_rate)
        case "adadelta":
            return torch.optim.Adadelta(groups, lr=learning_rate)
        case "sgd":
            return torch.optim.SGD(groups, lr=learning_rate, momentum=plan.momentum, nesterov=plan.nesterov)


def _parameter_groups(model: nn.Module, plan: TrainingPlan) -> list[dict[str, object]]:
    """One parameter group per penalty λ. The gradient of λ‖w‖² is 2λw, hence the factor 2."""
    unknown = plan.weight_decay.keys() - {name for name, _ in model.named_parameters()}
    if unknown:
        raise ValueError(f"weight decay is set for {', '.join(sorted(unknown))}, which the model does not have")
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(plan.weight_decay.get(name, 0.0), []).append(parameter)
    return [{"params": parameters, "weight_decay": 2 * weight} for weight, parameters in groups.items()]


def _batches(plan: TrainingPlan, members: Tensor, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Endless batches of positions: shuffled each epoch without replacement, or Poisson samples."""
    while True:
        if plan.sampling == "poisson":
            yield members[uniform(len(members), generator, members.device) < plan.sample_rate]
        else:
            yield from members[torch.randperm(len(members), generator=generator)].split(plan.batch_size)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
