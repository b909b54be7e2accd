"""What early stopping of a search's runs needs to know; Ray Tune's ASHA decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

EPOCH, VALIDATION_ACCURACY = "epoch", "validation_accuracy"
"""What a run reports after each epoch."""


@dataclass(frozen=True, kw_only=True)
class Halving:
    """Settings of ASHA, and what runs that have ended reached: validation accuracy by target id and epoch."""

    epochs: int
    grace_epochs: int
    reduction_factor: int
    reached: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
