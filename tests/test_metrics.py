"""Metrics of membership scores and the choice of the best attack: properties, references, statistics.

The statistical tests state how often a correct implementation would fail them. Their seeds are fixed, so
they do not flicker.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, norm
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from attacks.base import MembershipScores
from attacks.metrics import auc, example_folds, membership_metrics, one_score_per_example, roc_curve
from attacks.selection import best_of

FALSE_ALARM = 1e-4


def rng(seed=0):
    return np.random.default_rng(seed)


def sample(seed, n_members, n_non_members, shift=0.0, decimals=6):
    """Normal scores, the members' shifted, in random order; few decimals make ties."""
    generator = rng(seed)
    is_member = generator.permutation(np.arange(n_members + n_non_members) < n_members)
    score = generator.normal(size=len(is_member)) + shift * is_member
    return is_member, np.round(score, decimals)


tied_samples = st.builds(
    sample,
    seed=st.integers(0, 2**32),
    n_members=st.integers(2, 60),
    n_non_members=st.integers(2, 60),
    shift=st.sampled_from([-1.0, 0.0, 0.5, 5.0]),
    decimals=st.sampled_from([0, 1, 6]),
)


@given(tied_samples)
@settings(max_examples=100, deadline=None)
def test_auc_roc_and_advantage_equal_scikit_learns_with_ties(drawn):
    is_member, score = drawn
    metrics = membership_metrics(is_member, score, rng())
    assert metrics.auc == pytest.approx(roc_auc_score(is_member, score), abs=1e-12)
    assert metrics.auc == auc(is_member, score)
    fpr, tpr, _ = sklearn_roc_curve(is_member, score, drop_intermediate=False)
    assert np.allclose(roc_curve(is_member, score), (fpr, tpr), rtol=0, atol=1e-12)
    assert metrics.advantage == pytest.approx(np.abs(tpr - fpr).max(), abs=1e-12)


@given(tied_samples)
@settings(max_examples=50, deadline=None)
def test_increasing_transforms_change_nothing(drawn):
    is_member, score = drawn
    reference = membership_metrics(is_member, score, rng(3))
    for transformed in (np.exp(score), score * 1000 - 7, np.where(score == score.max(), np.inf, score)):
        assert membership_metrics(is_member, transformed, rng(3)) == reference


@given(tied_samples)
@settings(max_examples=50, deadline=None)
def test_swapping_sides_and_flipping_the_score_mirror_each_other(drawn):
    is_member, score = drawn
    plain = membership_metrics(is_member, score, rng())
    both = membership_metrics(~is_member, -score, rng())
    assert (both.n_members, both.n_non_members) == (plain.n_non_members, plain.n_members)
    flipped = membership_metrics(is_member, -score, rng())
    for name in ("auc", "auc_low", "auc_high", "advantage"):
        assert getattr(both, name) == pytest.approx(getattr(plain, name), abs=1e-9)
    mirrored = (1 - plain.auc, 1 - plain.auc_high, 1 - plain.auc_low, plain.advantage)
    assert (flipped.auc, flipped.auc_low, flipped.auc_high, flipped.advantage) == pytest.approx(mirrored)


@given(tied_samples)
@settings(max_examples=50, deadline=None)
def test_the_interval_holds_the_auc_and_has_a_width(drawn):
    metrics = membership_metrics(*drawn, rng())
    assert 0 <= metrics.auc_low <= metrics.auc <= metrics.auc_high <= 1
    assert metrics.auc_high - metrics.auc_low > 1e-3


def delong_variance_by_pairs(is_member, score):
    """DeLong's variance written out over all pairs: the reference for the fast form."""
    member, non_member = score[is_member][:, None], score[~is_member][None, :]
    psi = (member > non_member) + 0.5 * (member == non_member)
    return psi.mean(axis=1).var(ddof=1) / len(member) + psi.mean(axis=0).var(ddof=1) / non_member.shape[1]


