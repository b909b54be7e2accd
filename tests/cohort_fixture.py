"""Adds attacks on cohorts to the made-up results of `analysis_fixture`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from analysis_fixture import Rows, area, make_rows, png

from sweeper.results.schema import SCHEMAS

SCORES = {
    "lira": ("online_log_odds", "offline_log_odds"),
    "ratio": ("online", "offline"),
}
LEAK = {"baseline": 1.0, "dp_eps2": 0.02, "dp_eps8": 0.3, "l2": 0.9}
"""How far the mean score of members lies above that of non-members, in spreads."""


def with_cohorts(
    *,
    defenses: Sequence[str] = ("baseline", "dp_eps2", "l2"),
    seeds: int = 8,
    split: str = "coins",
    attacks: Sequence[str] = ("lira", "ratio"),
    n: int = 60,
    **options: Any,
) -> Rows:
    """Results of `seeds` seeds of each defense, attacked as cohorts; `options` go to `add_cohort`."""
    rows = make_rows(defenses=defenses, seeds=range(seeds), parts={"main": split}, n=n)
    for attack in attacks:
        add_cohort(rows, attack, **options)
    return rows


def cells(rows: Rows) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The trials of each dataset and defense, in the order of seeds."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows["trials"], key=lambda row: row["seed"]):
        if row["status"] == "finished":
            found.setdefault((row["dataset"], row["defense"]), []).append(row)
    return found


def add_cohort(
    rows: Rows,
    attack: str,
    *,
    seeds: Mapping[str, int] | None = None,
    leak: Mapping[str, float] = LEAK,
    broken: Collection[str] = (),
    images: bool = True,
    failed: Collection[str] = (),
    config: Mapping[str, Any] | None = None,
    mark: str = "",
) -> None:
    """One attack on the cohort of every cell.

    `seeds` limits the number of a defense's seeds; `broken` are defenses whose null does not hold 0.5, and on `failed` the
    comparison failed. `config` replaces options of the attack, and `mark` distinguishes its ids.
    """
    rng = np.random.default_rng(sum(map(ord, attack + mark)))
    options = {"name": attack, **({"spread": "shrunk"} if attack == "lira" else {}), **(config or {})}
    for (dataset, defense), trials in cells(rows).items():
        members = trials[: (seeds or {}).get(defense, len(trials))]
        comparison = f"{attack}{mark}-{dataset}-{defense}-{len(members)}"
        status = "failed" if defense in failed else "finished"
        rows["comparisons"].append(
            dict.fromkeys(SCHEMAS["comparisons"].names)
            | {
                "comparison_id": comparison,
                "comparison": attack,
                "config": json.dumps(options, sort_keys=True),
                "members": [each["target_id"] for each in members],
                "status": status,
                "error": None if status == "finished" else "AttackError: no answers",
            }
        )
        if status == "finished":
            for place, score in enumerate(SCORES[attack]):
                shift = leak.get(defense, 0.2) * (1.0 if place == 0 else 0.5)
                aucs = [_add_target(rows, rng, each, comparison, attack, score, shift) for each in members]
                rows["cohorts"].append(_cohort(comparison, attack, score, place == 0, aucs, defense in broken, trials))
            _add_exposure(rows, rng, comparison, SCORES[attack][0], trials[0], images)


def _add_target(
    rows: Rows, rng: np.random.Generator, trial: dict[str, Any], comparison: str, attack: str, score: str, shift: float
) -> float:
    n = trial["n_train"]
    member = np.arange(2 * n) < n
    scores = rng.standard_normal(2 * n) + shift * member
    auc = area(scores[member], scores[~member])
    rows["scores"] += [
        {
            "target_id": trial["target_id"],
            "attack_id": comparison,
            "score_name": score,
            "example_id": example,
            "is_member": bool(inside),
            "score": float(value),
        }
        for example, (inside, value) in enumerate(zip(member, scores, strict=True))
    ]
    rows["attacks"].append(
        dict.fromkeys(SCHEMAS["attacks"].names)
        | {
            "target_id": trial["target_id"],
            "attack_id": comparison,
            "attack": attack,
            "family": "membership",
            "score_name": score,
            "config": "{}",
            "status": "finished",
            "uses_target_membership_labels": False,
            "n_references": 6,
            "n_members": n,
            "n_non_members": n,
            "auc": auc,
            "auc_low": auc - 0.08,
            "auc_high": auc + 0.08,
            "null_auc": 0.5 + 0.01 * rng.standard_normal(),
            "advantage": 0.2,
            "advantage_null": 0.15,
            "balanced_accuracy": 0.5,
            "tpr_at_fpr_0.1": 0.1 + shift / 4,
            "epsilon_lower_bound": 0.1,
            "attack_time_s": 1.0,
        }
    )
    return auc


def _cohort(
    comparison: str,
    attack: str,
    score: str,
    is_first: bool,
    aucs: list[float],
    is_broken: bool,
    trials: list[dict[str, Any]],
) -> dict[str, Any]:
    mean = float(np.mean(aucs))
    null = 0.56 if is_broken else 0.503
    rate = max(0.01, 0.01 + (mean - 0.5) / 2)
    return dict.fromkeys(SCHEMAS["cohorts"].names) | {
        "comparison_id": comparison,
        "attack": attack,
        "score_name": score,
        "is_first": is_first,
        "n_targets": len(aucs),
        "n_units": len(aucs),
        "n_examples": 2 * trials[0]["n_train"],
        "auc": mean,
        "auc_low": mean - 0.02,
        "auc_high": mean + 0.02,
        "null_auc": null,
        "null_auc_low": null - 0.02,
        "null_auc_high": null + 0.02,
        "pooled_tpr_at_fpr_0.01": 0.9 * rate,
        "pooled_tpr_at_fpr_0.01_low": 0.5 * rate,
        "pooled_tpr_at_fpr_0.01_high": 1.5 * rate,
        "calibrated_tpr_at_fpr_0.01": rate,
        "calibrated_tpr_at_fpr_0.01_low": 0.6 * rate,
        "calibrated_tpr_at_fpr_0.01_high": 1.6 * rate,
        "top_share": max(0.01, mean - 0.5),
        "epsilon_lower_bound": max(0.0, 4 * (mean - 0.5)),
        "audit_delta": 1e-5,
    }


def _add_exposure(
    rows: Rows, rng: np.random.Generator, comparison: str, score: str, trial: dict[str, Any], images: bool
) -> None:
    exposure = 2 * rng.standard_normal(2 * trial["n_train"])
    most = set(np.argsort(-exposure)[:20].tolist())
    for example, value in enumerate(exposure):
        rows["exposure"].append(
            dict.fromkeys(SCHEMAS["exposure"].names)
            | {
                "comparison_id": comparison,
                "score_name": score,
                "example_id": example,
                "label": example % 10,
                "n_in": 4,
                "n_out": 4,
                "exposure": float(value),
                "found_at_fpr_0.01": 0.25,
                "found_at_fpr_0.01_low": 0.01,
                "found_at_fpr_0.01_high": 0.81,
                "image_png": png(rng.random((8, 8))) if images and example in most else None,
            }
        )
