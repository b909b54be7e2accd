"""Which defenses are shown to lower the risk, what they cost, and which of them costs least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.measure.targets import Measurements, Setting
from analysis.measure.verdicts import ERROR_RATE, against_the_baseline, beats_guessing, may_be_lowest
from analysis.statistics.estimates import Estimate, quantile, sign

ACCURACY_MARGIN = 0.02
"""A defense is costly if it is shown to lose more accuracy than that against the baseline; fixed beforehand."""

POWER = 0.8

Cost = Literal["costly", "cheap", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The trade-off of one setting and dataset.

    `risk` and `accuracy` are each defense's changes against the baseline, with intervals that hold together. `lower` are the
    defenses that are shown to have a lower AUC; `best` are those of them that may have the lowest of all, the most accurate
    first. `leak` says whether the baseline's AUC is shown to beat guessing; None if that is not known. `least_difference` is
    the AUC difference that these results would show with a probability of 0.8.
    """

    risk: Mapping[str, Estimate]
    accuracy: Mapping[str, Estimate]
    lower: tuple[str, ...]
    best: tuple[str, ...]
    leak: bool | None
    least_difference: float | None

    def cost(self, defense: str) -> Cost:
        """Whether the accuracy lost is shown to be above the margin, below it, or neither."""
        change = self.accuracy.get(defense)
        if change is None or change.low is None or change.high is None or change.n < 2:
            return "undecided"
        if change.high < -ACCURACY_MARGIN:
            return "costly"
        return "cheap" if change.low > -ACCURACY_MARGIN else "undecided"


def answer(measured: Measurements, setting: Setting, dataset: str) -> Answer:
    """The answer for one setting and dataset; empty if the baseline has no AUC there."""
    risk = against_the_baseline(measured, setting, dataset, "auc")
    accuracy = against_the_baseline(measured, setting, dataset, "test_accuracy")
    lower = tuple(defense for defense, change in risk.items() if change.n > 1 and sign(change) == -1)
    p_value = beats_guessing(measured).get((setting.key, dataset, str(measured.baseline)))
    errors = [
        (quantile(1 - ERROR_RATE / (2 * len(risk)), change.df) + quantile(POWER)) * change.error
        for change in risk.values()
        if change.error
    ]

    def by_accuracy(defense: str) -> float:
        found = measured.estimate(setting, dataset, defense, "test_accuracy")
        return -1.0 if found is None else -found.mean

    possible = may_be_lowest(measured, setting, dataset, measured.attacked(setting, dataset)) if lower else []
    lowest = sorted(lower, key=lambda defense: risk[defense].mean)[:1]
    return Answer(
        risk=risk,
        accuracy=accuracy,
        lower=lower,
        # The lowest mean is never ruled out, but it may be of a defense that is not shown to be below the baseline.
        best=tuple(sorted((defense for defense in lower if defense in possible), key=by_accuracy) or lowest),
        leak=None if p_value is None else p_value < ERROR_RATE,
        least_difference=float(np.median(errors)) if errors else None,
    )
