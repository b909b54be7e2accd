"""Random numbers of runs, for which a search that releases only its best run is cheap in ε."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.optimize import brentq

MOST_RUNS = 10_000
"""More runs of one search are refused."""

Law = Literal["logarithmic", "geometric", "poisson"]

LAWS: dict[Law, float] = {"logarithmic": 0.0, "geometric": 1.0, "poisson": math.inf}
"""Each law's shape. Those with a finite one are truncated negative binomials."""


@dataclass(frozen=True, kw_only=True)
class NumberOfRuns:
    """A random number of runs with a given mean.

    A truncated negative binomial is never 0. The smaller its shape, the lower the price, and the more the number varies. A
    Poisson number is close to its mean, and costs most for means above about 5. It may be 0; a search then chooses nothing, and its
    price holds for whoever draws again (`share_without_runs`).

    Source: Papernot & Steinke 2022, "Hyperparameter Tuning with Renyi Differential Privacy", Definition 1 and Theorem 6. Deviation:
    they release nothing where the number is 0.
    """

    law: Law
    mean: float

    def __post_init__(self) -> None:
        if self.law not in LAWS:
            raise ValueError(f"law is {self.law!r}; allowed: {', '.join(LAWS)}")
        if not 1 <= self.mean <= MOST_RUNS:
            raise ValueError(f"the mean number of runs is {self.mean:g}; it must be from 1 to {MOST_RUNS:,}")

    @property
    def shape(self) -> float:
        return LAWS[self.law]

    @property
    def share_without_runs(self) -> float:
        """The probability that the number is 0."""
        return math.exp(-self.mean) if self.law == "poisson" else 0.0

    def draw(self, generator: np.random.Generator) -> int:
        """A number of runs. The guarantee holds over this draw, so it does not cover people who know the generator's seed."""
        if self.law == "poisson":
            return int(generator.poisson(self.mean))
        if self.mean == 1:
            return 1
        if self.law == "geometric":
            return int(generator.geometric(1 / self.mean))
        return int(generator.logseries(-math.expm1(_log_gamma(self.mean))))


@lru_cache(maxsize=16)
def _log_gamma(mean: float) -> float:
    """log γ of the logarithmic law with this mean, which is (1/γ − 1) / log(1/γ)."""
    return float(brentq(lambda log_gamma: math.expm1(-log_gamma) / -log_gamma - mean, -math.log(mean) - 10, -1e-12))
