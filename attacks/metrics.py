"""Metrics of how well a score separates members from non-members.

All metrics depend only on the order of the scores, so any increasing transform of a score gives the same results.
**A higher score means more likely a member.** This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv, expit, logit, ndtri

from attacks.base import BoolArray, FloatArray, IntArray, MembershipScores, rate_columns

_Rates = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

REPORTED_FPRS = (0.001, 0.01, 0.1)
MIN_EXPECTED_FALSE_POSITIVES = 10
"""A TPR at FPR α is reported only with at least (this number / α) non-members; with fewer, it is mostly chance."""

_TAIL = 0.025  # probability on each side of a 95 % interval
_MIDPOINTS = (np.arange(200) + 0.5) / 200  # quantiles over which a distribution is averaged
_NULL_DRAWS = 500
_NULL_EXAMPLES = 2_000_000  # maximum of draws · examples, but at least 100 draws


@dataclass(frozen=True, kw_only=True)
class MembershipMetrics:
    """Metrics of one membership score; all metrics are fractions in [0, 1].

    `auc`: probability that a random member scores above a random non-member; ties count half.
    `auc_low`, `auc_high`: its 95 % confidence interval, as in `membership_metrics`.
    `advantage`: max |TPR − FPR| over all thresholds, as in TensorFlow Privacy. Threshold and sign are chosen on the scores
    that are measured, so it is optimistic, and above 0 even for an uninformative score. `advantage_null` is its mean for an
    uninformative score with the same counts and ties.
    `balanced_accuracy`: (TPR + TNR) / 2 with the threshold chosen on examples other than the measured ones; an uninformative
    score averages 0.5.
    `tpr_at_fpr`: the TPR at each reported FPR; None if there are too few non-members.
    `tpr_at_fpr_interval`: its 95 % confidence interval; None if the TPR is None.
    `n_tied`: number of examples that share their score with another; `largest_tie`: the most examples that share one score,
    1 if none do.
    """

    n_members: int
    n_non_members: int
    auc: float
    auc_low: float
    auc_high: float
    advantage: float
    advantage_null: float
    balanced_accuracy: float
    tpr_at_fpr: dict[float, float | None]
    tpr_at_fpr_interval: dict[float, tuple[float, float] | None]
    n_tied: int
    largest_tie: int

    def columns(self) -> dict[str, float | int | None]:
        """Every metric by its column name."""
        columns: dict[str, float | int | None] = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("tpr_at_fpr", "tpr_at_fpr_interval")
        }
        return columns | rate_columns("tpr_at_fpr_", self.tpr_at_fpr, self.tpr_at_fpr_interval)


def membership_metrics(
    is_member: BoolArray,
    score: FloatArray,
    rng: np.random.Generator,
    fold: IntArray | None = None,
    fold_correlation: float = 1.0,
) -> MembershipMetrics:
    """Measure `score` (n,), higher for members, against the true `is_member` (n,). O(n log n).

    **AUC.** The interval is DeLong's on the logit scale. It is asymptotic: with fewer than about ten examples on a side it
    is a rough guide. If the estimated variance is zero, an exact binomial bound replaces it. Take k = min(members,
    non-members) disjoint member–non-member pairs:

    - AUC of exactly 1 (or 0): all k independent pairs are in order. This has probability at most AUC^k, so the AUC is at
      least 0.025^(1/k) (or at most one minus that), the Clopper–Pearson bound.
    - All scores equal: all k pairs are ties. The probability q of a tie is then at least 0.025^(1/k), and the AUC is in
      [q/2, 1 − q/2].

    **TPR at FPR α** is the share of members above the threshold with an expected FPR of α. The r-th highest of n non-members
    has an expected FPR of r/(n + 1), so r = α(n + 1); between ranks the TPR is interpolated linearly. For an uninformative
    score this averages α. The usual threshold, just above the next non-member, would be a tenth too high with ten false
    positives. Within a tie, the mean over all orders of the tied examples is used, as for an attacker who breaks ties at
    random.

    Its interval is Clopper–Pearson's, averaged over the threshold's own FPR, U ~ Beta(r, n + 1 − r). The TPR at another FPR
    is bounded by a straight line through 0: at least U/α of the TPR for U below α, at most U/α of it for U above α. This
    holds for every concave ROC. It fails if, towards the highest scores, non-members increasingly outnumber members. In
    simulations of this case, the interval missed in up to 6 of 100 cases on each side, instead of the nominal 2.5.

    **`fold`** (n,) is for scores that were fitted or chosen by membership labels, out of fold. It says which examples were
    scored by the same fit. Scores of one fold are independent given its fit, but each fold's fit depends on the other
    folds' labels, so the folds' errors are correlated: for an uninformative linear attacker, the AUCs of two folds have a
    correlation of nearly 1. Intervals assume a correlation of `fold_correlation` between the folds' errors. A value of 1
    covers all cases; with two halves, the variance is then twice that of independent examples. Without this, 12 to 14 of
    100 intervals would miss. The intervals refer to an attacker fitted on as many examples as in one fold.

    `rng` draws the two halves for `balanced_accuracy`. `advantage_null` is the mean over permutations of the membership
    from a fixed seed (500; fewer with over 4,000 examples, at least 100, at numbers of members rounded to two digits and scaled).

    Raises:
        ValueError: the shapes differ, `is_member` is not boolean, a score is NaN (infinities are allowed), or there are
            fewer than two members or two non-members.

    Source: DeLong, DeLong & Clarke-Pearson 1988 (variance); Sun & Xu 2014 (computing it from ranks, here from counts per
    distinct score); Pepe 2003 (logit scale); Yeom et al. 2018, definition 4 (advantage, there at one fixed threshold). The
    interval of the TPR and the bound over folds are ours.
    """
    level, n_levels = _levels(is_member, score)
    members, non_members = _counts(is_member, level, n_levels)
    n_members, n_non_members = int(members.sum()), int(non_members.sum())
    if min(n_members, n_non_members) < 2:
        raise ValueError(
            "Metrics need at least two members and two non-members, "
            f"got {n_members} members and {n_non_members} non-members."
        )
    inflation = _variance_inflation(fold, fold_correlation)
    auc_low, auc_high = _auc_interval(members, non_members, inflation)
    pooled = members + non_members
    fprs = [fpr for fpr in REPORTED_FPRS if n_non_members * fpr >= MIN_EXPECTED_FALSE_POSITIVES]
    caught = {fpr: _members_above(members, non_members, fpr * (n_non_members + 1)) for fpr in fprs}
    return MembershipMetrics(
        n_members=n_members,
        n_non_members=n_non_members,
        auc=_auc(members, non_members),
        auc_low=auc_low,
        auc_high=auc_high,
        advantage=_advantage(members, non_members),
        advantage_null=_advantage_null(pooled, n_members),
        balanced_accuracy=_balanced_accuracy(is_member, level, n_levels, rng),
        tpr_at_fpr={fpr: caught[fpr] / n_members if fpr in caught else None for fpr in REPORTED_FPRS},
        tpr_at_fpr_interval={
            fpr: _tpr_interval(caught[fpr] / inflation, n_members / inflation, n_non_members / inflation, fpr)
            if fpr in caught
            else None
            for fpr in REPORTED_FPRS
        },
        n_tied=int(pooled[pooled > 1].sum()),
        largest_tie=int(pooled.max()),
    )


def auc(is_member: BoolArray, score: FloatArray) -> float:
    """Probability that a random member scores above a random non-member; ties count half.

    Raises ValueError as `membership_metrics` does, but one member and one non-member are enough.
    """
    level, n_levels = _levels(is_member, score)
    members, non_members = _counts(is_member, level, n_levels)
    if not members.any() or not non_members.any():
        raise ValueError("The AUC needs at least one member and one non-member.")
    return _auc(members, non_members)


def tpr_at_fpr(is_member: BoolArray, score: FloatArray, fpr: float) -> float:
    """The TPR at an expected FPR, as in `membership_metrics`; there must be at least 1/fpr − 1 non-members.

    Raises ValueError as `auc` does.
    """
    return tprs_at_fprs(is_member, score, [fpr])[0]


def tprs_at_fprs(is_member: BoolArray, score: FloatArray, fprs: Sequence[float]) -> list[float]:
    """`tpr_at_fpr` at each of several FPRs."""
    level, n_levels = _levels(is_member, score)
    members, non_members = _counts(is_member, level, n_levels)
    n_members, n_non_members = int(members.sum()), int(non_members.sum())
    for fpr in fprs:
        if not n_members or fpr * (n_non_members + 1) < 1:
            raise ValueError(f"A TPR at an FPR of {fpr:g} needs a member and at least {1 / fpr - 1:.0f} non-members.")
    return [_members_above(members, non_members, fpr * (n_non_members + 1)) / n_members for fpr in fprs]


def roc_curve(is_member: BoolArray, score: FloatArray) -> _Rates:
    """The corners (fpr, tpr) of the ROC curve, each (distinct scores + 1,), from (0, 0) to (1, 1).

    No corner is dropped; equal scores give one corner. Raises ValueError as `auc` does.
    """
    level, n_levels = _levels(is_member, score)
    members, non_members = _counts(is_member, level, n_levels)
    if not members.any() or not non_members.any():
        raise ValueError("A ROC curve needs at least one member and one non-member.")
    return _rates(members, non_members)


def example_folds(example_id: IntArray, is_member: BoolArray, n_folds: int, rng: np.random.Generator) -> IntArray:
    """Assign examples at random to `n_folds` folds (n,), with members and non-members spread evenly.

    All rows of one `example_id` are in the same fold, members or not, so that no fold learns about an example of another.
    """
    ids, row = np.unique(example_id, return_inverse=True)
    kind = np.zeros(len(ids), dtype=np.int64)
    for bit, side in ((1, is_member), (2, ~is_member)):
        kind[row[side]] |= bit
    fold = np.empty(len(ids), dtype=np.int64)
    for each in (1, 2, 3):
        index = rng.permutation(np.flatnonzero(kind == each))
        fold[index] = np.arange(len(index)) % n_folds
    return fold[row]


def one_score_per_example(scores: MembershipScores) -> MembershipScores:
    """Each example once, with the mean of its scores. Rows belong to one example if id and membership are equal.

    Repeated rows of an example are no new evidence: intervals over rows would be too narrow. In means, infinite scores count
    as ±1e300. Examples are in the order of their first rows.
    """
    pairs = np.stack((scores.example_id, scores.is_member.astype(np.int64)))
    _, first, row, count = np.unique(pairs, axis=1, return_index=True, return_inverse=True, return_counts=True)
    if len(first) == len(scores.score):
        return scores
    row, order = row.ravel(), np.argsort(first)

    def mean(score: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.bincount(row, np.clip(score, -1e300, 1e300) / count[row])[order].astype(np.float64)

    return MembershipScores(
        name=scores.name,
        example_id=scores.example_id[first[order]],
        is_member=scores.is_member[first[order]],
        score=mean(scores.score),
        fold=None if scores.fold is None else scores.fold[first[order]],
        selection_score=None if scores.selection_score is None else mean(scores.selection_score),
    )


def check_scores(is_member: BoolArray, score: FloatArray) -> None:
    """Check that there is one membership and one score per example.

    Raises:
        ValueError: the shapes differ, `is_member` is not boolean, or a score is NaN (infinities are allowed).
    """
    if is_member.ndim != 1 or is_member.shape != score.shape:
        raise ValueError(f"is_member and score must be of one shape (n,), got {is_member.shape} and {score.shape}.")
    if is_member.dtype != np.bool_:
        raise ValueError(f"is_member must be boolean, got {is_member.dtype}.")
    if np.isnan(score).any():
        raise ValueError(f"{int(np.isnan(score).sum())} of {len(score)} scores are NaN.")


def _levels(is_member: BoolArray, score: FloatArray) -> tuple[npt.NDArray[np.intp], int]:
    """Each score's rank (n,) among the distinct scores, ascending from 0, and the number of distinct scores."""
    check_scores(is_member, score)
    distinct, level = np.unique(score, return_inverse=True)
    return level, len(distinct)


