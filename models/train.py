"""`fit`: the single training loop for all defenses."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.architectures.base import Architecture, StagedModel
from models.datasets.base import DatasetInfo, Examples, IntArray
from models.defenses.base import Defense, TrainingPlan
from models.performance import Performance, Precision, Replay, check_precision, forward
from models.private.accounting import PrivacyGuarantee
from models.private.gradients import PrivateGradient
from models.private.noise import uniform
from models.seeds import Stream, seed_global_torch, torch_generator, torch_seed

EVALUATION_BATCH = 1000


class DivergedError(ArithmeticError):
    """The loss is no longer a finite number."""


LEARNING_RATES = {"sgd": 0.1, "adam": 0.001, "adagrad": 0.01, "adadelta": 1.0}
"""Default learning rates: PyTorch's own, except 0.1 for SGD."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The optimizer and its settings, the same for every arm of a comparison.

    - `learning_rate`: default in `LEARNING_RATES`. `momentum`: for SGD only. Other settings are PyTorch's defaults.
    - `sampling`: how batches are drawn. `shuffled`: each example once per epoch. `poisson`: Poisson samples of expected
      size `batch_size`, by which summed gradients are divided. A mechanism whose guarantee needs Poisson samples always
      draws them.
    - `paired_batches`: accounted mechanisms draw batches and dropout masks from the seed alone, as all other trainings do.
      The arms of one seed then differ only by their mechanisms, but their guarantees do not compose.
    - `evaluate_every`: number of epochs between test measurements in the history; 0 for none. The finished target is
      always measured.
    - `precision`: of activations in training, private or not. bf16 is faster if the machine computes in it. Weights, their
      gradients, losses and all measurements are fp32.
    """

    epochs: int = 30
    batch_size: int = 200
    optimizer: Literal["sgd", "adam", "adagrad", "adadelta"] = "sgd"
    learning_rate: float | None = None
    momentum: float = 0.0
    sampling: Literal["shuffled", "poisson"] = "shuffled"
    paired_batches: bool = False
    evaluate_every: int = 0
    precision: Precision = "fp32"

    revision: ClassVar[int] = 2
    """Raised when the same configuration would train a different target."""

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("evaluate_every", 0)):
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


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One row of a target's history; the table `history` defines the columns."""

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float | None
    test_accuracy: float | None
    epsilon_spent: float | None
    clip_norm: float | None
    clipped_fraction: float | None
    train_time_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """Everything needed to resume a training after an epoch as if it had never stopped. It shares no memory with it.

    `clip_norms` are those of private gradients, or None for ordinary ones.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    generators: dict[str, Tensor]
    clip_norms: Tensor | None
    history: tuple[EpochRecord, ...]
    first_step_time_s: float


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


def make_plan(training: Training, defenses: tuple[Defense, ...], model: StagedModel, n_train: int) -> TrainingPlan:
    """The plan for `training` on `n_train` examples, after all `defenses` edited it in order.

    Raises:
        ValueError: the batch is larger than the training data, or the defenses cannot be combined.
    """
    if training.batch_size > n_train:
        raise ValueError(
            f"batch_size is {training.batch_size} but the target has only {n_train} training examples; "
            f"set training.batch_size to {n_train} or less"
        )
    plan = TrainingPlan(
        n_train=n_train, epochs=training.epochs, batch_size=training.batch_size, sampling=training.sampling
    )
    for defense in defenses:
        plan = defense.edit_training(plan, model)
    return plan


def build_model(
    architecture: Architecture, defenses: tuple[Defense, ...], info: DatasetInfo, init_seed: int
) -> StagedModel:
    """The model for a dataset, initialized from `init_seed` alone, then edited by the defenses."""
    with torch.random.fork_rng(devices=[]):
        seed_global_torch(init_seed)
        model = architecture.build(info)
        for defense in defenses:
            model = defense.edit_model(model)
    return model


def fit(
    *,
    architecture: Architecture,
    defenses: tuple[Defense, ...],
    training: Training,
    data: Examples,
    members: IntArray,
    test: IntArray,
    seed: int,
    target_id: str,
    stream_index: int = 0,
    performance: Performance | None = None,
    on_epoch: Callable[[EpochRecord, int], None] | None = None,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
    is_checkpoint_due: Callable[[], bool] = lambda: True,
    resume: Checkpoint | None = None,
) -> TrainedTarget:
    """Train one model on the examples at `members`, on the device that holds `data`.

    Randomness: initialization, batches, dropout and noise each have their own stream, derived from `seed` and
    `stream_index` (0 for a target, 1 and up for its shadows, which share no stream with it). Noise also derives from
    `target_id`. So do batches and dropout masks under an accounted mechanism, unless `training.paired_batches` is true;
    two private runs then share none of the random numbers that their guarantees depend on. With `secure_noise`, batches,
    dropout masks and noise come from the operating system's generator, so each call gives different weights.

    `on_epoch` is called with each epoch's record and the number of epochs. `on_checkpoint` is called with a checkpoint
    after each epoch if `is_checkpoint_due` returns true. Given such a checkpoint as `resume` and otherwise the same
    arguments, training ends with the weights and ε of an uninterrupted run.

    Raises:
        DivergedError: the loss of an epoch is not finite.
        ValueError: see `make_plan`; or this device does not compute in `training.precision`.
    """
    device, performance = data.inputs.device, performance or Performance()
    check_precision(training.precision, device)
    model = build_model(architecture, defenses, data.info, torch_seed(seed, Stream.INIT, stream_index)).to(device)
    plan = make_plan(training, defenses, model, len(members))
    if performance.channels_last:
        # Convolutions are faster on CPU and GPU with channels innermost; results differ by rounding only.
        model.to(memory_format=torch.channels_last)
    optimizer = _optimizer(training, _parameter_groups(model, plan))
    is_own = plan.accounting is not None and not training.paired_batches
    batches_of = target_id if is_own else ""
    sampling = noise = None
    if not plan.secure_noise:
        sampling = torch_generator(seed, Stream.SAMPLING, stream_index, target_id=batches_of)
        noise = torch_generator(seed, Stream.NOISE, stream_index, str(device), target_id)
    gradient: PlainGradient | PrivateGradient
    private: PrivateGradient | None = None
    expected = plan.batch_size if plan.sampling == "poisson" else None
    if plan.rule is None:
        gradient = PlainGradient(model, expected, precision=training.precision, performance=performance)
    else:
        gradient = private = PrivateGradient(
            model, plan.rule, expected, noise, precision=training.precision, performance=performance
        )
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
        if sampling is not None and noise is not None:
            generators |= {"sampling": sampling, "noise": noise}
        if device.type == "cuda":
            generators["dropout_cuda"] = torch.cuda.default_generators[device.index or 0]
        if resume is not None:
            model.load_state_dict(resume.model)
            optimizer.load_state_dict(deepcopy(resume.optimizer))
            for name, generator in generators.items():
                generator.set_state(resume.generators[name])
            if private is not None and resume.clip_norms is not None:
                private.clip_norms = resume.clip_norms.clone()
            history, first_step_time_s = list(resume.history), resume.first_step_time_s
        step = history[-1].step if history else 0
        for epoch in epochs[len(history) :]:
            model.train()
            loss_sum, n_right = torch.zeros((), device=device), torch.zeros((), device=device)
            n_seen = 0
            if private is not None:
                private.n_within.zero_()
            first_step_in_epoch_s = 0.0
            started = time.perf_counter()
            while step < plan.steps_until(epoch):
                index = next(batches).to(device)
                batch_loss, batch_right = gradient.step(data.inputs[index], data.labels[index])
                optimizer.step()
                loss_sum += batch_loss
                n_right += batch_right
                n_seen += len(index)
                step += 1
                if step == 1:
                    _synchronize(device)
                    first_step_in_epoch_s = first_step_time_s = time.perf_counter() - started
            _synchronize(device)
            epoch_time_s = time.perf_counter() - started - first_step_in_epoch_s
            train_loss = float(loss_sum) / max(1, n_seen)
            if not math.isfinite(train_loss):
                raise DivergedError(f"the training loss is {train_loss} in epoch {epoch}; lower training.learning_rate")
            evaluated = training.evaluate_every and (epoch % training.evaluate_every == 0 or epoch == plan.epochs)
            test_loss, test_accuracy = loss_and_accuracy(*predict(model, data, test)) if evaluated else (None, None)
            record = EpochRecord(
                epoch=epoch,
                step=step,
                train_loss=train_loss,
                train_accuracy=float(n_right) / max(1, n_seen),
                test_loss=test_loss,
                test_accuracy=test_accuracy,
                epsilon_spent=spent[epoch - 1],
                clip_norm=None if private is None else float(torch.linalg.vector_norm(private.clip_norms)),
                clipped_fraction=None if private is None or not n_seen else 1 - float(private.n_within) / n_seen,
                train_time_s=epoch_time_s,
            )
            history.append(record)
            if on_checkpoint is not None and is_checkpoint_due():
                on_checkpoint(
                    Checkpoint(
                        model={name: value.clone() for name, value in model.state_dict().items()},
                        optimizer=deepcopy(optimizer.state_dict()),
                        generators={name: generator.get_state() for name, generator in generators.items()},
                        clip_norms=None if private is None else private.clip_norms.clone(),
                        history=tuple(history),
                        first_step_time_s=first_step_time_s,
                    )
                )
            if on_epoch is not None:
                on_epoch(record, plan.epochs)
    if private is not None:
        private.close()
    model.zero_grad(set_to_none=True)
    model.to(memory_format=torch.contiguous_format).eval()
    return TrainedTarget(
        model=model,
        plan=plan,
        steps=step,
        guarantee=plan.accounting.guarantee(step) if plan.accounting else None,
        history=tuple(history),
        first_step_time_s=first_step_time_s,
        train_time_s=sum(record.train_time_s for record in history),
    )


class PlainGradient:
    """The ordinary gradient of a batch: the mean, or the sum divided by `expected_batch_size` if that is given."""

    def __init__(
        self,
        model: nn.Module,
        expected_batch_size: float | None = None,
        *,
        precision: Precision = "fp32",
        performance: Performance | None = None,
    ) -> None:
        self._model = model
        self._expected_batch_size = expected_batch_size
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._precision = precision
        # Poisson batches have too many sizes to capture each; only private gradients pad them.
        replays = expected_batch_size is None and (performance or Performance()).replays_on(self._parameters[0].device)
        self._run = Replay(self._gradients) if replays else self._gradients

    def step(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Set every `.grad` from a batch. Returns the summed loss and the number of right answers, both 0-d tensors."""
        if not len(labels):  # a Poisson sample may be empty, and some layers refuse empty input
            for parameter in self._parameters:
                parameter.grad = torch.zeros_like(parameter)
            return torch.zeros((), device=inputs.device), torch.zeros((), device=inputs.device)
        loss_sum, n_right, *gradients = self._run(inputs, labels)
        for parameter, value in zip(self._parameters, gradients, strict=True):
            parameter.grad = value
        return loss_sum, n_right

    def _gradients(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        logits = forward(self._model, inputs, self._precision)
        loss_sum = cross_entropy(logits, labels, reduction="sum")
        loss = loss_sum / (self._expected_batch_size or len(labels))
        gradients = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
        return loss_sum.detach(), (logits.detach().argmax(1) == labels).sum(), *gradients


def predict(
    model: nn.Module, data: Examples, index: IntArray, query: Callable[[Tensor], Tensor] = lambda inputs: inputs
) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) in eval mode and labels (n,) of the examples at `index`, on CPU; `query` changes the inputs."""
    was_training = model.training
    model.eval()
    positions = torch.from_numpy(index).to(data.inputs.device)
    with torch.inference_mode():
        parts = [model(query(data.inputs[part])) for part in positions.split(EVALUATION_BATCH)]
        logits = torch.cat(parts).cpu() if parts else torch.empty(0, data.info.num_classes)
    model.train(was_training)
    return logits, data.labels[positions].cpu()


def loss_and_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats, and the fraction of right answers."""
    return float(cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())


def _optimizer(training: Training, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
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
            return torch.optim.SGD(groups, lr=learning_rate, momentum=training.momentum)


def _parameter_groups(model: nn.Module, plan: TrainingPlan) -> list[dict[str, object]]:
    """One parameter group per penalty λ. The gradient of λ‖w‖² is 2λw, hence the factor 2."""
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