@pytest.mark.parametrize("decimals", [0, 6])
def test_the_interval_is_delongs_on_the_logit_scale(decimals):
    is_member, score = sample(5, 40, 70, shift=0.7, decimals=decimals)
    metrics = membership_metrics(is_member, score, rng())
    a = metrics.auc
    half_width = 1.959964 * np.sqrt(delong_variance_by_pairs(is_member, score)) / (a * (1 - a))
    expected = [1 / (1 + (1 - a) / a * np.exp(sign * half_width)) for sign in (1, -1)]
    assert [metrics.auc_low, metrics.auc_high] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shift", "n_members", "n_non_members", "decimals"),
    [(0, 100, 100, 6), (0, 100, 30, 0), (1, 100, 100, 6), (1, 50, 200, 6), (2, 50, 50, 6)],
)
def test_the_interval_covers_the_true_auc_95_times_in_100(shift, n_members, n_non_members, decimals):
    """Null (with and without ties) and binormal data, whose true AUC is Φ(shift / √2)."""
    repeats, truth = 600, norm.cdf(shift / np.sqrt(2))
    covered = 0
    for repeat in range(repeats):
        metrics = membership_metrics(*sample([9, repeat], n_members, n_non_members, shift, decimals), rng())
        covered += metrics.auc_low <= truth <= metrics.auc_high
    low, high = binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], repeats, 0.95)
    assert low <= covered <= high


@pytest.mark.slow
def test_shuffled_membership_gives_an_interval_that_holds_one_half():
    """Scores that tell all, membership shuffled: at least 95 % less chance (false alarm 1e-4)."""
    is_member, score = sample(1, 150, 150, shift=3)
    assert membership_metrics(is_member, score, rng()).auc_low > 0.9
    repeats, generator = 400, rng(2)
    covered = 0
    for _ in range(repeats):
        metrics = membership_metrics(generator.permutation(is_member), score, generator)
        covered += metrics.auc_low <= 0.5 <= metrics.auc_high
    assert covered >= binom.ppf(FALSE_ALARM, repeats, 0.95)


@pytest.mark.parametrize(("n_members", "n_non_members"), [(10, 10), (10, 500), (2000, 2000)])
def test_perfect_separation_gives_the_exact_binomial_bound(n_members, n_non_members):
    is_member = np.arange(n_members + n_non_members) < n_members
    metrics = membership_metrics(is_member, is_member.astype(float), rng())
    smaller = min(n_members, n_non_members)
    # Clopper–Pearson for `smaller` successes out of `smaller`.
    assert binom.pmf(smaller, smaller, metrics.auc_low) == pytest.approx(0.025)
    assert (metrics.auc, metrics.auc_high) == (1, 1)
    reverse = membership_metrics(is_member, -is_member.astype(float), rng())
    assert (reverse.auc, reverse.auc_low) == (0, 0)
    assert reverse.auc_high == pytest.approx(1 - metrics.auc_low)


def test_the_bound_at_an_auc_of_one_is_not_too_tight():
    """Binormal with true AUC 0.9988 and 20 a side, where the estimate is mostly 1: covered at least 95 %."""
    repeats, truth = 600, norm.cdf(4.3 / np.sqrt(2))
    drawn = [membership_metrics(*sample([4, i], 20, 20, shift=4.3), rng()) for i in range(repeats)]
    assert np.mean([metrics.auc == 1 for metrics in drawn]) > 0.5
    covered = sum(metrics.auc_low <= truth <= metrics.auc_high for metrics in drawn)
    assert covered >= binom.ppf(FALSE_ALARM, repeats, 0.95)


@pytest.mark.parametrize("value", [0.0, np.inf, -np.inf])
def test_constant_scores_know_nothing_and_say_how_surely(value):
    is_member = np.arange(30) < 12
    metrics = membership_metrics(is_member, np.full(30, value), rng())
    assert (metrics.auc, metrics.advantage, metrics.balanced_accuracy) == (0.5, 0, 0.5)
    # Twelve ties in twelve disjoint pairs: ties have a probability of at least 0.025^(1/12) = 0.735.
    assert metrics.auc_low == pytest.approx(0.735 / 2, abs=1e-3)
    assert metrics.auc_high == pytest.approx(1 - 0.735 / 2, abs=1e-3)


