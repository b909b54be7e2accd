"""Which defense to choose by a stated rule, what it costs, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from analysis.measure.targets import GUESSING, Measurements, Setting
from analysis.measure.verdicts import ERROR_RATE, against_the_baseline, beats_guessing, may_be_lowest
from analysis.statistics.estimates import Estimate, quantile, sign
from analysis.statistics.power import seeds_to_tell

WITHIN = 2.0
"""How many percentage points below the best mean accuracy a choice may lie, where the user says nothing else."""

Verdict = Literal["less", "more", "untold"]


class PreferenceError(ValueError):
    """A preference has a value that it cannot have; the text says which."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """The rule by which a defense is the best.

    Without a `weight`: the lowest AUC among those whose mean accuracy is `within` so many percentage points of the best mean
    accuracy. With one: the highest accuracy − weight · (AUC − 0.5). An AUC below 0.5 counts as 0.5.

    Raises:
        PreferenceError: a value is below 0 or not finite.
    """

    within: float = WITHIN
    weight: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("within", self.within), ("weight", self.weight)):
            if value is not None and not 0 <= value < math.inf:
                raise PreferenceError(f"{name}: got {value!r}; it must be a number of at least 0")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The trade-off of one setting and dataset.

    `risk` and `accuracy` are each defense's changes against the baseline, with intervals that hold together. `lower` are the
    defenses that are shown to have a lower AUC. `eligible` are the arms among which the rule chooses, `best` is its choice, and
    `rivals` are those of them whose leak, or with a weight accuracy and leak together, may be as good, with 95 % confidence. `leak`
    says whether the baseline's AUC is shown to beat guessing; None if that is not known.
    """

    risk: Mapping[str, Estimate]
    accuracy: Mapping[str, Estimate]
    lower: tuple[str, ...]
    eligible: tuple[str, ...]
    best: str | None
    rivals: tuple[str, ...]
    leak: bool | None

    def verdict(self, defense: str) -> Verdict:
        """Whether a defense is shown to leak less than the baseline, more, or neither."""
        change = self.risk.get(defense)
        found = 0 if change is None or change.n < 2 else sign(change)
        return "less" if found == -1 else "more" if found == 1 else "untold"

    def seeds_to_tell(self, defense: str) -> int | None:
        """How many seeds would show a difference like the one seen, at the confidence of the verdicts."""
        return seeds_to_tell(self.risk.get(defense), 1 - ERROR_RATE / max(1, len(self.risk)))


def answer(measured: Measurements, setting: Setting, dataset: str, preference: Preference | None = None) -> Answer:
    """The answer for one setting and dataset. Without an AUC of the baseline there, nothing is compared with it."""
    preference = preference or Preference()
    risk = against_the_baseline(measured, setting, dataset, "auc")
    accuracy = against_the_baseline(measured, setting, dataset, "test_accuracy")
    p_value = beats_guessing(measured).get((setting.key, dataset, str(measured.baseline)))
    eligible, best, rivals = _choice(measured, setting, dataset, preference)
    return Answer(
        risk=risk,
        accuracy=accuracy,
        lower=tuple(defense for defense, change in risk.items() if change.n > 1 and sign(change) == -1),
        eligible=eligible,
        best=best,
        rivals=rivals,
        leak=None if p_value is None else p_value < ERROR_RATE,
    )


def _choice(
    measured: Measurements, setting: Setting, dataset: str, preference: Preference
) -> tuple[tuple[str, ...], str | None, tuple[str, ...]]:
    """The eligible arms, the best of them, and those that may be as good."""
    means: dict[str, tuple[float, float]] = {}
    for defense in measured.attacked(setting, dataset):
        accuracy = measured.estimate(setting, dataset, defense, "test_accuracy")
        auc = measured.estimate(setting, dataset, defense, "auc")
        if accuracy is not None and auc is not None:
            means[defense] = (accuracy.mean, max(auc.mean, GUESSING))
    if not means:
        return (), None, ()
    if preference.weight is not None:
        weight = preference.weight
        best = max(means, key=lambda defense: (means[defense][0] - weight * means[defense][1], means[defense][0]))
        others = [defense for defense in means if defense != best]
        rivals = [one for one in others if not _is_worse(measured, setting, dataset, one, best, weight, len(others))]
        return tuple(means), best, tuple(rivals)
    floor = max(accuracy for accuracy, _ in means.values()) - preference.within / 100
    eligible = [defense for defense, (accuracy, _) in means.items() if accuracy >= floor]
    best = min(eligible, key=lambda defense: (means[defense][1], -means[defense][0]))
    rivals = [one for one in may_be_lowest(measured, setting, dataset, eligible) if one != best]
    return tuple(eligible), best, tuple(rivals)


def _is_worse(
    measured: Measurements, setting: Setting, dataset: str, one: str, best: str, weight: float, n_others: int
) -> bool:
    """Whether accuracy − weight · AUC of `one` is shown to be below that of `best`, in a one-sided test at 0.05/`n_others`.

    The standard errors of both parts are added, which covers whatever their correlation is.
    """
    accuracy = measured.accuracy_difference(setting, dataset, one, best)
    auc = measured.risk_difference(setting, dataset, one, best)
    if accuracy is None or auc is None or not accuracy.error or auc.error is None or min(accuracy.n, auc.n) < 2:
        return False  # seeds that all agree are chance, and one seed shows no variation
    if weight and not auc.error:
        return False
    error = accuracy.error + weight * auc.error
    reach = quantile(1 - ERROR_RATE / n_others, min(accuracy.df, auc.df)) * error
    return accuracy.mean - weight * auc.mean + reach < 0
