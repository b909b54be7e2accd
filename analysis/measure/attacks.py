"""Every membership attack on every cell: one row per defense, attack and score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from analysis.load import CALIBRATED_COLUMNS, FPR_COLUMNS, POOLED_COLUMNS, TNR_COLUMNS, Results
from analysis.measure.best_of import BEST_OF
from analysis.measure.leak import interval_of, value
from analysis.measure.primary import cohort_members, largest_cohorts
from analysis.measure.targets import FRACTION, Measurements, Setting
from analysis.statistics.estimates import Estimate, estimate

PAPERS_MAXIMUM = "papers_maximum"
"""The largest AUC over all scores of attacks on one target, on the data that it is reported on."""

STRONGEST, SELECTED = "strongest", "selected"
"""The best of all scores of each target, those of its cohort included, and the name of that choice as a score."""


@dataclass(frozen=True, kw_only=True)
class AttackOnCell:
    """One attack and score on one cell: means over the finished seeds with their t-intervals.

    `auc` and `balanced_accuracy` are None if the attack has none. `tpr` is at the lowest FPR that every seed has; of an attack
    that only decides, it is at its one operating point, `fpr` being the mean. `tnr` is of the losses' tail, at the lowest FNR
    that every seed has. Attacks on a cohort have the number of references and the rates over all targets of the cell together.
    """

    setting: Setting
    dataset: str
    defense: str
    attack: str
    score_name: str
    is_primary: bool
    n_references: float | None
    auc: Estimate | None
    null_auc: Estimate | None
    balanced_accuracy: Estimate | None
    fpr: float | None
    tpr: Estimate | None
    fnr: float | None
    tnr: Estimate | None
    pooled_fpr: float | None
    pooled_tpr: Estimate | None
    calibrated_tpr: Estimate | None
    top_share: float | None
    epsilon_lower_bound: float | None


def attacks_on_cells(results: Results, measured: Measurements) -> list[AttackOnCell]:
    """Every attack on every cell, in the order of datasets and defenses; the primary attack first, then by mean AUC."""
    attacks = results.attacks
    done = attacks[(attacks["status"] == "finished") & (attacks["family"] == "membership")]
    cells = measured.frame[["target_id", "setting", "dataset", "defense"]]
    members = cohort_members(results)
    largest = largest_cohorts(members, measured.frame)
    replaced = set(members["comparison_id"]) - set(largest["comparison_id"])
    rows = done[~done["attack_id"].isin(replaced)].merge(cells, on="target_id", how="inner")
    rows["score_name"] = rows["score_name"].mask(rows["attack"] == STRONGEST, SELECTED)
    by_cell = {
        (str(setting), str(dataset), str(defense)): here
        for (setting, dataset, defense), here in rows.groupby(["setting", "dataset", "defense"])
    }
    cohorts = largest.set_index(["comparison_id", "score_name"]).sort_index()
    found = []
    for setting, dataset in measured.rows():
        for defense in measured.defenses:
            here = by_cell.get((setting.key, dataset, defense))
            if here is not None:
                made = _of_cell(measured, cohorts, setting, dataset, defense, here)
                found += sorted(made, key=lambda one: (not one.is_primary, -(0.0 if one.auc is None else one.auc.mean)))
    return found


def _of_cell(
    measured: Measurements, cohorts: pd.DataFrame, setting: Setting, dataset: str, defense: str, rows: pd.DataFrame
) -> list[AttackOnCell]:
    primary = measured.primary(setting, dataset)
    chosen = "" if primary is None else str(primary.cohorts.loc[defense, "comparison_id"])
    # best_of has another id, and another selected score, on targets of another set of candidates.
    single = rows[rows["attack"] != BEST_OF]
    groups = [
        (str(attack), str(score), str(attack_id), one)
        for (attack, attack_id, score), one in single.assign(score_name=single["score_name"].fillna("")).groupby(
            ["attack", "attack_id", "score_name"]
        )
    ]
    best = rows[rows["attack"] == BEST_OF].drop_duplicates("target_id", keep="last")
    if len(best):
        of_best = dict.fromkeys([*FPR_COLUMNS.values(), "balanced_accuracy", "null_auc"])
        maximum = best.assign(auc=best["paper_protocol_auc"], **of_best)
        groups += [(BEST_OF, "", "", best), (PAPERS_MAXIMUM, "", "", maximum)]
    names = pd.Series([(attack, score) for attack, score, _, _ in groups], dtype=object)
    repeated = set(names[names.duplicated(keep=False)])
    made = []
    for attack, score, attack_id, one in groups:
        cohort = cohorts.loc[(attack_id, score)] if (attack_id, score) in cohorts.index else None
        cohort = cohort.iloc[0] if isinstance(cohort, pd.DataFrame) else cohort
        fpr, tpr = _lowest(one, FPR_COLUMNS)
        if one["decided_tpr"].notna().all():
            fpr, tpr = float(one["decided_fpr"].mean()), estimate(one["decided_tpr"], FRACTION)
        fnr, tnr = _lowest(one, TNR_COLUMNS)
        pooled = None if cohort is None else _lowest_pooled(cohort)
        made.append(
            AttackOnCell(
                setting=setting,
                dataset=dataset,
                defense=defense,
                attack=attack,
                score_name=f"{score}@{attack_id[:8]}" if (attack, score) in repeated else score,
                is_primary=primary is not None and attack_id == chosen and score == primary.score_name,
                n_references=float(one["n_references"].mean()) if one["n_references"].notna().any() else None,
                auc=estimate(one["auc"], FRACTION),
                null_auc=estimate(one["null_auc"], FRACTION) if cohort is None else interval_of(cohort, "null_auc"),
                balanced_accuracy=estimate(one["balanced_accuracy"], FRACTION),
                fpr=fpr,
                tpr=tpr,
                fnr=fnr,
                tnr=tnr,
                pooled_fpr=pooled,
                pooled_tpr=None if pooled is None else interval_of(cohort, POOLED_COLUMNS[pooled]),
                calibrated_tpr=None if pooled is None else interval_of(cohort, CALIBRATED_COLUMNS[pooled]),
                top_share=value(cohort, "top_share"),
                epsilon_lower_bound=value(cohort, "epsilon_lower_bound"),
            )
        )
    return made


def _lowest(rows: pd.DataFrame, columns: Mapping[float, str]) -> tuple[float | None, Estimate | None]:
    """The lowest rate whose column every row has, and the mean of that column."""
    rate = next((rate for rate, column in columns.items() if rows[column].notna().all()), None)
    return rate, None if rate is None else estimate(rows[columns[rate]], FRACTION)


def _lowest_pooled(cohort: pd.Series) -> float | None:
    return next((fpr for fpr, column in CALIBRATED_COLUMNS.items() if not pd.isna(cohort[column])), None)