@pytest.mark.parametrize(
    ("n_non_members", "given_at"),
    [
        (99, []),
        (100, [0.1]),
        (999, [0.1]),
        (1000, [0.01, 0.1]),
        (9999, [0.01, 0.1]),
        (10000, [0.001, 0.01, 0.1]),
    ],
)
def test_a_tpr_is_given_only_with_ten_expected_false_positives(n_non_members, given_at):
    metrics = membership_metrics(*sample(0, 5, n_non_members), rng())
    assert list(metrics.tpr_at_fpr) == [0.001, 0.01, 0.1]
    assert [fpr for fpr, tpr in metrics.tpr_at_fpr.items() if tpr is not None] == given_at


@pytest.mark.parametrize("decimals", [0, 1, 6])
@pytest.mark.parametrize(("n_members", "n_non_members"), [(30, 100), (50, 105)])
def test_tpr_at_fpr_is_the_mean_over_random_orders_of_the_tied(decimals, n_members, n_non_members):
    """Against the definition: break ties at random, count members above the r-th non-member, r = α(n + 1)."""
    is_member, score = sample(8, n_members, n_non_members, shift=1, decimals=decimals)
    generator, found = rng(1), []
    rank = 0.1 * (n_non_members + 1)
    for _ in range(4000):
        order = np.lexsort((generator.random(len(score)), score))[::-1]
        members_before = is_member[order].cumsum()[~is_member[order]]
        low = int(rank)
        found.append(np.interp(rank, [low, low + 1], members_before[low - 1 : low + 1]) / n_members)
    error = np.std(found) / np.sqrt(len(found))
    tpr = membership_metrics(is_member, score, rng()).tpr_at_fpr[0.1]
    assert tpr == pytest.approx(np.mean(found), abs=4 * error + 1e-12)


def test_a_tie_at_the_threshold_is_shared_out_and_never_costs_the_tpr():
    """The 30 highest scores are alike, 20 of them non-members of 100; the tenth of these is in the tie's middle."""
    is_member = np.r_[np.ones(10, bool), np.zeros(20, bool), np.ones(10, bool), np.zeros(80, bool)]
    score = np.r_[np.full(30, 2.0), np.full(90, 1.0)]
    # Rank 10.1 of 20 non-members, with 10 of 20 members: 10 · 10.1 / 21 of these above it.
    assert membership_metrics(is_member, score, rng()).tpr_at_fpr[0.1] == pytest.approx(10 * 10.1 / 21 / 20)


@pytest.mark.slow
@pytest.mark.parametrize("decimals", [0, 6])
def test_tpr_at_fpr_of_a_score_that_knows_nothing_is_the_fpr_on_average(decimals):
    """400 repeats, four standard errors (false alarm 6e-5). The threshold at the eleventh false positive has .11."""
    found = [membership_metrics(*sample([14, i], 100, 100, 0, decimals), rng()).tpr_at_fpr[0.1] for i in range(400)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - 0.1) < 4 * error
    assert 4 * error < 0.01, "or the usual threshold would pass too"


