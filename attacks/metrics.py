"""How well a score tells members from non-members.

Everything here depends on the order of the scores alone, never on their size, so any increasing
transform of a score gives the same numbers. **A higher score means more likely a member.** This
module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, ndtri

from attacks.base import BoolArray, FloatArray

_Rates = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

REPORTED_FPRS = (0.001, 0.01, 0.1)
MIN_EXPECTED_FALSE_POSITIVES = 10
"""A TPR at FPR α is given only with at least this many / α non-members; below, it is mostly chance."""

_TAIL = 0.025  # each side of a 95 % interval


@dataclass(frozen=True, kw_only=True)
class MembershipMetrics:
    """Metrics of one membership score; every one is a fraction in [0, 1].

    `auc`: probability that a random member scores above a random non-member, ties counting half.
    `auc_low`, `auc_high`: its 95 % confidence interval (`membership_metrics` says which).
    `advantage`: max |TPR − FPR| over all thresholds, as TensorFlow Privacy has it. The threshold and
    the sign are chosen on the very scores it is measured on, so it is optimistic and is above 0 even
    for a score that knows nothing.
    `balanced_accuracy`: (TPR + TNR) / 2 with the threshold chosen on other examples than those it is
    measured on, so a score that knows nothing averages 0.5.
    `tpr_at_fpr`: for each reported FPR the TPR there, None where there are too few non-members.
    """

    n_members: int
    n_non_members: int
    auc: float
    auc_low: float
    auc_high: float
    advantage: float
    balanced_accuracy: float
    tpr_at_fpr: dict[float, float | None]


def membership_metrics(is_member: BoolArray, score: FloatArray, rng: np.random.Generator) -> MembershipMetrics:
    """Measure `score` (n,), higher for members, against the truth `is_member` (n,). O(n log n).

    The interval of the AUC is DeLong's on the logit scale. It is asymptotic: with fewer than about
    ten examples on a side it is a rough guide. Where the estimated variance is zero it is replaced by
    an exact binomial bound. Take k = min(members, non-members) disjoint member–non-member pairs:

    - AUC of exactly 1 (or 0): all k independent pairs came out in order, which has probability at most
      AUC^k, so the AUC is at least 0.025^(1/k) (or at most one minus that), the Clopper–Pearson bound.
    - All scores equal: all k pairs are ties, so ties have a probability q of at least 0.025^(1/k), and
      the AUC lies in [q/2, 1 − q/2].

    The TPR at FPR α is the largest TPR over the thresholds whose FPR is at most α; equal scores fall on
    the same side of any threshold and nothing is interpolated.

    `rng` draws the two halves for `balanced_accuracy`; nothing else is random.

    Raises:
        ValueError: the shapes differ, `is_member` is not boolean, a score is NaN (infinities are fine),
            or there are fewer than two members or two non-members.

    Source: DeLong, DeLong & Clarke-Pearson 1988 (variance); Sun & Xu 2014 (computing it from ranks, here
    from counts per distinct score); Pepe 2003 (logit scale); Yeom et al. 2018, definition 4
    (advantage, there at one fixed threshold).
    """
    level, n_levels = _levels(is_member, score)
    members, non_members = _counts(is_member, level, n_levels)
    n_members, n_non_members = int(members.sum()), int(non_members.sum())
    if min(n_members, n_non_members) < 2:
        raise ValueError(
            "Metrics need at least two members and two non-members, "
            f"got {n_members} members and {n_non_members} non-members."
        )
    fpr, tpr = _rates(members, non_members)
    auc_low, auc_high = _auc_interval(members, non_members)
    return MembershipMetrics(
        n_members=n_members,
        n_non_members=n_non_members,
        auc=_auc(members, non_members),
        auc_low=auc_low,
        auc_high=auc_high,
        advantage=float(np.abs(tpr - fpr).max()),
        balanced_accuracy=_balanced_accuracy(is_member, level, n_levels, rng),
        tpr_at_fpr={
            target_fpr: None
            if n_non_members * target_fpr < MIN_EXPECTED_FALSE_POSITIVES
            else float(tpr[fpr <= target_fpr].max())
            for target_fpr in REPORTED_FPRS
        },
    )


def auc(is_member: BoolArray, score: FloatArray) -> float:
    """Probability that a random member scores above a random non-member, ties counting half.

    Raises ValueError as `membership_metrics` does; one member and one non-member are enough here.
    """
    level, n_levels = _levels(is_member, score)
    members, non_members = _counts(is_member, level, n_levels)
    if not members.any() or not non_members.any():
        raise ValueError("The AUC needs at least one member and one non-member.")
    return _auc(members, non_members)


def roc_curve(is_member: BoolArray, score: FloatArray) -> _Rates:
    """The ROC's corners (fpr, tpr), each (distinct scores + 1,), from (0, 0) to (1, 1).

    No corner is dropped, equal scores make one corner. Raises ValueError as `auc` does.
    """
    level, n_levels = _levels(is_member, score)
    members, non_members = _counts(is_member, level, n_levels)
    if not members.any() or not non_members.any():
        raise ValueError("A ROC curve needs at least one member and one non-member.")
    return _rates(members, non_members)


def stratified_halves(is_member: BoolArray, rng: np.random.Generator) -> BoolArray:
    """A mask (n,) of a random half of the members and a random half of the non-members.

    Where a count is odd, the half outside the mask has the one more.
    """
    mask = np.zeros(len(is_member), dtype=bool)
    for side in (is_member, ~is_member):
        index = rng.permutation(np.flatnonzero(side))
        mask[index[: len(index) // 2]] = True
    return mask


def check_scores(is_member: BoolArray, score: FloatArray) -> None:
    """Refuse what is no membership and score for each example.

    Raises:
        ValueError: the shapes differ, `is_member` is not boolean, or a score is NaN; infinities are fine.
    """
    if is_member.ndim != 1 or is_member.shape != score.shape:
        raise ValueError(f"is_member and score must be of one shape (n,), got {is_member.shape} and {score.shape}.")
    if is_member.dtype != np.bool_:
        raise ValueError(f"is_member must be boolean, got {is_member.dtype}.")
    if np.isnan(score).any():
        raise ValueError(f"{int(np.isnan(score).sum())} of {len(score)} scores are NaN.")


def _levels(is_member: BoolArray, score: FloatArray) -> tuple[npt.NDArray[np.intp], int]:
    """Each score's place (n,) among the distinct scores, ascending from 0, and how many there are."""
    check_scores(is_member, score)
    distinct, level = np.unique(score, return_inverse=True)
    return level, len(distinct)


