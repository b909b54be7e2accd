"""What is measured over all targets of a cohort: intervals that cover, bounds that hold, nulls at one half."""

from __future__ import annotations

import numpy as np
import pytest
from cohorts import random_cohort
from scipy.stats import norm

from attacks.auditing import audit_runs
from attacks.cohort.attack import CohortScores, DesignScores
from attacks.cohort.exposure import exposure_rows
from attacks.cohort.summary import (
    POOLED_FPRS,
    calibrated_scores,
    lowest_fpr,
    mean_over_units,
    pooled_tprs,
    separation,
    summarize,
)
from attacks.comparisons.lira import Lira
from attacks.metrics import auc, tpr_at_fpr


def result_of(n_models: int, n_pool: int, leak: float, seed: int, pairs: bool = False) -> CohortScores:
    models = random_cohort(n_models, n_pool, np.random.default_rng(seed), leak=leak, pairs=pairs)
    return Lira().run(models, np.random.default_rng(seed))[0]


def test_means_are_over_targets_and_nulls_are_at_one_half() -> None:
    result = result_of(8, 1500, 1.5, 0)
    summary = summarize(result, 1e-5, np.random.default_rng(0))
    aucs = [auc(m, s) for m, s in zip(result.scores.is_member, result.scores.score, strict=True)]
    mean, low, high = summary.auc
    assert mean == pytest.approx(np.mean(aucs))
    assert low < mean < high
    half = 2.365 * np.std(aucs, ddof=1) / np.sqrt(8)  # Student's quantile with 7 degrees of freedom
    assert high - mean == pytest.approx(half, rel=1e-3)
    assert summary.null_auc[1] < 0.5 < summary.null_auc[2]
    assert summary.tpr_at_fpr[0.001] is None  # 750 non-members of one target cannot tell it
    assert summary.pooled_tpr[0.0001] is None
    assert summary.pooled_tpr[0.01] is not None
    columns = summary.columns()
    assert columns["auc"] == mean
    assert columns["pooled_tpr_at_fpr_0.01_low"] == summary.pooled_tpr[0.01][1]


def test_a_pair_is_one_unit_of_the_interval() -> None:
    result = result_of(8, 500, 1.0, 1, pairs=True)
    aucs = np.array([auc(m, s) for m, s in zip(result.scores.is_member, result.scores.score, strict=True)])
    means = aucs.reshape(4, 2).mean(axis=1)
    mean, _, high = summarize(result, 1e-5, np.random.default_rng(0)).auc
    assert high - mean == pytest.approx(3.182 * means.std(ddof=1) / 2, rel=1e-3)


@pytest.mark.slow
def test_the_interval_of_the_null_misses_as_often_as_it_may() -> None:
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(200):
        scores = DesignScores(
            targets=np.arange(8),
            is_member=rng.random((8, 200)) < 0.5,
            score=rng.normal(size=(8, 200)),
            n_references=np.full(8, 7),
        )
        result = CohortScores(
            name="s",
            example_id=np.arange(200),
            label=np.zeros(200, dtype=np.int64),
            unit=np.arange(8),
            scores=scores,
            null=scores,
            audits=(scores, scores),
        )
        _, low, high = summarize(result, 1e-5, rng).null_auc
        missed += not low <= 0.5 <= high
    assert 2 <= missed <= 22  # 10 are expected


