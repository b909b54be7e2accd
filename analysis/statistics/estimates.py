"""Means with 95 % intervals, when two of them can be told apart, and the rank tests of a factor study.

A test that cannot be made says why in its `note` and has no number: a NaN never stands as a result.
SciPy's `stats` takes a second to import, so only the functions that need it import it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtr, stdtrit  # these alone: importing scipy.stats takes a second

CONFIDENCE = 0.95

Values = npt.NDArray[np.float64]

Bounds = tuple[float, float]
"""The smallest and the largest value that a quantity can have."""

UNBOUNDED: Bounds = (-math.inf, math.inf)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval; `low` and `high` are None where there is none: one seed, or seeds that are all alike.

    `n` is the number of seeds. `over` says what the interval covers: "seeds" is the t-interval over the
    seeds' values, so it holds what changes from one training run to another; "examples" is the interval
    that the attack gave for its one run, so it holds the choice of examples only; "both" holds both
    (`seeds_and_examples`). `error` is the standard error and `df` its degrees of freedom, from which `at`
    makes intervals of other confidence. No interval leaves `bounds`. `few_examples` says that there is none because
    the values are of too few examples.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    over: Literal["seeds", "examples", "both"] = "seeds"
    error: float | None = None
    df: float = math.inf
    bounds: Bounds = UNBOUNDED
    few_examples: bool = False

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval, or None."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def is_cut(self) -> bool:
        """Whether the interval ends at a bound of the quantity, so that the mean is not its middle."""
        return self.low == self.bounds[0] or self.high == self.bounds[1]

    def at(self, confidence: float) -> Estimate:
        """The same estimate with an interval of another confidence; without a standard error, as it is.

        Seeds that do not differ at all leave none: with few of them, and accuracies that are counts, that is chance.
        """
        if self.error is None:
            return self
        if self.error == 0:
            return replace(self, low=None, high=None)
        half = quantile((1 + confidence) / 2, self.df) * self.error
        low, high = max(self.bounds[0], self.mean - half), min(self.bounds[1], self.mean + half)
        return replace(self, low=low, high=high)


_ROUNDING = 1e-14
"""Values of about one that differ by less than this are alike: 0.43 − 0.41 and 0.93 − 0.91 are not the same number."""


def quantile(probability: float, df: float = math.inf) -> float:
    """Of Student's t with `df` degrees of freedom, by default of the normal distribution."""
    return float(ndtri(probability) if math.isinf(df) else stdtrit(df, probability))


def estimate(values: Iterable[float | None], bounds: Bounds = UNBOUNDED) -> Estimate | None:
    """Mean of `values` with the two-sided Student t-interval, mean ± t(0.975, n − 1)·s/√n, cut off at `bounds`.

    Nulls and NaNs are left out. One value has no interval; no value gives None. The values are taken as
    independent and near normal, which for three seeds is an assumption, not something they can show.
    """
    sample = known(values)
    if not len(sample):
        return None
    mean = float(sample.mean())
    if len(sample) == 1:
        return Estimate(mean=mean, low=None, high=None, n=1, bounds=bounds)
    error = float(sample.std(ddof=1)) / math.sqrt(len(sample))
    if error <= _ROUNDING * max(1.0, float(np.abs(sample).max())):
        error = 0.0
    one = Estimate(mean=mean, low=None, high=None, n=len(sample), error=error, df=len(sample) - 1, bounds=bounds)
    return one.at(CONFIDENCE)


def _two_way(values: Values, covariance: Values) -> tuple[float, float]:
    """Variance of the mean of `values` (n,) over seeds and examples, and its degrees of freedom by Hillis."""
    n = len(values)
    own = float(np.diag(covariance).mean())
    if n == 1:
        return own, math.inf
    shared = max(0.0, float(covariance.sum() - np.trace(covariance)) / (n * (n - 1)))
    between = float(values.var(ddof=1))
    variance = max(between, own - shared) / n + shared
    if between == 0:
        return variance, math.inf
    return variance, variance**2 / ((between / n) ** 2 / (n - 1))


def seeds_and_examples(values: Iterable[float], covariance: npt.ArrayLike, bounds: Bounds = UNBOUNDED) -> Estimate:
    """Mean of one AUC (or difference of AUCs) per seed, with an interval over seeds and examples together.

    `covariance` (n, n) is what the choice of examples alone gives: the variance of each seed's value, and how
    those of two seeds go together because they share examples. The model is that of readers and cases in
    radiology (Obuchowski & Rockette 1995), seeds being the readers: the mean's variance is the mean square
    between seeds over n, plus the mean covariance of two seeds where it is above zero.

    Deviations, both for a handful of seeds: their mean square is not taken below what examples alone give, and
    the degrees of freedom (Hillis 2007) not above 2(n − 1). In simulations the interval at 95 % then errs in at
    most 6 % of cases with three seeds or more, whether seeds or examples vary more. One seed: examples alone.
    """
    sample, matrix = np.asarray(values, dtype=float), np.asarray(covariance, dtype=float)
    variance, df = _two_way(sample, matrix)
    n = len(sample)
    one = Estimate(
        mean=float(sample.mean()),
        low=None,
        high=None,
        n=n,
        over="examples" if n == 1 else "both",
        error=math.sqrt(variance),
        df=df if n == 1 else min(df, 2 * (n - 1)),
        bounds=bounds,
    )
    return one.at(CONFIDENCE)