@pytest.mark.parametrize("constant", [0.0, np.inf])
def test_all_scores_alike_give_the_fpr_itself(constant):
    metrics = membership_metrics(np.arange(300) < 100, np.full(300, constant), rng())
    assert metrics.tpr_at_fpr[0.1] == pytest.approx(0.1)
    low, high = metrics.tpr_at_fpr_interval[0.1]
    assert 0 < low < 0.1 < high < 0.3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shift", "scale", "n_members", "n_non_members", "fpr"),
    [
        (0, 1, 100, 100, 0.1),
        (0, 1, 1000, 1000, 0.01),
        (0, 1, 3000, 1000, 0.01),
        (0, 1, 200, 3000, 0.01),
        (0.5, 1, 500, 500, 0.1),
        (2, 1, 100, 100, 0.1),
        (0, 1.5, 1000, 1000, 0.01),
        (0.2, 0.8, 200, 200, 0.1),  # the ROC is convex at the top: members are scarce among the highest scores
    ],
)
def test_the_tprs_interval_covers_the_chance_of_the_threshold_too(shift, scale, n_members, n_non_members, fpr):
    """95 of 100, of each side's misses no more than 2.5 (false alarm 1e-4); 4 where the ROC is convex."""
    repeats, missed = 400, np.zeros(2)
    truth = norm.sf((norm.isf(fpr) - shift) / scale)
    for repeat in range(repeats):
        generator = rng([15, repeat])
        is_member = np.arange(n_members + n_non_members) < n_members
        score = np.where(is_member, shift + scale * generator.normal(size=len(is_member)), 0)
        score[~is_member] = generator.normal(size=n_non_members)
        low, high = membership_metrics(is_member, score, rng()).tpr_at_fpr_interval[fpr]
        missed += (low > truth, high < truth)
    allowed = binom.ppf(1 - FALSE_ALARM, repeats, 0.025 if scale >= 1 else 0.04)
    assert (missed <= allowed).all(), missed / repeats


def test_the_tprs_interval_is_clopper_pearsons_where_non_members_are_many():
    """With 200,000 non-members the threshold is known, and 12 of 50 members are above it."""
    is_member = np.arange(200_050) < 50
    score = np.r_[np.full(12, 2.0), np.full(38, -1.0), np.linspace(0, 1, 200_000)]
    low, high = membership_metrics(is_member, score, rng()).tpr_at_fpr_interval[0.1]
    exact = beta.ppf(0.025, 12, 39), beta.ppf(0.975, 13, 38)
    assert (low, high) == pytest.approx(exact, abs=0.002)


@pytest.mark.parametrize(("n_caught", "end"), [(0, 0), (50, 1)])
def test_the_tprs_interval_has_ends_at_zero_and_one(n_caught, end):
    is_member = np.arange(150) < 50
    score = np.where(is_member, np.where(np.arange(150) < n_caught, 2.0, -1.0), np.linspace(0, 1, 150))
    metrics = membership_metrics(is_member, score, rng())
    assert metrics.tpr_at_fpr[0.1] == metrics.tpr_at_fpr_interval[0.1][end] == end
    assert 0 < metrics.tpr_at_fpr_interval[0.1][1 - end] < 1


@pytest.mark.slow
def test_what_guessing_gives_is_the_mean_advantage_of_scores_that_know_nothing():
    """180 a side: about .09. Ties respected: with five distinct scores it is less."""
    for decimals, n_members, n_non_members in ((6, 180, 180), (0, 180, 180), (6, 40, 300)):
        drawn = [membership_metrics(*sample([16, i], n_members, n_non_members, 0, decimals), rng()) for i in range(300)]
        advantage = [metrics.advantage for metrics in drawn]
        expected = np.mean([metrics.advantage_null for metrics in drawn])
        error = np.std(advantage) * np.sqrt(1 / 300 + 1 / 500)
        assert np.mean(advantage) == pytest.approx(expected, abs=4 * error)
    assert drawn[0].advantage_null == drawn[1].advantage_null, "it depends on the counts and ties alone"
    fine, coarse = (membership_metrics(*sample(17, 180, 180, 0, d), rng()).advantage_null for d in (6, 0))
    assert fine == pytest.approx(0.09, abs=0.005)
    assert coarse < 0.9 * fine


def test_ties_are_counted():
    is_member = np.arange(8) < 4
    for score, expected in (
        (np.arange(8.0), (0, 1)),
        (np.array([1, 1, 2, 3, 3, 3, 4, np.inf]), (5, 3)),
        (np.full(8, -np.inf), (8, 8)),
    ):
        metrics = membership_metrics(is_member, score, rng())
        assert (metrics.n_tied, metrics.largest_tie) == expected


