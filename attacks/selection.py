"""The best of several membership attacks, by the papers' protocol and by an honest one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from attacks.base import IntArray, MembershipScores
from attacks.metrics import MembershipMetrics, auc, example_folds, membership_metrics

SELECTION_CORRELATION = 0.36
"""Maximum correlation between the two halves' measurements caused by choosing among scores with independent errors.

For J uninformative scores it is μ²/(J − 1), where μ is the mean of the largest of J standard normal deviates: .32 for J = 2,
.36 for 3, less for more. If the scores' errors agree, as those of thresholds do, it is closer to 0.
"""


@dataclass(frozen=True, kw_only=True)
class BestOf:
    """The best of several scores, by two protocols.

    `paper_protocol_auc`, of the score `paper_protocol_score`: the highest AUC over all examples, chosen on the same data
    that it is measured on, as papers and TensorFlow Privacy report it. It is optimistic: for six uninformative scores on
    1,000 members and 1,000 non-members it averages 0.516.
    `metrics`: honest. The population is split into halves. The score chosen on each half is measured on the other;
    `selected` names the two choices. Choice and fit use no label of the examples that are measured.
    """

    paper_protocol_auc: float
    paper_protocol_score: str
    selected: tuple[str, str]
    metrics: MembershipMetrics


def best_of(candidates: Mapping[str, MembershipScores], rng: np.random.Generator) -> BestOf:
    """Choose among `candidates` by AUC; among equals, the first.

    If a candidate has a `selection_score`, the choice on a half uses it. A candidate fitted on membership labels is
    therefore judged by labels of that half alone, and its `score` on the other half comes from an attacker fitted on this
    half. The halves are those that candidates were fitted on; otherwise `rng` draws them.

    To measure both halves together, scores are replaced by their ranks within each half, which needs no label. Each half's
    choice and fit depend on the other half's labels, so the errors of the two halves are correlated. Intervals assume a
    correlation of 1, the worst case, if both chosen scores were fitted on membership labels; otherwise
    `SELECTION_CORRELATION`. See `membership_metrics`.

    Rows are aligned by example id, so their order does not matter. `rng` also draws the halves inside
    `membership_metrics`.

    Raises:
        ValueError: there is no candidate; candidates differ in their examples or membership, or were fitted on different
            halves; an example appears twice; there are fewer than four members or four non-members; or a score is NaN.
    """
    aligned = _aligned(candidates)
    first = next(iter(aligned.values()))
    is_member = first.is_member
    n_members, n_non_members = int(is_member.sum()), int((~is_member).sum())
    if min(n_members, n_non_members) < 4:
        raise ValueError(
            "Choosing on one half and measuring on the other needs at least four members and four "
            f"non-members, got {n_members} and {n_non_members}."
        )
    on_all = {name: auc(is_member, one.score) for name, one in aligned.items()}
    paper_protocol_score = max(on_all, key=on_all.__getitem__)

    half = _half(aligned)
    if half is None:
        half = example_folds(first.example_id, is_member, 2, rng)
    selected = []
    rank = np.empty(len(half))
    for number in (0, 1):
        inside, outside = half == number, half != number
        on_half = {
            name: auc(is_member[inside], (one.score if one.selection_score is None else one.selection_score)[inside])
            for name, one in aligned.items()
        }
        selected.append(max(on_half, key=on_half.__getitem__))
        # From 0 to 1 in each half, and never equal across halves.
        rank[outside] = (rankdata(aligned[selected[-1]].score[outside]) - (0.25, 0.75)[number]) / outside.sum()
    is_fitted = all(aligned[name].fold is not None for name in selected)
    metrics = membership_metrics(is_member, rank, rng, half, 1.0 if is_fitted else SELECTION_CORRELATION)
    return BestOf(
        paper_protocol_auc=on_all[paper_protocol_score],
        paper_protocol_score=paper_protocol_score,
        selected=(selected[0], selected[1]),
        metrics=metrics,
    )


def _half(candidates: Mapping[str, MembershipScores]) -> IntArray | None:
    """The halves that candidates were fitted on; None if none was fitted on membership labels."""
    fitted = {name: one.fold for name, one in candidates.items() if one.fold is not None}
    if not fitted:
        return None
    reference_name, reference = next(iter(fitted.items()))
    for name, fold in fitted.items():
        if not np.array_equal(fold, reference):
            raise ValueError(f"Candidates {reference_name!r} and {name!r} were fitted on different halves.")
    if not np.array_equal(np.unique(reference), (0, 1)):
        raise ValueError(f"Candidate {reference_name!r} was fitted on folds other than 0 and 1.")
    return reference


def _aligned(candidates: Mapping[str, MembershipScores]) -> dict[str, MembershipScores]:
    """The candidates, all sorted by example id."""
    if not candidates:
        raise ValueError("There is no candidate to choose from.")
    # An id may occur once as a member and once as a non-member: train and test sets are often numbered separately.
    order = {name: np.lexsort((one.is_member, one.example_id)) for name, one in candidates.items()}
    rows = {
        name: np.stack((one.example_id, one.is_member.astype(np.int64)))[:, order[name]]
        for name, one in candidates.items()
    }
    reference_name, reference = next(iter(rows.items()))
    if (reference[:, 1:] == reference[:, :-1]).all(axis=0).any():
        raise ValueError(f"Candidate {reference_name!r} scores an example more than once.")
    for name, row in rows.items():
        if not np.array_equal(row, reference):
            raise ValueError(
                f"Candidates {reference_name!r} and {name!r} do not cover the same examples with the same membership."
            )
    return {name: _in_order(one, order[name]) for name, one in candidates.items()}


def _in_order(scores: MembershipScores, order: npt.NDArray[np.intp]) -> MembershipScores:
    return MembershipScores(
        name=scores.name,
        example_id=scores.example_id[order],
        is_member=scores.is_member[order],
        score=scores.score[order],
        fold=None if scores.fold is None else scores.fold[order],
        selection_score=None if scores.selection_score is None else scores.selection_score[order],
    )
