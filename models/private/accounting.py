"""Privacy accounting: ε of the steps actually taken, and the noise multiplier for a target ε.

Accountants take the exact sample rate and an integer number of steps, not epochs or a loader's length, which would lose
steps. Their results equal Opacus's. The mathematics is in `models.private.composition`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from opacus.accountants import GaussianAccountant, RDPAccountant
from scipy.optimize import brentq

from models.private import composition
from models.private.composition import LEAST_NOISE_MULTIPLIER, Steps

ACCOUNTANTS = ("prv", "rdp")
"""`prv`: numerical composition of privacy loss variables (Gopi, Lee & Wutschitz 2021), with its error bound added. `rdp`:
Rényi differential privacy (Mironov 2017), looser. Both are upper bounds. Gaussian DP is not offered: it is a limit that
falls below the true ε."""

PRV_ERROR = 0.01
"""The mesh error that the PRV accountant adds to ε. It is larger if ε and steps are so large that it would need gigabytes."""

_MOST_PRV_EPSILON = 500.0
"""Above this, Chernoff's bound is so far above ε that rounding may hide ε. So large an ε guarantees nothing anyway."""

_LEAST_PRV_EPSILON = 1.5 * PRV_ERROR
"""Between 0 and this, the composition returns mostly its own error, which rounding makes unstable."""

_LEAST_DELTA = 1e-200
_MOST_NOISE_MULTIPLIER = 1e5
ORDERS = np.array(RDPAccountant.DEFAULT_ALPHAS)


class BeyondPrvError(ValueError):
    """The PRV accountant cannot compute so large an ε; RDP can."""


@dataclass(frozen=True, kw_only=True)
class PrivacyGuarantee:
    """An (ε, δ)-differential privacy guarantee and its assumptions. `accountant` is the one that computed ε."""

    epsilon: float
    delta: float
    accountant: str
    adjacency: str = "add_or_remove_one"
    sampling: str = "poisson"


@dataclass(frozen=True, kw_only=True)
class PrivacyAccounting:
    """The parameters of a subsampled Gaussian mechanism. A number of steps turns them into a guarantee.

    `max_grad_norm` is None if the clip norm changes from step to step.
    """

    epsilon_target: float | None
    delta: float
    accountant: str
    noise_multiplier: float
    max_grad_norm: float | None
    sample_rate: float

    def guarantee(self, steps: int) -> PrivacyGuarantee:
        """The guarantee after `steps` steps.

        Where ε is beyond the PRV accountant's range, it is RDP's, and the guarantee says so: so little noise guarantees nothing, but
        its ε is still an upper bound. It may be far above the true ε.
        """
        accountant = self.accountant
        try:
            spent = epsilon(self.noise_multiplier, self.sample_rate, steps, self.delta, accountant)
        except BeyondPrvError:
            accountant = "rdp"
            spent = epsilon(self.noise_multiplier, self.sample_rate, steps, self.delta, accountant)
        return PrivacyGuarantee(epsilon=spent, delta=self.delta, accountant=accountant)

    def epsilons(self, steps: Sequence[int]) -> list[float]:
        """ε after each number of steps in `steps`."""
        return [self.guarantee(each).epsilon for each in steps]

    def rdp(self, steps: int) -> list[dict[str, float]]:
        """Rényi divergence after `steps` steps, at each order where it is finite. It adds up over independent runs."""
        divergences = steps * rdp_of_a_step(self.noise_multiplier, self.sample_rate)
        return [
            {"order": float(order), "divergence": float(divergence)}
            for order, divergence in zip(ORDERS, divergences, strict=True)
            if math.isfinite(divergence)
        ]

    def epsilon_gdp(self, steps: int) -> float | None:
        """ε by the central limit of Gaussian DP (Dong, Roth & Su 2019): an approximation, not a bound."""
        if steps == 0:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Opacus warns that it underestimates ε; here it is no guarantee
            accountant = GaussianAccountant()
            accountant.history = [(self.noise_multiplier, self.sample_rate, steps)]
            try:
                value = float(accountant.get_epsilon(delta=self.delta))
            except ValueError:  # at very large ε the root is outside the search bracket
                return None
        return value if math.isfinite(value) else None