def test_columns_are_those_of_the_schema():
    from sweeper.results.schema import SCHEMAS

    columns = membership_metrics(*sample(0, 100, 100), rng()).columns()
    assert set(columns) <= set(SCHEMAS["attacks"].names)
    assert columns["tpr_at_fpr_0.1_low"] < columns["tpr_at_fpr_0.1"] < columns["tpr_at_fpr_0.1_high"]
    assert {name for name, value in columns.items() if value is None} == {
        f"tpr_at_fpr_{fpr}{end}" for fpr in ("0.001", "0.01") for end in ("", "_low", "_high")
    }


def test_infinite_scores_are_the_extremes():
    is_member = np.array([True, True, False, False])
    metrics = membership_metrics(is_member, np.array([np.inf, 0.0, 0.0, -np.inf]), rng())
    assert metrics.auc == 0.875


def test_balanced_accuracy_is_not_optimistic_where_advantage_is():
    """Null scores, 400 repeats: mean within four standard errors of 0.5 (false alarm 6e-5)."""
    drawn = [membership_metrics(*sample([6, i], 40, 40), rng(i)) for i in range(400)]
    accuracy = np.array([metrics.balanced_accuracy for metrics in drawn])
    assert abs(accuracy.mean() - 0.5) < 4 * accuracy.std() / np.sqrt(len(accuracy))
    assert np.mean([metrics.advantage for metrics in drawn]) > 0.1


def test_balanced_accuracy_nears_the_best_possible():
    """Binormal, shift 2: the best threshold gives Φ(1) = 0.841; 20,000 a side, four standard errors."""
    metrics = membership_metrics(*sample(0, 20_000, 20_000, shift=2), rng())
    assert metrics.balanced_accuracy == pytest.approx(norm.cdf(1), abs=4 * np.sqrt(0.134 / 40_000))


@pytest.mark.parametrize(("n_members", "n_non_members"), [(7, 4), (100, 33)])
@pytest.mark.parametrize("n_folds", [2, 3])
def test_folds_are_stratified(n_members, n_non_members, n_folds):
    is_member, _ = sample(0, n_members, n_non_members)
    fold = example_folds(np.arange(len(is_member)), is_member, n_folds, rng())
    for side in (is_member, ~is_member):
        counts = np.bincount(fold[side], minlength=n_folds)
        assert counts.max() - counts.min() <= 1
    assert (fold != example_folds(np.arange(len(is_member)), is_member, n_folds, rng(1))).any()


def test_repeats_of_an_example_are_in_one_fold():
    """Ids 0 to 9 are members, 20 to 29 are not, 10 to 19 are both: numbered apart, or contradictory."""
    generator = rng(5)
    example_id = generator.integers(0, 30, 400)
    is_member = np.where(example_id < 10, True, np.where(example_id < 20, generator.random(400) < 0.5, False))
    fold = example_folds(example_id, is_member, 2, rng())
    for each in range(30):
        assert len(set(fold[example_id == each])) == 1
    for low in (0, 10, 20):
        assert sum(fold[example_id == each][0] for each in range(low, low + 10)) == 5


def test_one_score_per_example_is_the_mean_of_its_rows():
    ids = np.array([7, 3, 7, 7, 3, 9])
    is_member = np.array([True, False, True, True, False, True])
    fold = np.array([0, 1, 0, 0, 1, 1])
    scores = MembershipScores(
        name="one",
        example_id=ids,
        is_member=is_member,
        score=np.array([1.0, -np.inf, 2, 6, np.inf, 4]),
        fold=fold,
        selection_score=np.arange(6.0),
    )
    found = one_score_per_example(scores)
    assert found.example_id.tolist() == [7, 3, 9]
    assert found.is_member.tolist() == [True, False, True]
    assert found.score == pytest.approx([3, 0, 4])
    assert found.fold.tolist() == [0, 1, 1]
    assert found.selection_score == pytest.approx([5 / 3, 2.5, 5])
    apart = MembershipScores(name="one", example_id=ids, is_member=np.arange(6) < 3, score=np.arange(6.0))
    assert len(one_score_per_example(apart).score) == 5, "one id on both sides is two examples"
    plain = MembershipScores(name="one", example_id=np.arange(6), is_member=is_member, score=np.arange(6.0))
    assert one_score_per_example(plain) is plain


