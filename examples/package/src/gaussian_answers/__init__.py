"""Gaussian noise on every answer, which repeats for the same question."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from models.answers import Answer
from models.defenses.base import Defense


@dataclass(frozen=True, kw_only=True)
class GaussianAnswers(Defense):
    """Noisy answers: adds Gaussian noise to the logits, the same noise whenever the same input is asked about.

    The noise follows from the input's bytes and from `secret`, so that averaging repeated answers removes none of it. An
    attacker who changes inputs slightly gets new noise. No guarantee.
    """

    scale: float = 1.0
    """Standard deviation of the noise on a logit, in nats."""
    secret: str = "change me"

    source: ClassVar[str] = "an example"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale is {self.scale}; it must be above 0 and finite")

    def edit_answers(self, answer: Answer) -> Answer:
        def noisy(inputs: Tensor) -> Tensor:
            logits = answer(inputs)
            rows = [self._noise(each.cpu().numpy().tobytes(), logits.shape[1]) for each in inputs]
            return logits + torch.from_numpy(np.stack(rows)).to(logits) if rows else logits

        return noisy

    def _noise(self, question: bytes, num_classes: int) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(self.secret.encode() + question).digest())
        return self.scale * np.random.default_rng(seed).normal(size=num_classes)
