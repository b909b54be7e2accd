"""Which leaks and differences the results show, each at a stated error rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from analysis.measure.targets import Measurements, Setting
from analysis.statistics.estimates import Estimate, sign
from analysis.statistics.tests import holm

ERROR_RATE = 0.05
"""The largest probability that a table of verdicts contains a wrong one."""

Place = tuple[str, str, str]
"""A setting's key, a dataset and a defense."""


def beats_guessing(measured: Measurements) -> dict[Place, float | None]:
    """The p-value of each AUC against 0.5, adjusted for all AUCs of the report (Holm 1979); None without one."""
    places = [
        (setting, dataset, defense)
        for setting, dataset in measured.rows()
        for defense in measured.defenses
        if measured.estimate(setting, dataset, defense, "auc") is not None
    ]
    adjusted = holm([measured.p_guessing(*place) for place in places])
    return {(setting.key, dataset, defense): p for (setting, dataset, defense), p in zip(places, adjusted, strict=True)}


def against_the_baseline(
    measured: Measurements, setting: Setting, dataset: str, column: Literal["auc", "test_accuracy"]
) -> dict[str, Estimate]:
    """Each defense minus the baseline, paired by seed.

    The intervals hold together: each has a confidence of 1 − 0.05/(number of defenses), by Bonferroni.
    """
    difference = measured.risk_difference if column == "auc" else measured.accuracy_difference
    found = {
        defense: change
        for defense in measured.defenses
        if defense != measured.baseline
        and (change := difference(setting, dataset, defense, str(measured.baseline))) is not None
    }
    return {defense: change.at(1 - ERROR_RATE / len(found)) for defense, change in found.items()}


def may_be_lowest(measured: Measurements, setting: Setting, dataset: str, defenses: Iterable[str]) -> list[str]:
    """The defenses that include, with 95 % confidence, the one with the lowest attack AUC (Gupta 1965).

    A defense is ruled out if another one's AUC is lower, paired by seed, in a one-sided test at 0.05/(number of others).
    The true lowest is thus ruled out with a probability of at most 0.05.
    """
    labels = list(defenses)
    confidence = 1 - 2 * ERROR_RATE / max(1, len(labels) - 1)

    def is_higher(defense: str, other: str) -> bool:
        change = measured.risk_difference(setting, dataset, defense, other)
        return change is not None and change.n > 1 and sign(change.at(confidence)) == 1

    return [label for label in labels if not any(is_higher(label, other) for other in labels if other != label)]


def told(change: Estimate, above: str = "higher", below: str = "lower") -> str:
    """What the interval of a difference between two defenses shows, in words."""
    if change.few_examples:
        return "too few examples to tell"
    if change.n == 1:
        return "one seed, so this may be chance"
    found = sign(change)
    if found:
        return above if found == 1 else below
    return "two seeds are too few to tell" if change.n == 2 else f"cannot be told apart with {change.n} seeds"
