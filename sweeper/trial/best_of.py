"""The best of a target's membership attacks: as papers report it, and selected without bias."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from attacks.base import (
    AttackError,
    MembershipScores,
)
from attacks.selection import BestOf, best_of
from models.seeds import Stream, numpy_generator
from sweeper.results.expected import BEST_OF, BEST_OF_REVISION
from sweeper.results.store import Store
from sweeper.sweep import components
from sweeper.sweep.identity import candidate_ids
from sweeper.sweep.trial import Trial
from sweeper.trial.rows import attack_row


def best_of_config(trial: Trial) -> dict[str, Any]:
    return {"name": BEST_OF, "revision": BEST_OF_REVISION, "candidates": sorted(candidate_ids(trial.attacks))}


def record_best_of(trial: Trial, own_id: str, store: Store) -> None:
    """Compare all membership scores of the target: the papers' maximum and the unbiased selection.

    Raises:
        AttackError: one of the compared attacks failed.
    """
    compared = candidate_ids(trial.attacks)
    if not all(store.has_attack(trial.target_id, each) for each in compared):
        raise AttackError("one of the compared attacks has failed")
    names = {each: components.name_of("attack", trial.attack_ids[each]) for each in compared}
    candidates = recorded_scores(store, trial.target_id, names)
    started = time.perf_counter()
    best = best_of(candidates, numpy_generator(trial.seed, Stream.ATTACK, int(own_id[:8], 16)))
    row = attack_row(trial, own_id, BEST_OF, "membership", best_of_config(trial))
    row |= {"status": "finished", **best_of_columns(best, candidates), "attack_time_s": time.perf_counter() - started}
    store.write_attack(trial.target_id, own_id, [row], None, None)


def recorded_scores(store: Store, target_id: str, names: Mapping[str, str]) -> dict[str, MembershipScores]:
    """The recorded scores of some attacks on a target, each named `attack/score`. `names` are the attacks by their ids.

    Raises:
        DamagedError: scores are missing or damaged.
    """
    found: dict[str, MembershipScores] = {}
    for each, name in names.items():
        frame = store.read_part("scores", f"{target_id}.{each}").to_pandas()
        for score_name, rows in frame.groupby("score_name", sort=False):
            key = f"{name}/{score_name}"
            key = key if key not in found else f"{key}@{each[:6]}"
            found[key] = MembershipScores(
                name=str(score_name),
                example_id=rows["example_id"].to_numpy(),
                is_member=rows["is_member"].to_numpy(),
                score=rows["score"].to_numpy(),
                fold=_known(rows["fold"], np.int64),
                selection_score=_known(rows["selection_score"], np.float64),
            )
    return found


def best_of_columns(best: BestOf, candidates: Mapping[str, MembershipScores]) -> dict[str, Any]:
    """What the table `attacks` has of a selection."""
    return {
        "score_name": best.selected[0],
        "selected_scores": list(best.selected),
        "uses_target_membership_labels": any(candidates[selected].fold is not None for selected in best.selected),
        "candidates": list(candidates),
        "paper_protocol_auc": best.paper_protocol_auc,
        "paper_protocol_score": best.paper_protocol_score,
        **best.metrics.columns(),
    }


def _known(column: pd.Series, dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
    """A column of scores; None if the attack has none."""
    return None if column.isna().all() else column.to_numpy(dtype)
