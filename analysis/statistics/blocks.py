"""The p-value of a mean over seeds, and its interval if several comparisons are made at once.

Targets of one seed share members and batches, and targets of one model also share their initialization. The values of one
seed are therefore averaged first, and only seeds count as repetitions. Two targets that are the same run, or nearly the
same, do not count twice.
"""

from __future__ import annotations

from scipy.special import stdtr

from analysis.statistics.estimates import CONFIDENCE, Estimate

ALPHA = 1 - CONFIDENCE
"""The probability with which a verdict may be wrong."""


def p_value(value: Estimate | None, margin: float = 0.0) -> float | None:
    """Two-sided p-value of the hypothesis that the mean over seeds lies within ±`margin` (Student's t).

    It is below 0.05 if the interval lies beyond the margin. None if the standard error is unknown or zero.
    """
    if value is None or not value.error:
        return None
    return 2 * float(stdtr(value.df, -max(0.0, abs(value.mean) - margin) / value.error))


def adjusted(value: Estimate, comparisons: int) -> Estimate:
    """The interval over seeds, widened so that the intervals of all comparisons hold together with 95 % (Bonferroni)."""
    return value.at(1 - ALPHA / comparisons)