@lru_cache(maxsize=4096)
def epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float, accountant: str) -> float:
    """ε of `steps` Poisson-subsampled Gaussian steps, for adding or removing one example; at least 0.

    Raises:
        BeyondPrvError: `accountant` is prv, and ε is beyond its range.
        ValueError: an argument is out of range.
    """
    _check(sample_rate, steps, delta, accountant)
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError(f"noise_multiplier is {noise_multiplier}; it must be above 0 and finite")
    if steps == 0:
        return 0.0
    # Capping the noise gives an upper bound
    mechanism = Steps(min(noise_multiplier, _MOST_NOISE_MULTIPLIER), sample_rate, steps)
    if _is_hardly_ever_sampled(mechanism, delta):
        return 0.0
    by_rdp = float(_epsilon_by_order(mechanism, delta).min())
    if accountant == "rdp":
        return max(0.0, by_rdp)
    # The lowest Rényi order, 1.1, is too high for so large an ε; the bound may be three times the true ε
    if by_rdp > 6 * _MOST_PRV_EPSILON:
        raise BeyondPrvError(
            f"the prv accountant goes up to an epsilon of {_MOST_PRV_EPSILON:g}, and this is near {by_rdp:.3g}. Use more noise "
            "(a smaller epsilon), or accountant rdp"
        )
    try:
        spent = composition.epsilon(mechanism, delta, _tilt(mechanism, delta), PRV_ERROR)
        return max(_LEAST_PRV_EPSILON, spent) if spent else 0.0
    except ArithmeticError as error:
        raise BeyondPrvError(
            f"the prv accountant cannot account noise_multiplier {noise_multiplier:g}: {error}. Use more noise (a smaller "
            "epsilon), or accountant rdp"
        ) from error


def _is_hardly_ever_sampled(mechanism: Steps, delta: float) -> bool:
    """Whether the probability that an example is in any batch is at most δ; ε is then 0 for any noise."""
    return mechanism.sample_rate < 1 and -math.expm1(mechanism.steps * math.log1p(-mechanism.sample_rate)) <= delta


def _epsilon_by_order(mechanism: Steps, delta: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """ε by each Rényi order; each is an upper bound (Balle et al. 2020, Theorem 21)."""
    divergences = mechanism.steps * rdp_of_a_step(mechanism.noise_multiplier, mechanism.sample_rate)
    by_order = divergences - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1) + np.log1p(-1 / ORDERS)
    return np.asarray(by_order)


