"""What the primary attack found, in sentences: rates with their nulls, bounds on ε, and the share of the most exposed."""

from __future__ import annotations

from analysis import naming
from analysis.measure.leak import cohort, low_rate, null_auc, tpr, value
from analysis.measure.primary import MOST_FALSE_ALARMS
from analysis.measure.summary import Summary
from analysis.measure.targets import Measurements, Setting
from analysis.tables.text import interval_text, number


def broken_sentence(measured: Measurements, setting: Setting, dataset: str) -> str:
    """Against which defenses the primary attack is broken; empty if it is against none."""
    primary = measured.primary(setting, dataset)
    if primary is None or not primary.broken:
        return ""
    nulls = [
        f"{naming.display(defense)} ({interval_text(found, 3)})"
        for defense in primary.broken
        if (found := null_auc(measured, setting, dataset, defense)) is not None
    ]
    return (
        f"The attack is broken against {naming.listing(nulls)}: its null, the AUC on a membership by which no model was trained, "
        "is not 0.5. No verdict is drawn there. A report in which all attacks are sound fails this check with a probability of "
        f"{MOST_FALSE_ALARMS:.0%}."
    )


def rate_sentences(measured: Measurements, setting: Setting, dataset: str) -> list[str]:
    """The TPR of each defense at the lowest FPR, and the attack's null; nothing without a primary attack."""
    rate = low_rate(measured, setting, dataset)
    if measured.primary(setting, dataset) is None or rate is None:
        return []
    rates = [
        f"{naming.display(defense)} {interval_text(found, 3)}"
        for defense in measured.defenses
        if (found := tpr(measured, setting, dataset, defense, rate)) is not None
    ]
    if not rates:
        return []
    nulls = [
        found.mean
        for defense in measured.attacked(setting, dataset)
        if (found := null_auc(measured, setting, dataset, defense)) is not None
    ]
    return [
        f"{rate.words}: {'; '.join(rates)}; guessing gives {rate.fpr:g}.",
        f"On a membership by which no model was trained (the null), the attack’s AUC is {number(min(nulls), 3)} to "
        f"{number(max(nulls), 3)}: no further from 0.5 than chance allows.",
    ]


def top_sentence(measured: Measurements, setting: Setting, dataset: str, defense: str) -> str:
    """The share of the leak that the most exposed 1 % carry; empty if it is not known."""
    share = value(cohort(measured, setting, dataset, defense), "top_share")
    if share is None:
        return ""
    return f"The most exposed 1 % of the examples carry {number(100 * share, 1)} % of the true positives."


def bound_sentences(rows: list[Summary]) -> list[str]:
    """For each private cell, the proved ε beside the lower bound that the primary attack shows over all seeds."""
    sentences = []
    for row in rows:
        bound, proved = row.epsilon_lower_bound, row.epsilon_spent
        if bound is None or proved is None:
            continue
        where = f"{naming.display(row.defense)} on {naming.display(row.dataset)}"
        where += f" ({row.setting.label})" if row.setting.label else ""
        text = f"{where}: ε = {naming.epsilon(proved)} is proved, and {naming.attack(row.attack)} over all seeds shows "
        if row.bound_ratio is None:
            sentences.append(f"{text}no ε above 0.")
        elif bound <= proved:
            sentences.append(f"{text}at least {number(bound, 2)}; the proof is {row.bound_ratio:,.3g} times that.")
        else:
            sentences.append(
                f"{text}at least {number(bound, 2)}, which is more: the proof or the attack is wrong, or the bound’s one chance in "
                "twenty came up."
            )
    return sentences
