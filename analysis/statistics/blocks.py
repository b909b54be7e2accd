"""What follows from a mean over seeds: its p-value, and its interval where several comparisons are made at once.

Targets of one seed share members and batches, and those of one model their initialization too. So the values of one
seed are averaged first, and seeds alone count as repetitions: two targets that are nearly the same run, or are the same
run, add nothing to their number.
"""

from __future__ import annotations

from scipy.special import stdtr

from analysis.statistics.estimates import CONFIDENCE, Estimate

ALPHA = 1 - CONFIDENCE
"""The probability with which a verdict may be wrong."""


def p_value(value: Estimate | None, margin: float = 0.0) -> float | None:
    """Two-sided p-value of a mean within ±`margin` over seeds (Student's t): below 0.05 where the interval lies beyond it.

    None where the seeds do not say how much is luck.
    """
    if value is None or not value.error:
        return None
    return 2 * float(stdtr(value.df, -max(0.0, abs(value.mean) - margin) / value.error))


def adjusted(value: Estimate, comparisons: int) -> Estimate:
    """The interval over seeds, widened so that those of all comparisons hold together with 95 % (Bonferroni)."""
    return value.at(1 - ALPHA / comparisons)
