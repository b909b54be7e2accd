"""Privacy accounting: ε of the steps really taken, and the noise that reaches a wanted ε.

Opacus's accountants do the mathematics. They are given the exact sample rate and an integer number of
steps, never epochs or a loader's length, which lose steps.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from opacus.accountants import GaussianAccountant, PRVAccountant, RDPAccountant
from opacus.accountants.analysis.prv import (
    PoissonSubsampledGaussianPRV,
    TruncatedPrivacyRandomVariable,
    compose_heterogeneous,
    discretize,
)
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

ACCOUNTANTS = ("prv", "rdp")
"""`prv`: numerical composition of privacy loss variables (Gopi, Lee & Wutschitz 2021), with its error
bound added; `rdp`: Rényi differential privacy (Mironov 2017), looser. Both are upper bounds. Gaussian DP is
not among them: it is a limit that falls below the true ε."""

_MOST_PRV_POINTS = 2e7


@dataclass(frozen=True, kw_only=True)
class PrivacyGuarantee:
    """(ε, δ)-differential privacy, and what it rests on."""

    epsilon: float
    delta: float
    accountant: str
    adjacency: str = "add_or_remove_one"
    sampling: str = "poisson"


@dataclass(frozen=True, kw_only=True)
class PrivacyAccounting:
    """The parameters of a subsampled Gaussian mechanism; with a number of steps, a guarantee.

    `max_grad_norm` is None where the clip norm changes from step to step.
    """

    epsilon_target: float | None
    delta: float
    accountant: str
    noise_multiplier: float
    max_grad_norm: float | None
    sample_rate: float

    def guarantee(self, steps: int) -> PrivacyGuarantee:
        """The guarantee after `steps` steps."""
        spent = epsilon(self.noise_multiplier, self.sample_rate, steps, self.delta, self.accountant)
        return PrivacyGuarantee(epsilon=spent, delta=self.delta, accountant=self.accountant)

    def epsilons(self, steps: Sequence[int]) -> list[float]:
        """ε after each of several numbers of steps, ascending; the last is that of `guarantee`."""
        if self.accountant == "rdp" or not steps or steps[-1] == 0:
            return [self.guarantee(each).epsilon for each in steps]
        last = self.guarantee(steps[-1]).epsilon
        return [*_prv_epsilons(self.noise_multiplier, self.sample_rate, steps, self.delta)[:-1], last]

    def rdp(self, steps: int) -> list[dict[str, float]]:
        """Rényi divergence after `steps` steps at each order at which it is finite; over independent runs it adds up."""
        divergences = steps * _rdp_of_a_step(self.noise_multiplier, self.sample_rate)
        return [
            {"order": float(order), "divergence": float(divergence)}
            for order, divergence in zip(RDPAccountant.DEFAULT_ALPHAS, divergences, strict=True)
            if math.isfinite(divergence)
        ]

    def epsilon_gdp(self, steps: int) -> float | None:
        """ε by the central limit of Gaussian DP (Dong, Roth & Su 2019): an approximation, not a bound."""
        if steps == 0:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it underestimates: which is why it is no guarantee here
            accountant = GaussianAccountant()
            accountant.history = [(self.noise_multiplier, self.sample_rate, steps)]
            try:
                value = float(accountant.get_epsilon(delta=self.delta))
            except ValueError:  # the root is out of the searched bracket at very large ε
                return None
        return value if math.isfinite(value) else None


class PrvSizeError(ValueError):
    """The PRV accountant would take gigabytes."""


@lru_cache(maxsize=4096)
def epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float, accountant: str) -> float:
    """ε of `steps` Poisson-subsampled Gaussian mechanisms, for adding or removing one example.

    Raises:
        ValueError: an argument is out of range, or the accountant cannot handle such little noise; the PRV
            accountant is not even asked where it would take gigabytes.
    """
    _check(sample_rate, steps, delta, accountant)
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError(f"noise_multiplier is {noise_multiplier}; it must be above 0 and finite")
    if steps == 0:
        return 0.0
    if accountant == "prv":
        _check_prv_size(noise_multiplier, sample_rate, steps, delta)
    with warnings.catch_warnings():
        # "optimal order is the largest alpha": the bound is only looser, and more noise is the next try
        warnings.simplefilter("ignore")
        try:
            if accountant == "prv":
                accounting = PRVAccountant()
                accounting.history = [(noise_multiplier, sample_rate, steps)]
                spent = float(accounting.get_epsilon(delta=delta))
            else:
                rdp = steps * _rdp_of_a_step(noise_multiplier, sample_rate)
                spent = float(get_privacy_spent(orders=RDPAccountant.DEFAULT_ALPHAS, rdp=rdp, delta=delta)[0])
            if not math.isfinite(spent):
                raise OverflowError("its bound is not finite")
            return spent
        except (RuntimeError, ArithmeticError, ValueError) as error:
            raise ValueError(
                f"the {accountant} accountant cannot account noise_multiplier {noise_multiplier:g} over {steps} steps "
                f"at sample rate {sample_rate:g}: {error}. Use more noise (a smaller epsilon), or accountant rdp."
            ) from error


def joint_epsilon(runs: Sequence[tuple[PrivacyAccounting, int]], delta: float) -> float:
    """ε of releasing all of several private trainings, each given with its steps, at one `delta` for all of them together.

    It is the composition of their mechanisms, far below the sum of their ε. It holds only for runs that draw their noise
    and their batches independently of each other: of two that share noise, the difference may have no noise at all. Runs
    of `prv` are composed by PRV where it does not take gigabytes, and else, as where a run is of `rdp`, by the sum of
    their Rényi divergences.

    Raises:
        ValueError: as `epsilon`.
    """
    steps_of: Counter[tuple[float, float]] = Counter()
    for accounting, steps in runs:
        epsilon(
            accounting.noise_multiplier, accounting.sample_rate, steps, delta, "rdp"
        )  # refuses what is out of range
        steps_of[accounting.noise_multiplier, accounting.sample_rate] += steps
    mechanisms = [(noise, rate, steps) for (noise, rate), steps in sorted(steps_of.items()) if steps]
    if not mechanisms:
        return 0.0
    rdp = np.sum([steps * _rdp_of_a_step(noise, rate) for noise, rate, steps in mechanisms], axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_rdp = float(get_privacy_spent(orders=RDPAccountant.DEFAULT_ALPHAS, rdp=rdp, delta=delta)[0])
        if any(accounting.accountant != "prv" for accounting, _ in runs):
            return by_rdp
        if _prv_points(by_rdp, sum(steps for _, _, steps in mechanisms), delta) > _MOST_PRV_POINTS:
            return by_rdp
        prv = PRVAccountant()
        prv.history = mechanisms
        return min(by_rdp, float(prv.get_epsilon(delta=delta)))


@lru_cache(maxsize=64)
def _rdp_of_a_step(noise_multiplier: float, sample_rate: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Rényi divergences at Opacus's orders; they add up over steps."""
    orders = RDPAccountant.DEFAULT_ALPHAS
    divergences = compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=orders)
    return np.asarray(divergences)


