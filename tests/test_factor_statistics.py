"""The tests of a factor study equal direct calls of SciPy, also with ties, and say why if there is no result."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.tests import (
    TestResult,
    cliffs_delta,
    holm,
    kruskal_wallis,
    mann_whitney,
    shapiro_wilk,
    spearman,
)

# A fixed frame: rounded, so that there are ties within the groups and between them.
FIRST = [0.91, 0.87, 0.91, 0.93, 0.88, 0.90, 0.91, 0.86, 0.89, 0.93]
SECOND = [0.87, 0.85, 0.88, 0.91, 0.84, 0.85, 0.87, 0.86, 0.89]
THIRD = [0.80, 0.86, 0.83, 0.86, 0.91]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Input that SciPy only warns about must not reach it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def has_no_result(test: TestResult, words: str) -> None:
    assert (test.statistic, test.p_value, test.effect) == (None, None, None)
    assert words in test.note


def test_shapiro_wilk_is_scipys() -> None:
    found = shapiro_wilk([*FIRST, None, float("nan"), math.inf])
    expected = stats.shapiro(FIRST)
    assert (found.statistic, found.p_value, found.n) == (expected.statistic, expected.pvalue, 10)


def test_mann_whitney_is_scipys_with_ties_and_without() -> None:
    for first, second in ((FIRST, SECOND), ([0.1, 0.4, 0.35], [0.8, 0.2, 0.9, 0.95])):
        found = mann_whitney(first, second)
        expected = stats.mannwhitneyu(first, second, alternative="two-sided")
        assert (found.statistic, found.p_value) == (expected.statistic, expected.pvalue)
        assert found.n == len(first) + len(second)
        # U counts wins, and ties as one half: Cliff's delta is the same on a scale from −1 to 1.
        assert found.effect == pytest.approx(2 * expected.statistic / (len(first) * len(second)) - 1)


def test_kruskal_wallis_is_scipys_and_epsilon_squared_is_its_formula() -> None:
    found = kruskal_wallis([FIRST, SECOND, THIRD])
    expected = stats.kruskal(FIRST, SECOND, THIRD)
    assert (found.statistic, found.p_value, found.n) == (expected.statistic, expected.pvalue, 24)
    assert found.effect == pytest.approx(expected.statistic / ((24**2 - 1) / (24 + 1)))
    apart = kruskal_wallis([[1, 2, 3], [11, 12, 13], [21, 22, 23]])
    assert apart.effect is not None
    assert 0.8 < apart.effect <= 1


def test_cliffs_delta_is_the_count_of_wins_and_its_interval_is_cliffs() -> None:
    a, b = np.array(FIRST), np.array(SECOND)
    m, n = len(a), len(b)
    wins = [[int(x > y) - int(x < y) for y in SECOND] for x in FIRST]
    delta = sum(map(sum, wins)) / (m * n)
    # Cliff 1993, equation for the unbiased variance; Feng & Cliff 2004 for the interval, term by term.
    rows = sum((sum(row) / n - delta) ** 2 for row in wins)
    columns = sum((sum(row[j] for row in wins) / m - delta) ** 2 for j in range(n))
    cells = sum((cell - delta) ** 2 for row in wins for cell in row)
    s2 = (n * n * rows + m * m * columns - cells) / (m * n * (m - 1) * (n - 1))
    z = stats.norm.ppf(0.975)
    half = z * math.sqrt(s2) * math.sqrt((1 - delta**2) ** 2 + z * z * s2)
    ends = [(delta - delta**3 + side) / (1 - delta**2 + z * z * s2) for side in (-half, half)]
    assert cliffs_delta(a, b) == pytest.approx((delta, *ends))


def test_the_interval_of_cliffs_delta_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    truth = 2 * stats.norm.cdf(0.5 / math.sqrt(2)) - 1  # of normals half a deviation apart
    held = 0
    for _ in range(400):
        _, low, high = cliffs_delta(rng.normal(0.5, 1, 20), rng.normal(0, 1, 25))
        held += low <= truth <= high
    assert 0.91 < held / 400 < 0.985


def test_groups_that_do_not_overlap_have_a_delta_of_one_and_an_interval() -> None:
    few = cliffs_delta(np.array([3.0, 4, 5]), np.array([1.0, 2]))
    many = cliffs_delta(np.arange(100, 160.0), np.arange(60.0))
    assert few[0] == many[0] == 1
    assert few[1] < 0.5 < 0.85 < many[1] < 1
    down = cliffs_delta(np.array([1.0, 2]), np.array([3.0, 4, 5]))
    assert down == (-1, -1, -few[1])


def test_spearman_is_scipys_and_exact_for_few() -> None:
    x, y = [*FIRST, *SECOND], [round(value + 0.05 * math.sin(9 * value), 2) for value in [*SECOND, *FIRST]]
    found = spearman(x, y)
    expected = stats.spearmanr(x, y)
    assert (found.statistic, found.p_value, found.n) == (expected.statistic, expected.pvalue, 19)
    assert found.effect_low is not None
    assert found.effect_high is not None
    assert found.effect_low < expected.statistic < found.effect_high
    few = spearman([1, 2, 3, 4, 5, None], [2, 1, 3, 5, 4, 9])
    by_hand = stats.permutation_test(
        ([2, 1, 3, 5, 4],),
        lambda order: stats.spearmanr([1, 2, 3, 4, 5], order).statistic,
        permutation_type="pairings",
        n_resamples=np.inf,
    )
    assert few.n == 5
    assert few.p_value == pytest.approx(by_hand.pvalue)
    assert spearman([1, 2, 3], [1, 2, 3]).p_value == pytest.approx(2 / 6)


def test_what_cannot_be_tested_says_why_and_is_never_nan() -> None:
    has_no_result(shapiro_wilk([0.5, 0.6]), "fewer than 3 values")
    has_no_result(shapiro_wilk([]), "fewer than 3 values")
    has_no_result(shapiro_wilk([0.5] * 6), "all values are the same")
    has_no_result(mann_whitney([0.5], SECOND), "fewer than 2 values")
    has_no_result(mann_whitney([0.5, 0.5], [0.5, 0.5]), "all values are the same")
    has_no_result(mann_whitney([float("nan")] * 4, SECOND), "fewer than 2 values")
    has_no_result(kruskal_wallis([FIRST]), "one level only")
    has_no_result(kruskal_wallis([]), "one level only")
    has_no_result(kruskal_wallis([FIRST, [0.5]]), "fewer than 2 values")
    has_no_result(kruskal_wallis([[1, 1], [1, 1], [1, 1, 1]]), "all values are the same")
    has_no_result(spearman([1, 2], [2, 1]), "fewer than 3 pairs")
    has_no_result(spearman([1, 2, 3, 4], [2, 2, 2, 2]), "all values are the same")
    has_no_result(spearman([], []), "fewer than 3 pairs")


def test_one_constant_group_beside_one_that_is_not_is_tested() -> None:
    constant = [0.5, 0.5, 0.5]
    expected = stats.mannwhitneyu(constant, SECOND, alternative="two-sided")
    assert mann_whitney(constant, SECOND).p_value == expected.pvalue
    assert mann_whitney(constant, SECOND).effect == -1


def test_holm_is_the_step_down_of_a_worked_example() -> None:
    # Holm 1979: sorted p times (m, m − 1, …), never falling, at most one. None is not part of the family.
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([None]) == [None]
    assert holm([]) == []


@pytest.mark.slow
def test_importing_the_module_does_not_import_scipy_stats() -> None:
    code = "import sys, analysis.statistics.tests, analysis.report.write; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
