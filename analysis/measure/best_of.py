"""The attack that judges a target without a cohort: the best of those on single targets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.load import FPR_COLUMNS, ScoreKey

BEST_OF = "best_of"

MEMBERSHIP = [
    "auc",
    "auc_low",
    "auc_high",
    "advantage",
    "advantage_null",
    *FPR_COLUMNS.values(),
    *(f"{column}_{end}" for column in FPR_COLUMNS.values() for end in ("low", "high")),
    "paper_protocol_auc",
    "paper_protocol_score",
    "null_auc",
    "n_references",
]
"""The columns of `attacks` that each target has of its attack."""


def best_of(attacks: pd.DataFrame) -> pd.DataFrame:
    """One row per target: its best_of row with the most candidates, and the key of the selected score."""
    done = attacks[attacks["status"] == "finished"]
    best = done[done["attack"] == BEST_OF].copy()
    best["n_candidates"] = [0 if value is None else len(value) for value in best["candidates"]]
    best = best.sort_values("n_candidates", kind="stable").drop_duplicates("target_id", keep="last")
    single = done[(done["family"] == "membership") & (done["attack"] != BEST_OF)]
    rows = best[["target_id", "score_name", "n_candidates", "n_members", "n_non_members", *MEMBERSHIP]].rename(
        columns={
            "score_name": "selected_score",
            "n_members": "attacked_members",
            "n_non_members": "attacked_non_members",
        }
    )
    where = single.groupby("target_id").indices
    scores = single[["attack_id", "attack", "score_name"]].astype(str).to_numpy()
    rows["score_key"] = [
        _score_key(str(target), str(selected), scores[where[target]]) if target in where else None
        for target, selected in zip(rows["target_id"], rows["selected_score"], strict=True)
    ]
    return rows


def _score_key(target: str, selected: str, scores: npt.NDArray[np.object_]) -> ScoreKey | None:
    """The key of the score that best_of selected, which is named attack/score. `scores` has rows of id, attack, score."""
    # One attack under two configurations gives two scores of one name. All but the first carry their attack's id.
    name, _, beginning = selected.partition("@")
    for attack_id, attack, score in scores:
        if name in (f"{attack}/{score}", score) and attack_id.startswith(beginning):
            return target, attack_id, score
    return None