def _counts(
    is_member: BoolArray, level: npt.NDArray[np.intp], n_levels: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Numbers of members and of non-members at each distinct score, ascending. All metrics follow from these."""
    return (
        np.bincount(level[is_member], minlength=n_levels),
        np.bincount(level[~is_member], minlength=n_levels),
    )


def _rates(members: npt.NDArray[np.intp], non_members: npt.NDArray[np.intp]) -> _Rates:
    """(fpr, tpr) if the k highest distinct scores are predicted as members, for k = 0, 1, …"""
    fpr, tpr = (np.append(0, counts[::-1].cumsum()) / counts.sum() for counts in (non_members, members))
    return fpr, tpr


def _auc(members: npt.NDArray[np.intp], non_members: npt.NDArray[np.intp]) -> float:
    # Twice the number of ordered pairs is an integer, so AUCs of 0, 1 and 1/2 are exact.
    twice_ordered_pairs = int(members @ (2 * non_members.cumsum() - non_members))
    return twice_ordered_pairs / (2 * int(members.sum()) * int(non_members.sum()))


def _advantage(members: npt.NDArray[np.intp], non_members: npt.NDArray[np.intp]) -> float:
    fpr, tpr = _rates(members, non_members)
    return float(np.abs(tpr - fpr).max())


def _advantage_null(pooled: npt.NDArray[np.intp], n_members: int) -> float:
    """The mean `advantage` if `n_members` random examples are members; `pooled` is the number of examples per distinct score."""
    n = int(pooled.sum())
    fewer = min(n_members, n - n_members)
    near = fewer
    if n * _NULL_DRAWS > _NULL_EXAMPLES:
        near = int(float(f"{fewer:.1e}"))
    # The standard deviation of TPR − FPR at any threshold is proportional to this.
    spread, near_spread = (np.sqrt(1 / count + 1 / (n - count)) for count in (fewer, near))
    return _simulated_null(tuple(pooled.tolist()), near) * float(spread / near_spread)


@lru_cache(maxsize=64)
def _simulated_null(pooled: tuple[int, ...], n_members: int) -> float:
    """Results are cached, because scores of one cohort often have the same tie pattern (no ties)."""
    counts, n = np.array(pooled), sum(pooled)
    draws = int(np.clip(_NULL_EXAMPLES // n, 100, _NULL_DRAWS))
    members = np.random.default_rng(0).multivariate_hypergeometric(counts, n_members, size=draws, method="count")
    # TPR − FPR below each threshold; above it, the value is the same with opposite sign. One draw fits the processor's cache.
    below = ((each / n_members - (counts - each) / (n - n_members)).cumsum() for each in members)
    return float(np.mean([np.abs(each).max() for each in below]))


def _members_above(members: npt.NDArray[np.intp], non_members: npt.NDArray[np.intp], rank: float) -> float:
    """Number of members that score above the non-member of this rank from the top, for 1 ≤ `rank` ≤ number of non-members.

    Interpolated linearly between whole ranks. In a tie of a non-members and b members, the j-th of these non-members has on
    average b·j/(a + 1) of these members above it.
    """
    members, non_members = members[::-1], non_members[::-1]
    false_positives, true_positives = non_members.cumsum(), members.cumsum()

    def above(whole: int) -> float:
        level = int(np.searchsorted(false_positives, whole))
        place = whole - (false_positives[level] - non_members[level])
        tied = members[level] * place / (non_members[level] + 1)
        return float(true_positives[level] - members[level] + tied)

    low = int(rank)
    share = rank - low
    return above(low) if share == 0 else (1 - share) * above(low) + share * above(low + 1)


def _tpr_interval(caught: float, n_members: float, n_non_members: float, fpr: float) -> tuple[float, float]:
    """The 95 % interval described in `membership_metrics` for a TPR of caught/n_members at `fpr`; counts may be fractional."""
    rank = fpr * (n_non_members + 1)
    over_fpr = betaincinv(rank, n_non_members + 1 - rank, _MIDPOINTS) / fpr
    least, most = np.minimum(over_fpr, 1), np.maximum(over_fpr, 1)

    def at_most(tpr: float) -> float:
        """The probability of at most `caught`, if the TPR at `fpr` is `tpr`."""
        return float(betainc(n_members - caught, caught + 1, 1 - tpr * least).mean())

    def at_least(tpr: float) -> float:
        return float(betainc(caught, n_members - caught + 1, np.minimum(tpr * most, 1)).mean())

    estimate = caught / n_members
    low = 0.0 if caught == 0 else brentq(lambda tpr: at_least(tpr) - _TAIL, 0.0, estimate, xtol=1e-9)
    high = 1.0
    if caught < n_members and at_most(1.0) < _TAIL:
        high = brentq(lambda tpr: at_most(tpr) - _TAIL, estimate, 1.0, xtol=1e-9)
    return float(low), float(high)


def _variance_inflation(fold: IntArray | None, correlation: float) -> float:
    """The variance of a mean with this correlation between the folds' errors, relative to independent examples."""
    if fold is None:
        return 1.0
    shares = np.unique(fold, return_counts=True)[1] / len(fold)
    return float(1 + correlation * (np.sqrt(shares).sum() ** 2 - 1))


def _auc_interval(
    members: npt.NDArray[np.intp], non_members: npt.NDArray[np.intp], inflation: float
) -> tuple[float, float]:
    """The 95 % interval described in `membership_metrics`, for the AUC of these counts per distinct score."""
    n_members, n_non_members = int(members.sum()), int(non_members.sum())
    estimate = _auc(members, non_members)
    all_pairs_alike = float(_TAIL ** (inflation / min(n_members, n_non_members)))
    if estimate == 1:
        return all_pairs_alike, 1.0
    if estimate == 0:
        return 0.0, 1 - all_pairs_alike
    if len(members) == 1:
        return all_pairs_alike / 2, 1 - all_pairs_alike / 2

    # DeLong's placements: the share of non-members below each member, and of members above each non-member.
    below = (non_members.cumsum() - non_members / 2) / n_non_members
    above = 1 - (members.cumsum() - members / 2) / n_members
    variance = float(
        members @ (below - estimate) ** 2 / ((n_members - 1) * n_members)
        + non_members @ (above - estimate) ** 2 / ((n_non_members - 1) * n_non_members)
    )
    half_width = -ndtri(_TAIL) * np.sqrt(inflation * variance) / (estimate * (1 - estimate))
    center = logit(estimate)
    return float(expit(center - half_width)), float(expit(center + half_width))


def _balanced_accuracy(
    is_member: BoolArray, level: npt.NDArray[np.intp], n_levels: int, rng: np.random.Generator
) -> float:
    """(TPR + TNR) / 2 on one random half, at the threshold that is best on the other half; the mean of both directions.

    Among equally good thresholds, the highest is used.
    """
    half = example_folds(np.arange(len(is_member)), is_member, 2, rng) == 1
    advantage = []
    for mask in (half, ~half):
        fpr, tpr = _rates(*_counts(is_member[mask], level[mask], n_levels))
        advantage.append(tpr - fpr)
    first, second = advantage
    return float((2 + second[first.argmax()] + first[second.argmax()]) / 4)
