"""Training against an attack network that learns to tell members from reference examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from models.answers import answer_of
from models.architectures.base import StagedModel
from models.companion import Companion, CompanionPlan, Surroundings
from models.defenses.base import Defense, check_positive
from models.plan import TrainingPlan
from models.reference import relu_network

_INITIAL_STD = 0.01


class AttackNetwork(nn.Module):
    """The logit of membership (n,), from probabilities (n, classes) and one-hot labels (n, classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.answer = nn.Sequential(relu_network(num_classes, 1024, 512, 64), nn.ReLU())
        self.label = nn.Sequential(relu_network(num_classes, 128, 64), nn.ReLU())
        self.both = relu_network(64 + 64, 256, 128, 64, 1)

    def forward(self, probabilities: Tensor, one_hot_labels: Tensor) -> Tensor:
        joined = torch.cat([self.answer(probabilities), self.label(one_hot_labels)], 1)
        logits: Tensor = self.both(joined)
        return logits.squeeze(1)


class Attack(Companion):
    """The attack network in training, by Adam. Each batch is drawn with replacement, from members and from reference examples."""

    def __init__(self, settings: AttackPlan, surroundings: Surroundings) -> None:
        self._settings, self._around = settings, surroundings
        self._answer = answer_of(surroundings.model)
        self._device = surroundings.data.inputs.device
        with torch.random.fork_rng(devices=[]):  # layers draw initial weights, which are then replaced
            network = AttackNetwork(surroundings.data.info.num_classes)
        for parameter in network.parameters():
            nn.init.zeros_(parameter)
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=_INITIAL_STD, generator=surroundings.generator)
        self.network = network.to(self._device)
        self._optimizer = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)

    def step(self) -> None:
        data, size = self._around.data, self._around.batch_size
        is_member = (torch.arange(2 * size, device=self._device) < size).float()
        for _ in range(self._settings.steps):
            drawn = torch.cat(
                [self._drawn(torch.from_numpy(each)) for each in (self._around.members, self._around.reference)]
            )
            index = drawn.to(self._device)
            logits = self._logits(self._answer(data.inputs[index]), data.labels[index])
            self._optimizer.zero_grad()
            binary_cross_entropy_with_logits(logits, is_member).backward()
            self._optimizer.step()

    def penalty(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self._settings.alpha * logsigmoid(self._logits(logits, labels))

    def state(self) -> dict[str, Tensor]:
        network = {f"network/{name}": value.clone() for name, value in self.network.state_dict().items()}
        states = self._optimizer.state_dict()["state"]
        return network | {
            f"optimizer/{index}/{name}": value.clone() for index, each in states.items() for name, value in each.items()
        }

    def load(self, state: dict[str, Tensor]) -> None:
        network: dict[str, Tensor] = {}
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            kind, _, rest = name.partition("/")
            if kind == "network":
                network[rest] = value
                continue
            index, _, entry = rest.partition("/")
            # Adam counts its steps on CPU, and in place
            states.setdefault(int(index), {})[entry] = value.clone().cpu() if entry == "step" else value.clone()
        self.network.load_state_dict(network)
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": states, "param_groups": groups})

    def _logits(self, answers: Tensor, labels: Tensor) -> Tensor:
        probabilities = answers.softmax(1)
        one_hot_labels = torch.zeros_like(probabilities).scatter(1, labels[:, None], 1.0)
        logits: Tensor = self.network(probabilities, one_hot_labels)
        return logits

    def _drawn(self, positions: Tensor) -> Tensor:
        return positions[torch.randint(len(positions), (self._around.batch_size,), generator=self._around.generator)]


@dataclass(frozen=True, kw_only=True)
class AttackPlan(CompanionPlan):
    """The attack's weight in the model's loss, its learning rate, and its steps before each step of the model."""

    alpha: float
    learning_rate: float
    steps: int

    def start(self, surroundings: Surroundings) -> Attack:
        return Attack(self, surroundings)


@dataclass(frozen=True, kw_only=True)
class AdversarialRegularization(Defense):
    """Adversarial regularization: the model minimizes its loss plus alpha times the log-gain of an attack on its own members.

    An attack network h tells members from reference examples by the model's probabilities and the one-hot label. Before each step
    of the model, it takes `attack_steps` steps of Adam up the gain mean(log h) / 2 over a batch of members, plus
    mean(log(1 − h)) / 2 over as many reference examples; both are drawn with replacement, and the model is in eval mode. The model
    then descends loss + alpha · log h, averaged over its own batch of members (algorithm 1). The network is that of the public
    script for CIFAR-100: layers of 1024, 512 and 64 units for the probabilities, 128 and 64 for the label, and 256, 128, 64 and 1
    for both, with ReLU, weights from N(0, 0.01²) and no initial bias.

    Public scripts differ from the paper and from each other (SPIN-UMass/ML-Privacy-Regulization). In place of alpha · log h, that
    for Purchase100 has 3 · (mean(h) − 0.5), and that for CIFAR-100 has mean((h' − 1)²), where h' is the output for "no member". Both
    give the attack logits, not probabilities. The former takes 26 batches for the attack per batch for the model, has one more layer
    of 512, and keeps the epoch with the best test accuracy; the latter trains the attack from the fifth epoch, by the squared error
    and on labels of −1 and 1. Here the last epoch is taken. Other implementations use alpha 1 (SELENA's), and 3 for Purchase100, 10
    for Texas100 and Location30, 6 for CIFAR-10 (HAMP's).

    One step of the attack per step of the model is our choice, as is that inputs are as they are where the attack is trained, also
    if the model's are augmented or mixed. `train_loss` in the history includes the penalty, so it may be negative.

    The split needs `reference` examples. The model is not trained on them, but they shape it. Cannot be combined with a private
    mechanism, nor with `selena`. No guarantee.
    """

    alpha: float = 3.0
    attack_learning_rate: float = 0.001
    attack_steps: int = 1

    source: ClassVar[str] = "Nasr, Shokri & Houmansadr 2018"
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(self, "alpha", "attack_learning_rate")
        if self.attack_steps < 1:
            raise ValueError(f"attack_steps is {self.attack_steps}; it must be at least 1")

    def edit_training(self, plan: TrainingPlan, model: StagedModel) -> TrainingPlan:
        attack = AttackPlan(alpha=self.alpha, learning_rate=self.attack_learning_rate, steps=self.attack_steps)
        return plan.with_companion(attack)