@pytest.mark.slow
def test_a_pooled_rate_is_that_of_all_scores_together_and_its_interval_covers_the_truth() -> None:
    """Members are shifted by 2; the true TPR at an FPR of 1 % is known, and examples and targets have effects of their own."""
    truth = norm.sf(norm.isf(0.01) - 2)
    covered = 0
    for repetition in range(40):
        rng = np.random.default_rng(repetition)
        member = rng.random((8, 1000)) < 0.5
        score = rng.normal(size=member.shape) + 2 * member
        found = pooled_tprs(member, score, np.arange(8), rng)[0.01]
        assert found is not None
        estimate, low, high = found
        assert estimate == tpr_at_fpr(member.ravel(), score.ravel(), 0.01)
        covered += low <= truth <= high
    assert covered >= 34


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_an_interval_from_four_expected_false_positives_covers_the_truth_as_well(spread: float) -> None:
    """Pairs of seeds; each example has a leak of its own, half-normal."""
    leaks = spread * norm.ppf((np.arange(2000) + 2000.5) / 4000)
    truth = norm.sf(norm.isf(0.001) - leaks).mean()
    covered, estimates = 0, []
    for repetition in range(60):
        rng = np.random.default_rng(repetition)
        member = rng.random((16, 500)) < 0.5
        member[1::2] = ~member[::2]
        score = rng.normal(size=member.shape) + member * rng.choice(leaks, 500)
        found = pooled_tprs(member, score, np.arange(16) // 2 * 2, rng)[0.001]
        assert found is not None
        estimates.append(found[0])
        covered += found[1] <= truth <= found[2]
    assert covered >= 54
    assert np.mean(estimates) == pytest.approx(truth, rel=0.1)


def test_calibration_evens_out_the_examples_rates_of_false_positives() -> None:
    rng = np.random.default_rng(0)
    member = rng.random((16, 3000)) < 0.5
    spread = np.where(
        np.arange(3000) < 300, 10.0, 1.0
    )  # a tenth of the examples has scores that vary ten times as much
    score = rng.normal(size=member.shape) * spread + np.arange(3000) % 7
    calibrated = calibrated_scores(member, score)

    def share_of_wide(values: np.ndarray) -> float:
        threshold = np.quantile(values[~member], 0.99)
        false_positives = (values > threshold) & ~member
        return float(false_positives[:, :300].sum() / false_positives.sum())

    assert share_of_wide(score) > 0.9
    assert share_of_wide(calibrated) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("n_models", "pairs"), [(8, False), (16, False), (16, True)])
def test_a_calibrated_rate_is_the_nominal_one_if_nothing_leaks(n_models: int, pairs: bool) -> None:
    """It would be up to seven times that if targets were standardized by those that have them as references."""
    rates = []
    for seed in range(30):
        summary = summarize(result_of(n_models, 500, 0.0, seed, pairs), 1e-5, np.random.default_rng(seed))
        assert summary.calibrated_tpr[0.01] is not None
        rates.append(summary.calibrated_tpr[0.01][0])
    assert 0.008 < np.mean(rates) < 0.0115


def test_a_half_of_one_target_is_not_calibrated() -> None:
    summary = summarize(result_of(4, 600, 1.0, 0, pairs=True), 1e-5, np.random.default_rng(0))
    assert set(summary.calibrated_tpr.values()) == {None}
    assert summary.pooled_tpr[0.01] is not None


@pytest.mark.slow
def test_the_interval_of_an_attack_s_null_misses_as_often_as_it_may() -> None:
    """The nulls of targets that share a toss would be correlated, and the interval would miss twice as often."""
    missed = 0
    for seed in range(150):
        result = result_of(8, 200, 0.0, seed)
        null = [auc(m, s) for m, s in zip(result.null.is_member, result.null.score, strict=True)]
        _, low, high = mean_over_units(null, result.unit)
        missed += not low <= 0.5 <= high
    assert missed <= 14  # 7.5 are expected


def test_the_lowest_rate_that_can_be_told_needs_four_expected_false_positives() -> None:
    for n, expected in ((399, None), (400, 0.01), (3_999, 0.01), (4_000, 0.001), (40_000, POOLED_FPRS[0])):
        assert lowest_fpr(np.zeros((1, n), dtype=bool)) == expected


def test_exposure_finds_the_examples_that_leak_and_the_top_share_counts_them() -> None:
    rng = np.random.default_rng(2)
    member = rng.random((16, 2000)) < 0.5
    score = rng.normal(size=member.shape)
    score[:, :20] += 8 * member[:, :20]
    one = DesignScores(targets=np.arange(16), is_member=member, score=score, n_references=np.full(16, 15))
    result = CohortScores(
        name="s",
        example_id=np.arange(2000) + 7,
        label=np.arange(2000) % 3,
        unit=np.arange(16),
        scores=one,
        null=one,
        audits=(one, one),
    )
    assert set(np.argsort(-separation(member, score))[:20]) == set(range(20))
    rows = exposure_rows(result)
    assert [row["example_id"] for row in rows[:2]] == [7, 8]
    for row in rows[:20]:
        assert row["found_at_fpr_0.01"] > 0.9
        assert row["found_at_fpr_0.01_low"] > 0.4
        assert row["found_at_fpr_0.01_high"] >= row["found_at_fpr_0.01"]
    share = summarize(result, 1e-5, rng).top_share
    assert share is not None
    assert share > 0.85  # some 160 of 176 true positives at an FPR of 0.1 %
    result.scores.score[:, :20] = rng.normal(size=(16, 20))
    unleaked = summarize(result, 1e-5, rng).top_share
    assert unleaked is not None
    assert unleaked < 0.05