@lru_cache(maxsize=1024)
def find_noise_multiplier(
    epsilon_target: float, sample_rate: float, steps: int, delta: float, accountant: str
) -> float:
    """The smallest noise multiplier, to one part in 10⁴, whose ε is at most `epsilon_target`.

    The end of the search that is returned is the one that keeps the promise.

    Raises:
        ValueError: an argument is out of range, or no noise multiplier up to 10⁵ reaches the target (the PRV
            bound includes an error of 0.01).
    """
    _check(sample_rate, steps, delta, accountant)

    def excess(noise_multiplier: float) -> float:
        """How far above the target its ε is, as a logarithm; infinitely far, where it cannot be accounted."""
        try:
            return math.log(epsilon(noise_multiplier, sample_rate, steps, delta, accountant) / epsilon_target)
        except PrvSizeError:
            raise
        except ValueError:  # so little noise that it cannot be accounted: certainly too little
            return math.inf

    high = 1.0
    if accountant != "rdp":
        # Rényi's answer is cheap and close. PRV takes minutes and gigabytes far below it, so the search starts here;
        # at 1 or more, since very small ε are out of reach of Rényi's orders but not of PRV.
        high = find_noise_multiplier(max(epsilon_target, 1.0), sample_rate, steps, delta, "rdp")
    while (above := excess(high)) > 0:
        high *= 2
        if high > 1e5:
            raise ValueError(
                f"epsilon {epsilon_target:g} cannot be reached with the {accountant} accountant; ask for more"
            )
    low = 0.8 * high
    while (below := excess(low)) <= 0:
        low, high, above = 0.8 * low, low, below
        if high < 1e-3:
            return high
    # The root of the chord, in logarithms, is soon closer than a third of the tolerance: try just beside it, on the
    # side that has not moved last.
    tolerance, lower_next = 1e-4, False
    while (width := math.log(high / low)) > tolerance:
        root = width * below / (below - above) if math.isfinite(below) else width / 2
        root += -tolerance / 3 if lower_next else tolerance / 3
        middle = low * math.exp(min(max(root, 0.01 * width), 0.99 * width))
        if (value := excess(middle)) <= 0:
            high, above, lower_next = middle, value, True
        else:
            low, below, lower_next = middle, value, False
    return high


def _prv_epsilons(noise_multiplier: float, sample_rate: float, steps: Sequence[int], delta: float) -> list[float]:
    """What Opacus's PRV accountant does, with one discretization, that of the most steps, for all."""
    loss, eps_error, delta_error = PoissonSubsampledGaussianPRV(sample_rate, noise_multiplier), 0.01, delta / 1000
    domain = PRVAccountant()._get_domain([loss], [steps[-1]], eps_error, delta_error)
    discrete = discretize(TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max), domain)
    composed = (compose_heterogeneous([discrete], [each]) if each else None for each in steps)
    return [float(each.compute_epsilon(delta, delta_error, eps_error)[2]) if each else 0.0 for each in composed]


def _check_prv_size(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> None:
    """Refuse what would discretize the privacy loss at more than some 10⁷ points.

    The mesh is Gopi, Lee & Wutschitz's, Theorem 5.5, at Opacus's ε error of 0.01 and δ error of δ/1000; Rényi's ε
    says how far it must reach.
    """
    reach = epsilon(noise_multiplier, sample_rate, steps, delta, "rdp")
    if _prv_points(reach, steps, delta) > _MOST_PRV_POINTS:
        raise PrvSizeError(
            f"the prv accountant would need gigabytes for noise_multiplier {noise_multiplier:g} over {steps} steps (ε near "
            f"{reach:.3g}). Use a smaller epsilon, or accountant rdp"
        )


def _prv_points(reach: float, steps: int, delta: float) -> float:
    return 2 * (reach + 3) * math.sqrt(steps / 2 * math.log(12_000 / delta)) / 0.01


def _check(sample_rate: float, steps: int, delta: float, accountant: str) -> None:
    if accountant not in ACCOUNTANTS:
        raise ValueError(f"accountant is '{accountant}'; allowed: {', '.join(ACCOUNTANTS)}")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate is {sample_rate}; it must be above 0 and at most 1")
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}; it must be above 0 and below 1")
    if steps < 0 or steps != int(steps):
        raise ValueError(f"steps is {steps}; it must be a whole number from 0")