@pytest.mark.parametrize(
    ("is_member", "score", "message"),
    [
        ([True, True, False, False], [0.1, np.nan, 0.2, 0.3], "1 of 4 scores are NaN"),
        ([True, False, False], [0.1, 0.2, 0.3], "1 members and 2 non-members"),
        ([True, True], [0.1, 0.2], "2 members and 0 non-members"),
        ([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4], "must be boolean"),
        ([True, True, False, False], [[0.1], [0.2], [0.3], [0.4]], "one shape"),
    ],
)
def test_what_cannot_be_measured_is_refused(is_member, score, message):
    with pytest.raises(ValueError, match=message):
        membership_metrics(np.array(is_member), np.array(score), rng())


def candidate(name, is_member, score, example_id=None):
    ids = np.arange(len(score)) if example_id is None else np.asarray(example_id)
    return MembershipScores(name=name, example_id=ids, is_member=is_member, score=np.asarray(score))


def mean_difference(name, is_member, features, half, permute):
    """A cross-fitted attacker in three lines: the projection on what tells a half's members from its non-members.

    Its two halves' null errors have a correlation of nearly 1, as any linear attacker's, which makes it the worst case.
    """
    score, selection_score = np.empty(len(is_member)), np.empty(len(is_member))

    def direction(rows):
        return features[rows & is_member].mean(axis=0) - features[rows & ~is_member].mean(axis=0)

    quarter = example_folds(np.arange(len(half)), is_member, 2, permute)
    for own in (0, 1):
        score[half != own] = features[half != own] @ direction(half == own)
        for inner in (0, 1):
            inside = (half == own) & (quarter == inner)
            selection_score[inside] = features[inside] @ direction((half == own) & (quarter != inner))
    return MembershipScores(
        name=name,
        example_id=np.arange(len(half)),
        is_member=is_member,
        score=score,
        fold=half,
        selection_score=selection_score,
    )


@pytest.mark.slow
def test_intervals_of_fitted_attackers_cover_the_fitting():
    """Features that know nothing, 500 repeats: a one-sided miss in at most 2.5 of 100 (false alarm 1e-4), where
    intervals over examples alone miss in 8."""
    missed, missed_over_examples, tpr_missed = np.zeros(2), np.zeros(2), np.zeros(2)
    for repeat in range(500):
        generator = rng([18, repeat])
        is_member = np.arange(300) < 150
        half = example_folds(np.arange(300), is_member, 2, generator)
        scores = mean_difference("one", is_member, generator.normal(size=(300, 8)), half, generator)
        metrics = membership_metrics(is_member, scores.score, generator, half)
        missed += (metrics.auc_low > 0.5, metrics.auc_high < 0.5)
        low, high = metrics.tpr_at_fpr_interval[0.1]
        tpr_missed += (low > 0.1, high < 0.1)
        plain = membership_metrics(is_member, scores.score, generator)
        missed_over_examples += (plain.auc_low > 0.5, plain.auc_high < 0.5)
    allowed = binom.ppf(1 - FALSE_ALARM, 500, 0.025)
    assert (missed <= allowed).all()
    assert (tpr_missed <= allowed).all()
    assert missed_over_examples.sum() > 2 * allowed


def test_the_variance_of_correlated_folds_is_that_of_fewer_examples():
    is_member, score = sample(3, 200, 200, shift=1)
    fold = example_folds(np.arange(400), is_member, 2, rng())

    def width(*arguments):
        metrics = membership_metrics(is_member, score, rng(), *arguments)
        return np.diff([np.log(end / (1 - end)) for end in (metrics.auc_low, metrics.auc_high)])[0]

    assert width(fold) == pytest.approx(np.sqrt(2) * width())
    assert width(fold, 0.0) == pytest.approx(width())
    assert width(fold, 0.36) == pytest.approx(np.sqrt(1.36) * width())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["thresholds", "fitted", "both"])
