"""Which defenses no other defense beats on accuracy and on risk together."""

from __future__ import annotations

from collections.abc import Mapping

from analysis.measure.leak import Rate, tpr
from analysis.measure.targets import GUESSING, Measurements, Setting
from analysis.statistics.estimates import Estimate


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points (utility, risk) that none dominates, from the lowest risk up.

    Higher utility and lower risk are better. A point is dominated if another is at least as good on both and better on
    one, so equal points are on the front together. The front compares means and ignores their intervals.
    """

    def dominated(name: str) -> bool:
        utility, risk = points[name]
        return any(
            other_utility >= utility and other_risk <= risk and (other_utility, other_risk) != (utility, risk)
            for other_utility, other_risk in points.values()
        )

    front = [name for name in points if not dominated(name)]
    return sorted(front, key=lambda name: (points[name][1], points[name][0]))


def risk(measured: Measurements, setting: Setting, dataset: str, defense: str, column: str | Rate) -> Estimate | None:
    """The risk of one cell: a column, or the TPR at a rate."""
    if isinstance(column, Rate):
        return tpr(measured, setting, dataset, defense, column)
    return measured.estimate(setting, dataset, defense, column)


def front(
    measured: Measurements, setting: Setting, dataset: str, column: str | Rate, chance: float = GUESSING
) -> list[str]:
    """The defenses on the front of test accuracy (up) and the risk `column` (down), by their means.

    `chance` is the value that guessing gives. A mean below it is noise and counts as `chance`.
    """
    points: dict[str, tuple[float, float]] = {}
    for defense in measured.defenses:
        found = risk(measured, setting, dataset, defense, column)
        utility = measured.estimate(setting, dataset, defense, "test_accuracy")
        if found is not None and utility is not None:
            points[defense] = (utility.mean, max(found.mean, chance))
    return pareto_front(points)
