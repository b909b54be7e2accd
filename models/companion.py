"""Networks that are trained in turn with the model, such as an attack that the model learns to resist."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.datasets.base import Examples, IntArray


class Companion(ABC):
    """A companion in training. `step` is called before each step of the model, whose loss has the penalty."""

    @abstractmethod
    def step(self) -> None:
        """Train the companion. The model stays as it is, its mode and its gradients included."""

    @abstractmethod
    def penalty(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What is added to the loss of each example (n,), from the model's logits (n, classes) and the labels (n,).

        A step on CUDA is captured once and replayed, so a companion changes its weights in place.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that `load` needs to go on as if training had never stopped; the generator's state is kept elsewhere."""

    @abstractmethod
    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Surroundings:
    """What a companion is trained beside and on: the model, and positions of its members and of reference examples in `data`.

    Random numbers come from `generator`, a stream of the companion's own on CPU.
    """

    model: nn.Module
    data: Examples
    members: IntArray
    reference: IntArray
    batch_size: int
    generator: torch.Generator


class CompanionPlan(ABC):
    """What a plan says of a companion: a frozen dataclass with its settings."""

    @abstractmethod
    def start(self, surroundings: Surroundings) -> Companion:
        """A new companion, on the data's device."""
