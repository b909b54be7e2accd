"""Answers at a temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from models.answers import Answer
from models.defenses.base import Defense


@dataclass(frozen=True, kw_only=True)
class Temperature(Defense):
    """Temperature: divides the trained model's logits by `temperature` whenever it is asked. Training is unchanged.

    Decisions stay the same; confidences move toward each other if it is above 1. It hides nothing from an attacker who scales
    the answers back. No guarantee.
    """

    temperature: float = 4.0

    source: ClassVar[str] = "Shokri, Stronati, Song & Shmatikov 2017, section VIII"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature is {self.temperature}; it must be above 0 and finite")

    def edit_answers(self, answer: Answer) -> Answer:
        def scaled(inputs: Tensor) -> Tensor:
            return answer(inputs) / self.temperature

        return scaled
