"""One row per defense and dataset: guarantee, cost and attacks."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis import naming
from analysis.load import FPR_COLUMNS
from analysis.measure.best_of import BEST_OF
from analysis.measure.cost import time_ratio, time_ratios
from analysis.measure.leak import Rate, cohort, low_rate, null_auc, tpr, value
from analysis.measure.targets import Measurements, Setting
from analysis.measure.verdicts import beats_guessing
from analysis.statistics.estimates import Estimate


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One defense on one dataset. `epsilon_spent` is the largest over seeds, and `guarantee` states it in words.

    `epsilon_with_search` also counts the search that chose the settings; the targets were trained anew after it. If the sweep asks
    so, it `counts_search` where there is one ε to show.

    `guessing_p` is the p-value of the AUC against 0.5, adjusted for all rows of the summary. `tpr` is measured at the
    false positive rate `rate`. `tpr_examples` has the mean ends of the seeds' intervals over examples. `advantage_null` is
    the advantage of guessing with as many examples.

    `attack` and `score_name` are those of the attack that judges. A primary attack has the mean number of references,
    `null_auc`, and a lower bound on the seeds' common ε. If it `is_broken`, there is no AUC and no TPR.
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
    rate: Rate | None
    tpr: Estimate | None
    tpr_examples: tuple[float, float] | None
    advantage: Estimate | None
    advantage_null: float | None
    time_ratio: Estimate | None
    attack: str = BEST_OF
    score_name: str = ""
    n_references: float | None = None
    null_auc: Estimate | None = None
    is_broken: bool = False
    epsilon_lower_bound: float | None = None
    epsilon_with_search: float | None = None
    counts_search: bool = False

    @property
    def fpr(self) -> float | None:
        """The false positive rate of `tpr`."""
        return None if self.rate is None else self.rate.fpr

    @property
    def epsilon_shown(self) -> float | None:
        """The ε to say where there is room for one: with the search if the sweep asks so; None if that one is not proved."""
        return self.epsilon_with_search if self.counts_search else self.epsilon_spent

    @property
    def epsilon_other(self) -> float | None:
        """The other of the two: that of one run, or that with the search."""
        return self.epsilon_spent if self.counts_search else self.epsilon_with_search

    @property
    def bound_ratio(self) -> float | None:
        """The ε of one run over its lower bound; None without either, or if the bound is zero.

        Targets are attacked, not the search before them, so this is the ε that the bound is about.
        """
        bound = self.epsilon_lower_bound
        return None if self.epsilon_spent is None or not bound else self.epsilon_spent / bound


def summaries(measured: Measurements) -> list[Summary]:
    """Every defense on every dataset: what it guarantees, what it costs, and how well the attacks did."""
    ratios = time_ratios(measured)
    p_values = beats_guessing(measured)
    found = []
    for setting, dataset in measured.rows():
        rate = low_rate(measured, setting, dataset)
        column = None if rate is None or rate.pooled else FPR_COLUMNS[rate.fpr]
        primary = measured.primary(setting, dataset)
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
                    rate=rate,
                    tpr=None if rate is None else tpr(measured, setting, dataset, defense, rate),
                    tpr_examples=None if column is None else _mean_ends(rows, column),
                    advantage=measured.estimate(setting, dataset, defense, "advantage"),
                    advantage_null=_mean(rows["advantage_null"]),
                    time_ratio=time_ratio(ratios, setting, dataset, defense),
                    attack=BEST_OF if primary is None else primary.attack,
                    score_name="" if primary is None else primary.score_name,
                    n_references=_mean(rows["n_references"]),
                    null_auc=null_auc(measured, setting, dataset, defense),
                    is_broken=primary is not None and defense in primary.broken,
                    epsilon_with_search=_largest(rows["epsilon_trained_anew"]),
                    counts_search=bool((rows["epsilon_shown"] == "search").any()),
                    epsilon_lower_bound=value(cohort(measured, setting, dataset, defense), "epsilon_lower_bound"),
                )
            )
    return found


def _mean(values: pd.Series) -> float | None:
    known = values.dropna()
    return None if known.empty else float(known.mean())


def _largest(values: pd.Series) -> float | None:
    return None if values.isna().any() else float(values.max())


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
    words = f"ε = {naming.epsilon(epsilon)}, δ = {naming.scientific(delta)} ({', '.join(how)})"
    return epsilon, delta, accountant, words
