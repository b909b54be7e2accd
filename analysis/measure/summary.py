"""One row per defense and dataset: guarantee, cost and attacks."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis import naming
from analysis.load import FPR_COLUMNS
from analysis.measure.cost import time_ratio, time_ratios
from analysis.measure.targets import Measurements, Setting, measured_fpr
from analysis.measure.verdicts import beats_guessing
from analysis.statistics.estimates import Estimate


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One defense on one dataset. `epsilon_spent` is the largest over seeds, and `guarantee` states it in words.

    `guessing_p` is the p-value of the AUC against 0.5, adjusted for all rows of the summary. `tpr` is measured at the
    false positive rate `fpr`. `tpr_examples` has the mean ends of the seeds' intervals over examples. `advantage_null` is
    the advantage of guessing with as many examples.
    """

    setting: Setting
    dataset: str
    defense: str
    n_seeds: int
    epsilon_spent: float | None
    delta: float | None
    accountant: str
    guarantee: str
    accuracy: Estimate | None
    auc: Estimate | None
    guessing_p: float | None
    fpr: float | None
    tpr: Estimate | None
    tpr_examples: tuple[float, float] | None
    advantage: Estimate | None
    advantage_null: float | None
    time_ratio: Estimate | None


def summaries(measured: Measurements) -> list[Summary]:
    """Every defense on every dataset: what it guarantees, what it costs, and how well the attacks did."""
    ratios = time_ratios(measured)
    p_values = beats_guessing(measured)
    found = []
    for setting, dataset in measured.rows():
        fpr = measured_fpr(measured.at(setting, dataset))
        for defense in measured.defenses:
            rows = measured.of(setting, dataset, defense)
            if rows.empty:
                continue
            epsilon, delta, accountant, guarantee = _guarantee(rows)
            found.append(
                Summary(
                    setting=setting,
                    dataset=dataset,
                    defense=defense,
                    n_seeds=len(rows),
                    epsilon_spent=epsilon,
                    delta=delta,
                    accountant=accountant,
                    guarantee=guarantee,
                    accuracy=measured.estimate(setting, dataset, defense, "test_accuracy"),
                    auc=measured.estimate(setting, dataset, defense, "auc"),
                    guessing_p=p_values.get((setting.key, dataset, defense)),
                    fpr=fpr,
                    tpr=None if fpr is None else measured.estimate(setting, dataset, defense, FPR_COLUMNS[fpr]),
                    tpr_examples=None if fpr is None else _mean_ends(rows, FPR_COLUMNS[fpr]),
                    advantage=measured.estimate(setting, dataset, defense, "advantage"),
                    advantage_null=_mean(rows["advantage_null"]),
                    time_ratio=time_ratio(ratios, setting, dataset, defense),
                )
            )
    return found


def _mean(values: pd.Series) -> float | None:
    known = values.dropna()
    return None if known.empty else float(known.mean())


def _mean_ends(rows: pd.DataFrame, column: str) -> tuple[float, float] | None:
    low, high = _mean(rows[f"{column}_low"]), _mean(rows[f"{column}_high"])
    return None if low is None or high is None else (low, high)


def _guarantee(rows: pd.DataFrame) -> tuple[float | None, float | None, str, str]:
    """ε, δ, the accountant and a sentence: the weakest of the seeds' guarantees."""
    if rows["epsilon_spent"].isna().any():
        reasons = sorted({str(reason) for reason in rows["no_guarantee_reason"].dropna()})
        why = "; ".join(reason.rstrip(". ") for reason in reasons) or "the reason was not recorded"
        return None, None, "", f"no formal guarantee: {why}"
    worst = rows.loc[rows["epsilon_spent"].idxmax()]
    epsilon, delta = float(worst["epsilon_spent"]), float(worst["delta"])
    accountant = str(worst["accountant"])
    how = [f"{accountant.upper()} accountant", f"{str(worst['sampling']).capitalize()} batches"]
    if not pd.isna(worst["adjacency"]):
        how.append(str(worst["adjacency"]).replace("_", " "))
    words = f"ε = {epsilon:.2f}, δ = {naming.scientific(delta)} ({', '.join(how)})"
    return epsilon, delta, accountant, words
