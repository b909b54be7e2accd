"""Rows of a cohort attack or of the best of all attacks: metrics on each target, and a summary of the cell."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from attacks.auditing import DEFAULT_DELTA, audit_membership
from attacks.base import MembershipScores
from attacks.cohort.attack import CohortScores
from attacks.cohort.best import CohortBest
from attacks.cohort.exposure import exposure_rows
from attacks.cohort.summary import summarize
from attacks.cohort.threads import in_order
from attacks.metrics import auc, membership_metrics
from models.datasets.base import DatasetError
from sweeper.results.store import Store
from sweeper.sweep import components
from sweeper.sweep.comparisons import ComparisonTask
from sweeper.trial import sources
from sweeper.trial.best_of import best_of_columns
from sweeper.trial.context import TrialContext
from sweeper.trial.rows import attack_row, png, score_columns
from sweeper.trial.target import load_data

logger = logging.getLogger(__name__)

_PICTURES = 16
"""How many of the most exposed examples keep their image."""


def cohort_tables(
    task: ComparisonTask,
    results: Sequence[CohortScores],
    context: TrialContext,
    rng: np.random.Generator,
    elapsed_s: Callable[[], float],
) -> dict[str, list[Mapping[str, Any]]]:
    """Record the scores and metrics of each target, and return the rows of the whole cohort.

    Raises:
        StorageError: the store cannot be written.
    """
    store, comparison_id = context.store, task.comparison_id
    recorded = store.read_part("trials", task.members[0].target_id).column("delta")[0].as_py()
    delta = DEFAULT_DELTA if recorded is None else recorded
    config = components.configuration("comparison", task.comparison) | {"queries": task.queries}
    sha256 = sources.of_comparison(task.comparison).sha256
    for_targets, for_summaries = (rng.spawn(len(each)) for each in (task.members, results))

    def measured(index: int) -> tuple[list[dict[str, Any]], list[MembershipScores]]:
        """The rows and scores of one target. A cohort's targets are in the order of their seeds, and so are the group's."""
        rows, all_scores, own_rng = [], [], for_targets[index]
        for result in results:
            scores = MembershipScores(
                name=result.name,
                example_id=result.example_id,
                is_member=result.scores.is_member[index],
                score=result.scores.score[index],
            )
            audit = audit_membership(scores, own_rng, delta)
            row = attack_row(task.members[index], comparison_id, task.name, "membership", config)
            row |= membership_metrics(scores.is_member, scores.score, own_rng).columns()
            rows.append(
                row
                | {
                    "status": "finished",
                    "component_sha256": sha256,
                    "score_name": result.name,
                    "uses_target_membership_labels": False,
                    "n_references": int(result.scores.n_references[index]),
                    "null_auc": auc(result.null.is_member[index], result.null.score[index]),
                    "epsilon_lower_bound": audit.epsilon_lower_bound,
                    "audit_delta": audit.delta,
                    "attack_time_s": elapsed_s(),
                }
            )
            all_scores.append(scores)
        return rows, all_scores

    found = in_order(measured, range(len(task.members)))
    for trial, (rows, all_scores) in zip(task.members, found, strict=True):
        store.write_attack(
            trial.target_id, comparison_id, rows, score_columns(trial.target_id, comparison_id, all_scores), None
        )
    first = results[0]
    summaries = in_order(lambda index: summarize(results[index], delta, for_summaries[index]), range(len(results)))
    return {
        "cohorts": [
            {"attack": task.name, "score_name": result.name, "is_first": result is first} | summary.columns()
            for result, summary in zip(results, summaries, strict=True)
        ],
        "exposure": [{"score_name": first.name, **row} for row in _with_pictures(exposure_rows(first), task, context)],
    }


def best_tables(
    task: ComparisonTask, result: CohortBest, store: Store, elapsed_s: float
) -> dict[str, list[Mapping[str, Any]]]:
    """Record the best of each target's attacks, and return the row of the whole cohort.

    Raises:
        StorageError: the store cannot be written.
    """
    config = components.configuration("comparison", task.comparison) | {"inputs": list(task.inputs)}
    sha256 = sources.of_comparison(task.comparison).sha256
    for trial, candidates, best, null_auc in zip(
        task.members, result.candidates, result.best, result.null_auc, strict=True
    ):
        row = attack_row(trial, task.comparison_id, task.name, "membership", config)
        row |= {
            "status": "finished",
            "component_sha256": sha256,
            **best_of_columns(best, candidates),
            "null_auc": null_auc,
            "attack_time_s": elapsed_s,
        }
        store.write_attack(trial.target_id, task.comparison_id, [row], None, None)
    return {"cohorts": [{"attack": task.name, "score_name": "selected", "is_first": True, **result.columns()}]}


def _with_pictures(rows: list[dict[str, Any]], task: ComparisonTask, context: TrialContext) -> list[dict[str, Any]]:
    """Add the images of the most exposed examples. Without them, the table is complete as well."""
    try:
        data = load_data(task.members[0], context)
    except (DatasetError, OSError, ValueError):
        logger.warning("the data of '%s' are not here; the most exposed examples have no pictures", task.dataset_label)
        return rows
    if not data.info.is_images:
        return rows
    position = {example: index for index, example in enumerate(data.example_id.tolist())}
    for row in sorted(rows, key=lambda row: (-row["exposure"], row["example_id"]))[:_PICTURES]:
        row["image_png"] = png(data.inputs[position[row["example_id"]]].cpu().numpy())
    return rows
