"""The best of several membership attacks, reported as papers do and reported honestly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attacks.base import BoolArray, MembershipScores
from attacks.metrics import MembershipMetrics, auc, membership_metrics, stratified_halves


@dataclass(frozen=True, kw_only=True)
class BestOf:
    """The best of several scores, twice.

    `paper_protocol_auc`, of the score `paper_protocol_score`: the highest AUC over all examples, chosen
    on the very scores it is measured on, as papers and TensorFlow Privacy report it. Optimistic: for six
    scores that know nothing, on 1,000 members and 1,000 non-members, it averages 0.516.
    `metrics`, of the score `selected`: honest. The score was chosen on one half of the examples,
    `metrics` was measured on the other, so it has half as many members and non-members. Where candidates are
    cross-fitted (`trained_attackers`), their scores on the two halves are not quite independent, and a small
    optimism remains.
    """

    paper_protocol_auc: float
    paper_protocol_score: str
    selected: str
    metrics: MembershipMetrics


def best_of(candidates: Mapping[str, MembershipScores], rng: np.random.Generator) -> BestOf:
    """Choose among `candidates` by AUC; of equals, the first.

    Rows are aligned by example id, so their order does not matter. `rng` draws the stratified halves, and
    those inside `membership_metrics`.

    Raises:
        ValueError: no candidate, candidates that do not cover the same examples with the same membership,
            an example that comes twice, fewer than four members or four non-members, or a NaN score.
    """
    is_member, scores = _aligned(candidates)
    n_members, n_non_members = int(is_member.sum()), int((~is_member).sum())
    if min(n_members, n_non_members) < 4:
        raise ValueError(
            "Choosing on one half and measuring on the other needs at least four members and four "
            f"non-members, got {n_members} and {n_non_members}."
        )
    on_all = {name: auc(is_member, score) for name, score in scores.items()}
    paper_protocol_score = max(on_all, key=on_all.__getitem__)

    half = stratified_halves(is_member, rng)
    on_half = {name: auc(is_member[half], score[half]) for name, score in scores.items()}
    selected = max(on_half, key=on_half.__getitem__)
    return BestOf(
        paper_protocol_auc=on_all[paper_protocol_score],
        paper_protocol_score=paper_protocol_score,
        selected=selected,
        metrics=membership_metrics(is_member[~half], scores[selected][~half], rng),
    )


def _aligned(
    candidates: Mapping[str, MembershipScores],
) -> tuple[BoolArray, dict[str, npt.NDArray[np.float64]]]:
    """The membership, and each candidate's scores, all in the order of the example ids."""
    if not candidates:
        raise ValueError("There is no candidate to choose from.")
    # An id may stand for one member and one non-member: train and test sets are often numbered apart.
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
    scores = {name: one.score[order[name]] for name, one in candidates.items()}
    return reference[1].astype(np.bool_), scores
