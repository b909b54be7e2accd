"""Privacy accounting: ε of the steps really taken, and the noise that reaches a wanted ε.

Opacus's accountants do the mathematics. They are given the exact sample rate and an integer number of
steps, never epochs or a loader's length, which lose steps.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache

from opacus.accountants import GaussianAccountant, PRVAccountant, RDPAccountant

ACCOUNTANTS = ("prv", "rdp")
"""`prv`: numerical composition of privacy loss variables (Gopi, Lee & Wutschitz 2021), with its error
bound added; `rdp`: Rényi differential privacy (Mironov 2017), looser. Both are upper bounds. Gaussian DP is
not among them: it is a limit that falls below the true ε."""


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
    """The parameters of a subsampled Gaussian mechanism; with a number of steps, a guarantee."""

    epsilon_target: float | None
    delta: float
    accountant: str
    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float

    def guarantee(self, steps: int) -> PrivacyGuarantee:
        """The guarantee after `steps` steps."""
        spent = epsilon(self.noise_multiplier, self.sample_rate, steps, self.delta, self.accountant)
        return PrivacyGuarantee(epsilon=spent, delta=self.delta, accountant=self.accountant)

    def epsilon_gdp(self, steps: int) -> float | None:
        """ε by the central limit of Gaussian DP (Dong, Roth & Su 2019): an approximation, not a bound."""
        if steps == 0:
            return 0.0
        accountant = GaussianAccountant()
        accountant.history = [(self.noise_multiplier, self.sample_rate, steps)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it underestimates: which is why it is no guarantee here
            try:
                value = float(accountant.get_epsilon(delta=self.delta))
            except ValueError:  # the root is out of the searched bracket at very large ε
                return None
        return value if math.isfinite(value) else None


@lru_cache(maxsize=4096)
def epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float, accountant: str) -> float:
    """ε of `steps` Poisson-subsampled Gaussian mechanisms, for adding or removing one example.

    Raises:
        ValueError: an argument is out of range, or the accountant cannot handle such little noise.
    """
    if accountant not in ACCOUNTANTS:
        raise ValueError(f"accountant is '{accountant}'; allowed: {', '.join(ACCOUNTANTS)}")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate is {sample_rate}; it must be above 0 and at most 1")
    if steps == 0:
        return 0.0
    accounting = PRVAccountant() if accountant == "prv" else RDPAccountant()
    accounting.history = [(noise_multiplier, sample_rate, steps)]
    with warnings.catch_warnings():
        # "optimal order is the largest alpha": the bound is only looser, and more noise is the next try
        warnings.simplefilter("ignore")
        try:
            return float(accounting.get_epsilon(delta=delta))
        except (RuntimeError, OverflowError, MemoryError, ValueError) as error:
            raise ValueError(
                f"the {accountant} accountant cannot account noise_multiplier {noise_multiplier:g} over {steps} steps "
                f"at sample rate {sample_rate:g}: {error}. Use more noise (a smaller epsilon), or accountant rdp."
            ) from error


@lru_cache(maxsize=1024)
def find_noise_multiplier(
    epsilon_target: float, sample_rate: float, steps: int, delta: float, accountant: str
) -> float:
    """The smallest noise multiplier, to one part in 10⁴, whose ε is at most `epsilon_target`.

    The end of the search that is returned is the one that keeps the promise.

    Raises:
        ValueError: no noise multiplier up to 10⁵ reaches the target (the PRV bound includes an error of 0.01).
    """

    def spent(noise_multiplier: float) -> float:
        return epsilon(noise_multiplier, sample_rate, steps, delta, accountant)

    high = 1.0
    while spent(high) > epsilon_target:
        high *= 2
        if high > 1e5:
            raise ValueError(
                f"epsilon {epsilon_target:g} cannot be reached with the {accountant} accountant; ask for more"
            )
    low = high / 2
    while True:
        try:
            if spent(low) > epsilon_target:
                break
        except ValueError:  # so little noise that it cannot be accounted: certainly too little
            break
        low, high = low / 2, low
        if high < 1e-3:
            return high
    while high / low > 1 + 1e-4:
        middle = math.sqrt(low * high)
        try:
            enough = spent(middle) <= epsilon_target
        except ValueError:
            enough = False
        low, high = (low, middle) if enough else (middle, high)
    return high