def _counts(
    is_member: BoolArray, level: npt.NDArray[np.intp], n_levels: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Members, and non-members, at each distinct score, ascending. All metrics follow from these."""
    return (
        np.bincount(level[is_member], minlength=n_levels),
        np.bincount(level[~is_member], minlength=n_levels),
    )


def _rates(members: npt.NDArray[np.intp], non_members: npt.NDArray[np.intp]) -> _Rates:
    """(fpr, tpr) when the k highest distinct scores are called members, for k = 0, 1, …"""
    fpr, tpr = (np.append(0, counts[::-1].cumsum()) / counts.sum() for counts in (non_members, members))
    return fpr, tpr


def _auc(members: npt.NDArray[np.intp], non_members: npt.NDArray[np.intp]) -> float:
    # Twice the number of ordered pairs is an integer, so an AUC of 0, 1 or 1/2 comes out exactly.
    twice_ordered_pairs = int(members @ (2 * non_members.cumsum() - non_members))
    return twice_ordered_pairs / (2 * int(members.sum()) * int(non_members.sum()))


def _auc_interval(members: npt.NDArray[np.intp], non_members: npt.NDArray[np.intp]) -> tuple[float, float]:
    """The 95 % interval of `membership_metrics` for the AUC of these counts per distinct score."""
    n_members, n_non_members = int(members.sum()), int(non_members.sum())
    estimate = _auc(members, non_members)
    all_pairs_alike = float(_TAIL ** (1 / min(n_members, n_non_members)))
    if estimate == 1:
        return all_pairs_alike, 1.0
    if estimate == 0:
        return 0.0, 1 - all_pairs_alike
    if len(members) == 1:
        return all_pairs_alike / 2, 1 - all_pairs_alike / 2

    # DeLong's placements: the share of non-members below a member, of members above a non-member.
    below = (non_members.cumsum() - non_members / 2) / n_non_members
    above = 1 - (members.cumsum() - members / 2) / n_members
    variance = float(
        members @ (below - estimate) ** 2 / ((n_members - 1) * n_members)
        + non_members @ (above - estimate) ** 2 / ((n_non_members - 1) * n_non_members)
    )
    half_width = -ndtri(_TAIL) * np.sqrt(variance) / (estimate * (1 - estimate))
    center = logit(estimate)
    return float(expit(center - half_width)), float(expit(center + half_width))


def _balanced_accuracy(
    is_member: BoolArray, level: npt.NDArray[np.intp], n_levels: int, rng: np.random.Generator
) -> float:
    """(TPR + TNR) / 2 at the threshold that is best on one random half, measured on the other.

    Both ways, averaged. Of equally good thresholds the highest is taken.
    """
    half = stratified_halves(is_member, rng)
    advantage = []
    for mask in (half, ~half):
        fpr, tpr = _rates(*_counts(is_member[mask], level[mask], n_levels))
        advantage.append(tpr - fpr)
    first, second = advantage
    return float((2 + second[first.argmax()] + first[second.argmax()]) / 4)
