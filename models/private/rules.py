"""The rules that make a mechanism: from per-example gradient norms to weights and noise.

Every mechanism is the same three lines; only the second one differs:

    norms = per-example gradient norms
    weights, noise_std = rule(norms)
    gradient = Σᵢ weightsᵢ · gᵢ + noise_std · N(0, I)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Rule(Protocol):
    """A mechanism over per-example gradient norms."""

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise added to each coordinate of the weighted sum, once per step."""
        ...

    def weights(self, norms: Tensor) -> Tensor:
        """The factor of each example's gradient: (n,) norms to (n,) weights."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClipThenNoise:
    """Clip each example's gradient to `max_grad_norm`, then noise the sum: DP-SGD.

    Source: Abadi et al. 2016, Algorithm 1. No example contributes more than `max_grad_norm` to the sum;
    the noise has standard deviation noise_multiplier · max_grad_norm.
    """

    max_grad_norm: float
    noise_multiplier: float

    @property
    def noise_std(self) -> float:
        return self.noise_multiplier * self.max_grad_norm

    def weights(self, norms: Tensor) -> Tensor:
        # A clamp in the denominator, not an epsilon added to it: exactly 1 below the clip norm.
        return self.max_grad_norm / norms.clamp(min=self.max_grad_norm)