def test_best_of_null_scores_flatters_the_paper_protocol_only(kind):
    """Candidates that know nothing, 100 a side, 500 repeats: the mean is .5 (four standard errors), and the interval
    lies above .5, and below it, in at most 2.5 of 100 (false alarm 1e-4)."""
    paper, honest, missed = [], [], np.zeros(2)
    for repeat in range(500):
        generator = rng([11, repeat])
        is_member = np.arange(200) < 100
        half = example_folds(np.arange(200), is_member, 2, generator)
        candidates = {}
        if kind != "fitted":
            candidates |= {name: candidate(name, is_member, generator.normal(size=200)) for name in "abcdef"}
        if kind != "thresholds":
            candidates |= {
                name: mean_difference(name, is_member, generator.normal(size=(200, 8)), half, generator)
                for name in "uv"
            }
        best = best_of(candidates, generator)
        assert best.paper_protocol_auc == max(auc(is_member, one.score) for one in candidates.values())
        paper.append(best.paper_protocol_auc)
        honest.append(best.metrics.auc)
        missed += (best.metrics.auc_low > 0.5, best.metrics.auc_high < 0.5)
    error = np.std(honest) / np.sqrt(len(honest))
    assert abs(np.mean(honest) - 0.5) < 4 * error
    assert (missed <= binom.ppf(1 - FALSE_ALARM, 500, 0.025)).all(), missed / 500
    if kind == "thresholds":
        # The maximum of six standard normals averages 1.267; an AUC's null deviation is √((m+n+1)/12mn).
        assert np.mean(paper) == pytest.approx(0.5 + 1.267 * np.sqrt(201 / 120_000), abs=4 * error)
        assert missed.sum() > 0, "an interval that never misses says nothing"


def test_best_of_chooses_a_fitted_candidate_by_labels_of_the_half_alone():
    """Scores that an attacker fitted on the other half gives do not enter the choice; selection scores do."""
    is_member = np.arange(200) < 100
    half = example_folds(np.arange(200), is_member, 2, rng())
    good = is_member + rng(1).normal(size=200)
    noise = rng(2).normal(size=200)
    fitted = dataclasses.replace(candidate("fitted", is_member, noise), fold=half, selection_score=good)
    other = candidate("other", is_member, rng(3).normal(size=200))
    assert best_of({"other": other, "fitted": fitted}, rng()).selected == ("fitted", "fitted")
    fitted = dataclasses.replace(fitted, score=good, selection_score=-good)
    assert best_of({"other": other, "fitted": fitted}, rng()).selected == ("other", "other")


def test_best_of_finds_the_score_that_knows_and_measures_it_on_all_examples():
    is_member, good = sample(0, 200, 100, shift=2)
    bad = rng(1).normal(size=300)
    best = best_of({"bad": candidate("bad", is_member, bad), "good": candidate("good", is_member, good)}, rng())
    assert (best.paper_protocol_score, best.selected) == ("good", ("good", "good"))
    assert best.paper_protocol_auc == auc(is_member, good)
    assert (best.metrics.n_members, best.metrics.n_non_members) == (200, 100)
    assert best.metrics.auc == pytest.approx(auc(is_member, good), abs=0.02), (
        "nothing is lost where the choice is clear"
    )
    assert best.metrics.n_tied == 0


def test_both_ways_spread_less_than_one_half():
    """A score of true AUC .64, 100 a side: measured on one half its deviation is about √2 times as large."""
    both, one_half = [], []
    for repeat in range(200):
        is_member, score = sample([19, repeat], 100, 100, shift=0.5)
        best = best_of({"one": candidate("one", is_member, score)}, rng(repeat))
        both.append(best.metrics.auc)
        half = example_folds(np.arange(200), is_member, 2, rng(repeat)) == 1
        one_half.append(auc(is_member[half], score[half]))
    assert np.mean(both) == pytest.approx(norm.cdf(0.5 / np.sqrt(2)), abs=4 * np.std(both) / np.sqrt(200))
    assert np.std(both) < 0.85 * np.std(one_half)


