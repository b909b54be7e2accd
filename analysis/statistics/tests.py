"""Rank tests and their effect sizes, and the adjustment of p-values for several tests.

A test that cannot be computed says why in its `note` and has no number, so a NaN never appears as a result.
Importing `scipy.stats` takes a second, so only the functions that need it import it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy.special import ndtri

from analysis.statistics.estimates import CONFIDENCE, Values, known


@dataclass(frozen=True, kw_only=True)
class TestResult:
    """One test over `n` values: its statistic and two-sided p-value, or a `note` that says why there is none.

    `effect` is the test's effect size, if it has one, with its 95 % interval from `effect_low` to `effect_high`.
    """

    __test__ = False  # pytest must not collect this class

    statistic: float | None
    p_value: float | None
    n: int
    effect: float | None = None
    effect_low: float | None = None
    effect_high: float | None = None
    note: str = ""


_ALL_EQUAL = "all values are the same"


def _no_test(n: int, note: str) -> TestResult:
    return TestResult(statistic=None, p_value=None, n=n, note=note)


def shapiro_wilk(values: Iterable[float | None]) -> TestResult:
    """W of Shapiro & Wilk 1965. A small p says that the values are not normally distributed.

    The test needs at least three values that are not all equal.
    """
    sample = known(values)
    if len(sample) < 3:
        return _no_test(len(sample), "fewer than 3 values")
    if np.ptp(sample) == 0:
        return _no_test(len(sample), _ALL_EQUAL)
    from scipy import stats

    found = stats.shapiro(sample)
    return TestResult(statistic=float(found.statistic), p_value=float(found.pvalue), n=len(sample))


def _why_not(groups: Sequence[Values]) -> str:
    """Why values of these groups cannot be compared; empty if they can."""
    if len(groups) < 2:
        return "one level only"
    if min(map(len, groups)) < 2:
        return "a level with fewer than 2 values"
    return _ALL_EQUAL if np.ptp(np.concatenate(list(groups))) == 0 else ""


def mann_whitney(first: Iterable[float | None], second: Iterable[float | None]) -> TestResult:
    """U of `first` over `second` (Mann & Whitney 1947), two-sided; the effect is Cliff's delta.

    SciPy chooses the method: exact for eight values or fewer without ties, else the normal approximation with corrections for
    ties and continuity.
    """
    one, other = known(first), known(second)
    why = _why_not([one, other])
    if why:
        return _no_test(len(one) + len(other), why)
    from scipy import stats

    found = stats.mannwhitneyu(one, other, alternative="two-sided")
    delta, low, high = cliffs_delta(one, other)
    return TestResult(
        statistic=float(found.statistic),
        p_value=float(found.pvalue),
        n=len(one) + len(other),
        effect=delta,
        effect_low=low,
        effect_high=high,
    )


def cliffs_delta(first: Values, second: Values) -> tuple[float, float, float]:
    """P(first > second) − P(first < second), in [−1, 1], and its 95 % interval. Each group needs at least two values.

    Source: Feng & Cliff 2004. The interval is their asymmetric one, from Cliff's (1993) unbiased estimate of the variance and
    the normal quantile. If the groups do not overlap, the variance is zero, one end is ±1, and the other end is
    ±(m − z²)/(m + z²), with m the size of the smaller group. The values are assumed to be independent.
    """
    m, n = len(first), len(second)
    wins = np.sign(first[:, None] - second[None, :])
    delta = float(wins.mean())
    z = float(ndtri((1 + CONFIDENCE) / 2))
    if abs(delta) == 1:
        inner = (min(m, n) - z**2) / (min(m, n) + z**2)
        return (delta, inner, 1.0) if delta > 0 else (delta, -1.0, -inner)
    rows = float(((wins.mean(axis=1) - delta) ** 2).sum())
    columns = float(((wins.mean(axis=0) - delta) ** 2).sum())
    cells = float(((wins - delta) ** 2).sum())
    variance = (n**2 * rows + m**2 * columns - cells) / (m * n * (m - 1) * (n - 1))
    variance = max(variance, (1 - delta**2) / (m * n - 1))
    spread = z * math.sqrt(variance) * math.sqrt((1 - delta**2) ** 2 + z**2 * variance)
    scale = 1 - delta**2 + z**2 * variance
    low, high = ((delta - delta**3 + end) / scale for end in (-spread, spread))
    return delta, max(low, -1.0), min(high, 1.0)


def kruskal_wallis(groups: Sequence[Iterable[float | None]]) -> TestResult:
    """H of Kruskal & Wallis 1952, corrected for ties; the effect is ε² = H/((n² − 1)/(n + 1)), in [0, 1]."""
    samples = [known(group) for group in groups]
    n = sum(map(len, samples))
    why = _why_not(samples)
    if why:
        return _no_test(n, why)
    from scipy import stats

    found = stats.kruskal(*samples)
    effect = float(found.statistic) / ((n**2 - 1) / (n + 1))
    return TestResult(statistic=float(found.statistic), p_value=float(found.pvalue), n=n, effect=effect)


def spearman(first: Sequence[float | None], second: Sequence[float | None]) -> TestResult:
    """Rank correlation (Spearman 1904) of the pairs in which both values are known; the effect is the correlation.

    Up to eight pairs, the p-value is exact, over all orders: the t distribution would give p = 0 for three pairs in order.
    Above eight pairs, it is SciPy's, from the t distribution. With ten pairs or more, there is an interval: Fisher's, with the
    standard error of Bonett & Wright 2000, √((1 + r²/2)/(n − 3)).
    """
    pairs = np.array(
        [[np.nan if value is None else value for value in pair] for pair in zip(first, second, strict=True)],
        dtype=float,
    ).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    n = len(pairs)
    if n < 3:
        return _no_test(n, "fewer than 3 pairs")
    if (np.ptp(pairs, axis=0) == 0).any():
        return _no_test(n, _ALL_EQUAL)
    from scipy import stats

    found = stats.spearmanr(pairs[:, 0], pairs[:, 1])
    r = float(found.statistic)
    p_value = _exact_spearman(stats.rankdata(pairs, axis=0), r) if n <= _EXACT_ORDERS else float(found.pvalue)
    low = high = None
    if n >= 10 and abs(r) < 1:
        half = float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt((1 + r**2 / 2) / (n - 3))
        low, high = math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)
    return TestResult(statistic=r, p_value=p_value, n=n, effect=r, effect_low=low, effect_high=high)


_EXACT_ORDERS = 8


def _exact_spearman(ranks: Values, r: float) -> float:
    """The share of all orders of the second column whose correlation with the first is at least as large as `r`."""
    first, second = ((column - column.mean()) / column.std() for column in ranks.T)
    orders = np.array(list(permutations(second)))
    return float((np.abs(orders @ first / len(first)) >= abs(r) - 1e-9).mean())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values, adjusted for the number of known ones (Holm 1979); None stays None."""
    order = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (value, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * value))
        adjusted[index] = largest
    return adjusted