def gaussian_runs(epsilon_scale: float, n_runs: int, n: int, rng: np.random.Generator) -> list:
    """Each canary's coin is released with Gaussian noise of this scale: the Gaussian mechanism of sensitivity 1."""
    runs = []
    for _ in range(n_runs):
        member = rng.random(n) < 0.5
        runs.append((member, member + epsilon_scale * rng.normal(size=n)))
    return runs


def gaussian_epsilon(noise: float, delta: float) -> float:
    """Balle & Wang 2018, the exact ε of the Gaussian mechanism."""
    low, high = 0.0, 100.0
    for _ in range(80):
        middle = (low + high) / 2
        spent = norm.cdf(1 / (2 * noise) - middle * noise) - np.exp(middle) * norm.cdf(
            -1 / (2 * noise) - middle * noise
        )
        low, high = (middle, high) if spent > delta else (low, middle)
    return high


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
def test_the_bound_over_runs_holds_for_the_gaussian_mechanism(noise: float) -> None:
    delta, exceeded, bounds = 1e-5, 0, []
    for repetition in range(100):
        rng = np.random.default_rng([repetition, int(10 * noise)])
        runs = gaussian_runs(noise, 8, 200, rng)
        audit = audit_runs(runs, n_guesses_per_side=20, delta=delta, confidence=0.95, rng=rng)
        assert audit.n_canaries == 1600
        assert audit.n_guesses == 320
        bounds.append(audit.epsilon_lower_bound)
        exceeded += audit.epsilon_lower_bound > gaussian_epsilon(noise, delta)
    assert exceeded <= 11
    if noise == 0.5:
        assert np.mean(bounds) > 2


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_the_bound_over_runs_holds_and_is_tight_for_randomized_response(epsilon: float) -> None:
    exceeded, bounds = 0, []
    for repetition in range(200):
        rng = np.random.default_rng([repetition, int(10 * epsilon)])
        runs = []
        for _ in range(4):
            member = rng.random(100) < 0.5
            answer = np.where(rng.random(100) < np.exp(epsilon) / (1 + np.exp(epsilon)), member, ~member)
            runs.append((member, answer.astype(float)))
        bound = audit_runs(runs, n_guesses_per_side=20, delta=0.0, confidence=0.95, rng=rng).epsilon_lower_bound
        exceeded += bound > epsilon
        bounds.append(bound)
    assert exceeded <= 20  # 10 are allowed on average
    if epsilon == 2:
        assert np.mean(bounds) > 1.4


def test_runs_that_guess_by_each_other_s_coins_break_the_bound() -> None:
    """Why an audit's references are never its targets: here nothing leaks, and half of the time all guesses are right."""
    broken = 0
    for repetition in range(100):
        rng = np.random.default_rng(repetition)
        first = np.repeat(rng.random() < 0.5, 20)
        second = np.repeat(rng.random() < 0.5, 20)
        guessed_in = [(first, second.astype(float)), (second, first.astype(float))]
        n_right = sum(int((member == (score > 0.5)).sum()) for member, score in guessed_in)
        broken += n_right == 40
    assert 30 <= broken <= 70


@pytest.mark.slow
def test_the_audit_of_a_cohort_finds_a_leak_and_no_leak_where_there_is_none() -> None:
    leaky = summarize(result_of(8, 1000, 4.0, 3), 1e-5, np.random.default_rng(0)).audit
    assert leaky.epsilon_lower_bound > 0.5
    bounds = [
        summarize(result_of(8, 400, 0.0, seed), 1e-5, np.random.default_rng(0)).audit.epsilon_lower_bound
        for seed in range(20)
    ]
    assert sum(bound > 0 for bound in bounds) <= 4
