"""How many seeds would tell what these did not."""

from __future__ import annotations

import math

from analysis.statistics.estimates import CONFIDENCE, Estimate, quantile

POWER = 0.8
"""The probability that an effect as large as the one seen is found."""

MOST_SEEDS = 1000
"""A difference that takes more seeds than that is called too small to tell."""


def seeds_to_tell(change: Estimate | None, confidence: float = CONFIDENCE) -> int | None:
    """The smallest number of seeds at which an interval of `confidence` would exclude 0 with a probability of `POWER`.

    None without a standard error, or if no number up to `MOST_SEEDS` is enough: because the difference is too small, or because
    of the part of its variance that all seeds share (the choice of examples), which more seeds do not reduce.

    The true difference is taken to be the mean, and the variance between seeds to stay as seen. Both are guesses from few
    seeds, so the number is rough. It is the usual formula of a paired t-test, |d| ≥ (t(1 − α/2) + t(power))·√(s²/n + shared).
    """
    if change is None or not change.error or change.mean == 0 or change.n < 2:
        return None
    of_one_seed = max(0.0, change.error**2 - change.shared) * change.n
    for n in range(2, MOST_SEEDS + 1):
        least = quantile((1 + confidence) / 2, n - 1) + quantile(POWER, n - 1)
        if least * math.sqrt(of_one_seed / n + change.shared) <= abs(change.mean):
            return n
    return None