def test_best_of_does_not_depend_on_the_order_of_rows():
    is_member, score = sample(0, 50, 50, shift=1)
    other = rng(1).normal(size=100)
    first = candidate("first", is_member, score)
    reference = best_of({"first": first, "other": candidate("other", is_member, other)}, rng(2))
    shuffle = rng(3).permutation(100)
    for one in ("first", "other"):
        order = {"first": np.arange(100), "other": np.arange(100), one: shuffle}
        shuffled = {
            name: candidate(name, is_member[order[name]], values[order[name]], order[name])
            for name, values in (("first", score), ("other", other))
        }
        assert best_of(shuffled, rng(2)) == reference


def test_best_of_refuses_candidates_of_different_examples():
    is_member, score = sample(0, 10, 10)
    one = candidate("one", is_member, score)
    with pytest.raises(ValueError, match="do not cover the same examples"):
        best_of({"one": one, "two": candidate("two", is_member, score, np.arange(20) + 1)}, rng())
    with pytest.raises(ValueError, match="do not cover the same examples"):
        best_of({"one": one, "two": candidate("two", is_member[:-1], score[:-1])}, rng())
    with pytest.raises(ValueError, match="with the same membership"):
        best_of({"one": one, "two": candidate("two", ~is_member, score)}, rng())
    with pytest.raises(ValueError, match="more than once"):
        best_of({"one": candidate("one", is_member, score, np.zeros(20, dtype=int))}, rng())
    with pytest.raises(ValueError, match="no candidate"):
        best_of({}, rng())
    halves = [example_folds(np.arange(20), is_member, 2, rng(seed)) for seed in (0, 1)]
    fitted = [dataclasses.replace(one, fold=half) for half in halves]
    with pytest.raises(ValueError, match="'one' and 'two' were fitted on different halves"):
        best_of(dict(zip(("one", "two"), fitted, strict=True)), rng())
    with pytest.raises(ValueError, match="folds other than 0 and 1"):
        best_of({"one": dataclasses.replace(one, fold=np.arange(20) % 3)}, rng())
    few = np.arange(6) < 3
    with pytest.raises(ValueError, match="at least four members"):
        best_of({"few": candidate("few", few, np.arange(6.0))}, rng())


def test_members_and_non_members_may_be_numbered_apart():
    is_member = np.arange(20) < 10
    score = rng().normal(size=20)
    ids = np.r_[np.arange(10), np.arange(10)]
    best = best_of({"one": candidate("one", is_member, score, ids)}, rng())
    assert best.paper_protocol_auc == auc(is_member, score)


def test_guessing_with_many_examples_is_simulated_once_for_about_equal_numbers_of_members():
    """The simulation has a standard error of 3 %. Asymptotically, √(π/2) · ln 2 · √(1/members + 1/non-members)."""
    score = np.arange(6000.0)
    found = {}
    for n_members in (2980, 3020, 600):
        member = rng(1).permutation(np.arange(6000) < n_members)
        found[n_members] = membership_metrics(member, score, rng()).advantage_null
        asymptotic = np.sqrt(np.pi / 2) * np.log(2) * np.sqrt(1 / n_members + 1 / (6000 - n_members))
        assert found[n_members] == pytest.approx(asymptotic, rel=0.1)
    assert found[2980] == pytest.approx(found[3020], rel=1e-9)


@pytest.mark.slow
def test_membership_attacks_and_metrics_import_no_torch():
    modules = "attacks.metrics, attacks.selection, attacks.probabilities, attacks.membership.threshold, "
    modules += "attacks.membership.trained_attackers, attacks.membership.shadow"
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
