"""Metrics of membership scores and the choice of the best attack: properties, references, statistics.

The statistical tests state how often a correct implementation would fail them. Their seeds are fixed, so
they do not flicker.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from attacks.base import MembershipScores
from attacks.metrics import auc, membership_metrics, roc_curve, stratified_halves
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
def test_tpr_at_fpr_is_the_best_threshold_that_keeps_to_the_fpr(decimals):
    is_member, score = sample(8, 300, 1000, shift=1, decimals=decimals)
    metrics = membership_metrics(is_member, score, rng())
    for fpr in (0.01, 0.1):
        allowed = [t for t in [*np.unique(score), np.inf] if (score[~is_member] >= t).mean() <= fpr]
        best = max((score[is_member] >= threshold).mean() for threshold in allowed)
        assert metrics.tpr_at_fpr[fpr] == pytest.approx(best)


def test_a_group_of_ties_is_not_split_to_reach_an_fpr():
    """The 30 highest scores are alike, 20 of them non-members of 100: FPR .2 or nothing."""
    is_member = np.r_[np.ones(10, bool), np.zeros(20, bool), np.ones(10, bool), np.zeros(80, bool)]
    score = np.r_[np.full(30, 2.0), np.full(90, 1.0)]
    assert membership_metrics(is_member, score, rng()).tpr_at_fpr[0.1] == 0
    # Exactly α is allowed: 10 of 100 non-members among the highest.
    is_member[10:20] = True
    is_member[30:40] = False
    assert membership_metrics(is_member, score, rng()).tpr_at_fpr[0.1] == 1


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
def test_halves_are_stratified(n_members, n_non_members):
    is_member, _ = sample(0, n_members, n_non_members)
    half = stratified_halves(is_member, rng())
    assert (half & is_member).sum() == n_members // 2
    assert (half & ~is_member).sum() == n_non_members // 2


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


def test_best_of_null_scores_flatters_the_paper_protocol_only():
    """Six independent null scores, 100 a side, 300 repeats; four standard errors (false alarm 6e-5)."""
    paper, honest = [], []
    for repeat in range(300):
        generator = rng([11, repeat])
        is_member = np.arange(200) < 100
        candidates = {
            name: candidate(name, is_member, generator.normal(size=200)) for name in ("a", "b", "c", "d", "e", "f")
        }
        best = best_of(candidates, generator)
        assert best.paper_protocol_auc == max(auc(is_member, one.score) for one in candidates.values())
        paper.append(best.paper_protocol_auc)
        honest.append(best.metrics.auc)
    error = np.std(honest) / np.sqrt(len(honest))
    assert abs(np.mean(honest) - 0.5) < 4 * error
    # The maximum of six standard normals averages 1.267; an AUC's null deviation is √((m+n+1)/12mn).
    assert np.mean(paper) == pytest.approx(0.5 + 1.267 * np.sqrt(201 / 120_000), abs=4 * error)


def test_best_of_finds_the_score_that_knows_and_measures_it_on_the_other_half():
    is_member, good = sample(0, 200, 100, shift=2)
    bad = rng(1).normal(size=300)
    best = best_of({"bad": candidate("bad", is_member, bad), "good": candidate("good", is_member, good)}, rng())
    assert (best.paper_protocol_score, best.selected) == ("good", "good")
    assert best.paper_protocol_auc == auc(is_member, good)
    assert (best.metrics.n_members, best.metrics.n_non_members) == (100, 50)


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
    few = np.arange(6) < 3
    with pytest.raises(ValueError, match="at least four members"):
        best_of({"few": candidate("few", few, np.arange(6.0))}, rng())


def test_members_and_non_members_may_be_numbered_apart():
    is_member = np.arange(20) < 10
    score = rng().normal(size=20)
    ids = np.r_[np.arange(10), np.arange(10)]
    best = best_of({"one": candidate("one", is_member, score, ids)}, rng())
    assert best.paper_protocol_auc == auc(is_member, score)


def test_membership_attacks_and_metrics_import_no_torch():
    modules = "attacks.metrics, attacks.selection, attacks.probabilities, attacks.membership.threshold, "
    modules += "attacks.membership.trained_attackers, attacks.membership.shadow"
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
