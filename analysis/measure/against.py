"""Two sweeps side by side: what got better from the first to the second, within intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from analysis import naming
from analysis.measure.targets import FRACTION_CHANGE, GUESSING, Measurements, bounds_of
from analysis.measure.verdicts import ERROR_RATE
from analysis.statistics.estimates import Estimate, sign

COLUMNS = ("test_accuracy", "auc")

Outcome = Literal["better", "worse", "cannot be told"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One quantity of one arm in both sweeps, and the second minus the first. `outcome` says whether the second is better."""

    arm: str
    where: str
    column: str
    first: Estimate
    second: Estimate
    difference: Estimate
    outcome: Outcome


def compared(first: Measurements, second: Measurements) -> list[Change]:
    """Every arm that both sweeps have on one dataset and setting, by its label.

    AUCs are compared where the same attack judges both, and one below 0.5 counts as 0.5. The sweeps are taken as independent, so the
    difference has the sum of the squared errors, with Welch's degrees of freedom. All intervals hold together (Bonferroni).
    """
    settings = {setting.key: setting for setting in second.settings}
    pairs = [
        (setting, settings[setting.key], dataset, defense, column)
        for setting, dataset in first.rows()
        if setting.key in settings
        for defense in first.defenses
        for column in COLUMNS
    ]
    found = []
    for setting, other, dataset, defense, column in pairs:
        one, two = first.estimate(setting, dataset, defense, column), second.estimate(other, dataset, defense, column)
        if column == "auc" and first.judge(setting, dataset) != second.judge(other, dataset):
            continue
        if one is not None and two is not None:
            found.append((first.row_label(setting, dataset), defense, column, one, two))
    return [_change(*each, 1 - ERROR_RATE / len(found)) for each in found]


def _change(where: str, defense: str, column: str, one: Estimate, two: Estimate, confidence: float) -> Change:
    least = GUESSING if column == "auc" else 0.0
    mean = max(two.mean, least) - max(one.mean, least)
    difference = Estimate(mean=mean, low=None, high=None, n=min(one.n, two.n), bounds=FRACTION_CHANGE)
    if one.error and two.error and min(one.n, two.n) > 1:
        squares = one.error**2, two.error**2
        df = sum(squares) ** 2 / sum(square**2 / each.df for square, each in zip(squares, (one, two), strict=True))
        difference = Estimate(
            mean=mean,
            low=None,
            high=None,
            n=min(one.n, two.n),
            error=math.sqrt(sum(squares)),
            df=df,
            bounds=bounds_of(column, "difference"),
        ).at(confidence)
    is_good = 1 if column == "test_accuracy" else -1
    outcome: Outcome = "cannot be told"
    if (found := sign(difference)) in (1, -1):
        outcome = "better" if found == is_good else "worse"
    return Change(
        arm=naming.display(defense),
        where=where,
        column=column,
        first=one,
        second=two,
        difference=difference,
        outcome=outcome,
    )