@lru_cache(maxsize=64)
def rdp_of_a_step(noise_multiplier: float, sample_rate: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Rényi divergences of one step at Opacus's orders; they add up over steps.

    Below `LEAST_NOISE_MULTIPLIER` they are the divergences without sampling, a close upper bound.
    """
    if noise_multiplier < LEAST_NOISE_MULTIPLIER:
        return np.asarray(ORDERS / (2 * noise_multiplier**2))
    return np.asarray(composition.log_moments(noise_multiplier, sample_rate, ORDERS) / (ORDERS - 1))


def _tilt(mechanism: Steps, delta: float) -> float:
    """An approximate minimizer of Chernoff's bound: the best Rényi order minus one, or a better value outside the orders."""

    def bound(tilt: float) -> float:
        moment = composition.log_moments(mechanism.noise_multiplier, mechanism.sample_rate, [tilt + 1])
        return float(mechanism.steps * moment[0] - math.log(delta)) / tilt

    best = int(np.argmin(_epsilon_by_order(mechanism, delta)))
    tilt = float(ORDERS[best]) - 1
    if best in (0, len(ORDERS) - 1):
        factor, least = 2.0 if best else 0.5, bound(tilt)
        while 1e-4 < tilt < 1e4 and (further := bound(factor * tilt)) < least:
            tilt, least = factor * tilt, further
    return tilt


@lru_cache(maxsize=1024)
def find_noise_multiplier(
    epsilon_target: float, sample_rate: float, steps: int, delta: float, accountant: str
) -> float:
    """The smallest noise multiplier whose ε is at most `epsilon_target`, to one part in 10⁴ and rounded to six digits.

    Raises:
        ValueError: an argument is out of range, or no noise multiplier from 0.01 to 10⁵ reaches the target.
    """
    _check(sample_rate, steps, delta, accountant)
    if steps == 0:
        raise ValueError("steps is 0; without a step, no noise is needed")
    floor, least, most = 0.0, 0.0, math.inf
    if accountant == "prv":
        floor, least, most = PRV_ERROR, _LEAST_PRV_EPSILON, _MOST_PRV_EPSILON
    if not least < epsilon_target <= most:
        raise ValueError(_unreachable(epsilon_target, sample_rate, steps, delta, accountant))

    def excess(noise_multiplier: float) -> float:
        """log(ε / target), both without the accountant's constant error; positive if ε is above the target."""
        spent = epsilon(noise_multiplier, sample_rate, steps, delta, accountant)
        return math.log((spent - floor) / (epsilon_target - floor)) if spent > floor else -50.0

    rough, start = excess, 1.0
    if accountant == "prv":
        # The Rényi answer is cheap and close. If it cannot reach so small an ε, PRV may.
        reach = float(_epsilon_by_order(Steps(_MOST_NOISE_MULTIPLIER, sample_rate, steps), delta).min())
        try:
            start = find_noise_multiplier(max(epsilon_target, 1.2 * reach), sample_rate, steps, delta, "rdp")
        except ValueError:
            raise ValueError(_unreachable(epsilon_target, sample_rate, steps, delta, accountant)) from None

        def rough(noise_multiplier: float) -> float:
            """How far δ at the target is above `delta`, in Gaussian deviations.

            The sign equals that of `excess`, except within a few parts in 10⁶ of the noise.
            """
            mechanism = Steps(noise_multiplier, sample_rate, steps)
            tilt = _tilt(mechanism, delta)
            log_delta = composition.log_delta(mechanism, epsilon_target - floor, tilt)
            if log_delta is None:
                coarse = max(PRV_ERROR, 1e-3 * epsilon_target)
                spent = composition.epsilon(mechanism, delta, tilt, coarse) - coarse
                return math.log(spent / (epsilon_target - floor)) if spent > 0 else -50.0
            return math.sqrt(-2 * math.log(0.999 * delta)) - math.sqrt(max(0.0, -2 * log_delta))

    by_logarithm = lru_cache(lambda logarithm: rough(math.exp(logarithm)))
    bracket = _bracket(by_logarithm, math.log(start))
    if bracket is None:
        raise ValueError(_unreachable(epsilon_target, sample_rate, steps, delta, accountant))
    found = math.exp(brentq(by_logarithm, *bracket, xtol=1e-5)) * (1 + 3e-5)
    # The tolerance is 10⁻⁴ of the noise; over it, ε falls about as fast as Rényi's ε. Six digits make machines agree.
    by_rdp = [epsilon(each, sample_rate, steps, delta, "rdp") for each in (found, 1.001 * found)]
    slope = max(1.0, math.log(by_rdp[0] / by_rdp[1]) / math.log(1.001)) if by_rdp[1] > 0 else 1.0
    low, high, last = 0.0, math.inf, None
    while high > (1 + 1e-4) * low:
        found = float(f"{found:.6g}")
        spent = epsilon(found, sample_rate, steps, delta, accountant)
        above = math.log(spent / epsilon_target) if spent else -1.0
        if 0 <= -above <= 1e-4 * slope:
            return found
        if last is not None and last[0] != found and (steeper := (last[1] - above) / math.log(found / last[0])) > 0:
            slope = steeper
        last = found, above
        low, high = (found, high) if above > 0 else (low, found)
        found *= math.exp(min(max(above / slope, -0.05), 0.05) + 0.5e-4)
        if not low < found < high:
            found = math.sqrt(low * high)
    return high


def _bracket(excess: Callable[[float], float], start: float) -> tuple[float, float] | None:
    """Logarithms of two noise multipliers, one with ε above the target, one not; None if there is no such pair."""
    least, most = math.log(LEAST_NOISE_MULTIPLIER), math.log(_MOST_NOISE_MULTIPLIER)
    low = high = start
    stride = 0.15
    while excess(high) > 0:
        if high == most:
            return None
        low, high, stride = high, min(high + stride, most), 2 * stride
    while low == high or excess(low) <= 0:
        if low == least:
            return None
        high, low, stride = low, max(low - stride, least), 2 * stride
    return low, high


def _unreachable(epsilon_target: float, sample_rate: float, steps: int, delta: float, accountant: str) -> str:
    """The message of a target that cannot be reached, with the nearest one that can."""
    least = epsilon(_MOST_NOISE_MULTIPLIER, sample_rate, steps, delta, accountant)
    wanted = f"epsilon {epsilon_target:g} cannot be reached with the {accountant} accountant"
    setting = f"over {steps} steps at sample rate {sample_rate:g} and delta {delta:g}"
    if epsilon_target > max(least, _LEAST_PRV_EPSILON if accountant == "prv" else 0.0):
        most = epsilon(LEAST_NOISE_MULTIPLIER, sample_rate, steps, delta, "rdp")
        if accountant == "prv" and most > _MOST_PRV_EPSILON:
            return f"{wanted}, which goes up to {_MOST_PRV_EPSILON:g}. Ask for less, or use accountant rdp"
        return f"{wanted}: {setting}, {most:.4g} needs next to no noise ({LEAST_NOISE_MULTIPLIER}). Ask for less"
    remedy = ", a larger delta, or accountant prv" if accountant == "rdp" else ""
    return f"{wanted}, whose bound does not fall below {least:.4g} {setting}. Ask for more{remedy}"


def _check(sample_rate: float, steps: int, delta: float, accountant: str) -> None:
    if accountant not in ACCOUNTANTS:
        raise ValueError(f"accountant is '{accountant}'; allowed: {', '.join(ACCOUNTANTS)}")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate is {sample_rate}; it must be above 0 and at most 1")
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}; it must be above 0 and below 1")
    if delta < _LEAST_DELTA:
        raise ValueError(f"delta is {delta:g}; it must be at least {_LEAST_DELTA:g}")
    if steps < 0 or steps != int(steps):
        raise ValueError(f"steps is {steps}; it must be a whole number from 0")
