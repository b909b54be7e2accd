"""Which defenses no other defense beats on accuracy and on risk together."""

from __future__ import annotations

from collections.abc import Mapping


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points (utility, risk) that none dominates, from the lowest risk up.

    Utility is better when higher, risk when lower. A point is dominated where another is at least as good
    on both and better on one, so equal points are on the front together. The front is one of means: it
    does not know their intervals.
    """

    def dominated(name: str) -> bool:
        utility, risk = points[name]
        return any(
            other_utility >= utility and other_risk <= risk and (other_utility, other_risk) != (utility, risk)
            for other_utility, other_risk in points.values()
        )

    front = [name for name in points if not dominated(name)]
    return sorted(front, key=lambda name: (points[name][1], points[name][0]))