def p_above(values: Iterable[float], covariance: npt.ArrayLike, reference: float) -> float:
    """One-sided p-value that the values of all seeds are `reference`, against a mean above it.

    The variance is that of `seeds_and_examples`. Under the hypothesis the seeds differ by their examples alone,
    which are many, so the degrees of freedom are Hillis's, uncut.
    """
    sample = np.asarray(values, dtype=float)
    variance, df = _two_way(sample, np.asarray(covariance, dtype=float))
    distance = float(sample.mean()) - reference
    if variance == 0:
        return 0.0 if distance > 0 else 1.0
    t = -distance / math.sqrt(variance)
    return float(ndtr(t) if math.isinf(df) else stdtr(df, t))


def auc_influence(is_member: npt.NDArray[np.bool_], score: Values) -> Values:
    """What each example (n,) adds to the AUC's error; the sum of their squares is DeLong's variance nearly.

    Of a member it is (the share of non-members below it − AUC) over the number of members, of a non-member
    (the share of members above it − AUC) over theirs; ties count half. Products of two targets' influences,
    summed over the examples that both have, are the covariance of their AUCs (DeLong, DeLong & Clarke-Pearson
    1988).
    """
    members, others = np.sort(score[is_member]), np.sort(score[~is_member])

    def share_below(sorted_scores: Values, values: Values) -> Values:
        at_most = np.searchsorted(sorted_scores, values, "left") + np.searchsorted(sorted_scores, values, "right")
        share: Values = at_most / (2 * len(sorted_scores))
        return share

    influence = np.empty(len(score))
    influence[is_member] = share_below(others, score[is_member])
    influence[~is_member] = 1 - share_below(members, score[~is_member])
    influence -= influence[is_member].mean()
    influence[is_member] /= len(members)
    influence[~is_member] /= len(others)
    return influence


def sign(value: Estimate | None, reference: float = 0.0) -> int | None:
    """1 or −1 where the interval lies above or below `reference`, 0 where it holds it, None without one.

    An interval over examples counts: it says what holds for the one target that was trained.
    """
    if value is None or value.low is None or value.high is None:
        return None
    if value.low > reference:
        return 1
    return -1 if value.high < reference else 0


@dataclass(frozen=True, kw_only=True)
class TestResult:
    """One test: its statistic and two-sided p-value over `n` values, or `note`, which says why there is none.

    `effect` is the effect size that belongs to the test, where it has one, from `effect_low` to
    `effect_high` with 95 % confidence.
    """

    __test__ = False  # the name is a word of statistics, not a case for pytest

    statistic: float | None
    p_value: float | None
    n: int
    effect: float | None = None
    effect_low: float | None = None
    effect_high: float | None = None
    note: str = ""


_ALL_EQUAL = "all values are the same"


def known(values: Iterable[float | None]) -> Values:
    """The finite ones of `values`."""
    array: Values = np.array([np.nan if value is None else value for value in values], dtype=float)
    finite: Values = array[np.isfinite(array)]
    return finite


def _no_test(n: int, note: str) -> TestResult:
    return TestResult(statistic=None, p_value=None, n=n, note=note)


def shapiro_wilk(values: Iterable[float | None]) -> TestResult:
    """Whether the values are normally distributed: W of Shapiro & Wilk 1965; a small p says they are not.

    Three values that differ are the least it can be made of.
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
    """Why values of these groups cannot be compared; empty where they can."""
    if len(groups) < 2:
        return "one level only"
    if min(map(len, groups)) < 2:
        return "a level with fewer than 2 values"
    return _ALL_EQUAL if np.ptp(np.concatenate(list(groups))) == 0 else ""


def mann_whitney(first: Iterable[float | None], second: Iterable[float | None]) -> TestResult:
    """U of `first` over `second` (Mann & Whitney 1947), two-sided; the effect is Cliff's delta.

    SciPy's choice of method: exact for eight values or fewer without ties, else the normal approximation
    with the correction for ties and continuity.
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
    """P(first > second) − P(first < second), in [−1, 1], and its 95 % interval. Takes two values of each at least.

    The interval is the asymmetric one of Feng & Cliff 2004, from Cliff's (1993) unbiased estimate of the
    variance and the normal quantile. Where the groups do not overlap, that variance is zero, and the end
    that is not ±1 is (m − z²)/(m + z²), with m the size of the smaller group. Values are taken as
    independent.
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
    """Rank correlation of the pairs in which both are known (Spearman 1904); the effect is the correlation.

    The p-value is exact, over all orders, up to eight pairs, where the t distribution would give p = 0 to
    three pairs in a row; above, it is that of SciPy, from the t distribution. The interval is Fisher's with
    the standard error of Bonett & Wright 2000, √((1 + r²/2)/(n − 3)), from ten pairs on.
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
    """The share of all orders of the second column that correlate with the first at least as much as `r`."""
    first, second = ((column - column.mean()) / column.std() for column in ranks.T)
    orders = np.array(list(permutations(second)))
    return float((np.abs(orders @ first / len(first)) >= abs(r) - 1e-9).mean())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values adjusted for the family of all that are known (Holm 1979); None stays None."""
    order = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (value, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * value))
        adjusted[index] = largest
    return adjusted
