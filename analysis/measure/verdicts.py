"""Which leaks and which differences these results show, each at a stated error rate, and what supports no verdict."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from analysis.measure.measurements import FRACTION_CHANGE, Measurements, Setting, against_baseline
from analysis.statistics.estimates import Estimate, estimate, sign
from analysis.statistics.tests import holm

ERROR_RATE = 0.05
"""Of each table of verdicts: the probability that anything in it is said wrongly is at most this."""

Place = tuple[str, str, str]
"""A setting's key, a dataset and a defense."""


def beats_guessing(measured: Measurements) -> dict[Place, float | None]:
    """The p-value of each AUC against 0.5, adjusted for all of the report together (Holm 1979); None without one."""
    places = [
        (setting, dataset, defense)
        for setting, dataset in measured.rows()
        for defense in measured.defenses
        if measured.estimate(setting, dataset, defense, "auc") is not None
    ]
    adjusted = holm([measured.p_guessing(*place) for place in places])
    return {(setting.key, dataset, defense): p for (setting, dataset, defense), p in zip(places, adjusted, strict=True)}


def against_the_baseline(measured: Measurements, setting: Setting, dataset: str, column: str) -> dict[str, Estimate]:
    """Each defense minus the baseline, paired by seed, in `auc` or `test_accuracy`.

    The intervals hold together: each has a confidence of 1 − 0.05/(number of defenses), by Bonferroni.
    """
    found = {
        defense: change
        for defense in measured.defenses
        if defense != measured.baseline
        and (change := _difference(measured, setting, dataset, defense, str(measured.baseline), column)) is not None
    }
    return {defense: change.at(1 - ERROR_RATE / len(found)) for defense, change in found.items()}


def _difference(
    measured: Measurements, setting: Setting, dataset: str, defense: str, reference: str, column: str
) -> Estimate | None:
    if column == "auc":
        return measured.risk_difference(setting, dataset, defense, reference)
    paired = against_baseline(measured.at(setting, dataset), reference, column, "difference")
    return estimate(paired.loc[paired["defense"] == defense, "value"], FRACTION_CHANGE)


def may_be_lowest(measured: Measurements, setting: Setting, dataset: str, defenses: Iterable[str]) -> list[str]:
    """The defenses among which, with 95 % confidence, is the one of the lowest attack AUC.

    A defense is ruled out where some other's AUC is lower, paired by seed, in a one-sided test at 0.05/(number of
    others): the true lowest is then ruled out with a probability of at most 0.05 (Gupta 1965).
    """
    labels = list(defenses)
    confidence = 1 - 2 * ERROR_RATE / max(1, len(labels) - 1)

    def is_higher(defense: str, other: str) -> bool:
        change = measured.risk_difference(setting, dataset, defense, other)
        return change is not None and change.n > 1 and sign(change.at(confidence)) == 1

    return [label for label in labels if not any(is_higher(label, other) for other in labels if other != label)]


def told(change: Estimate, above: str = "higher", below: str = "lower") -> str:
    """What an interval of a difference between two defenses says, in words."""
    if change.n == 1:
        return "one seed, so nothing tells this from the luck of one run"
    found = sign(change)
    if found:
        return above if found == 1 else below
    return "two seeds are too few to tell" if change.n == 2 else f"cannot be told apart with {change.n} seeds"


def decoder_works(measured: Measurements, setting: Setting) -> dict[tuple[str, str, str], bool]:
    """Whether the decoder beats both controls, by dataset, defense and layer: the mean image and an untrained target.

    It does where its error on test images lies below the smaller of both, with the 95 % interval over seeds where
    there are several. Where a control was not measured, it is not shown to.
    """
    if measured.inversion.empty:
        return {}
    rows = measured.inversion[measured.inversion["setting"] == setting.key]
    controls = rows[["mse_constant", "mse_untrained"]].min(axis=1, skipna=False)
    margins = rows.assign(margin=rows["mse_test"] - controls)
    works = {}
    for (dataset, defense, layer), cell in margins.groupby(["dataset", "defense", "layer"]):
        margin = None if cell["margin"].isna().any() else estimate(cell["margin"])
        highest = None if margin is None else margin.mean if margin.high is None else margin.high
        works[str(dataset), str(defense), str(layer)] = highest is not None and highest < 0
    return works


def judged_inversion(measured: Measurements, setting: Setting) -> pd.DataFrame:
    """The reconstructions of `setting` with errors as verdicts take them, and `works`, whether the decoder does.

    An error above the mean image's counts as the mean image's, which an attacker can always answer with.
    """
    rows = measured.inversion[measured.inversion["setting"] == setting.key]
    works = decoder_works(measured, setting)
    found = [works[key] for key in zip(rows["dataset"], rows["defense"], rows["layer"], strict=True)]
    return rows.assign(mse_test=np.fmin(rows["mse_test"], rows["mse_constant"]), works=np.array(found, dtype=bool))


def judged_changes(measured: Measurements, setting: Setting) -> pd.DataFrame | None:
    """Per target and layer `value`: the change of the error against the baseline in percent, where it supports a verdict.

    It does where the decoder beats both controls on one of the two. None without a baseline or reconstructions.
    """
    if measured.baseline is None or measured.inversion.empty:
        return None
    rows = judged_inversion(measured, setting)
    changes = against_baseline(rows, measured.baseline, "mse_test", "percent", extra="layer")
    reference = rows[(rows["defense"] == measured.baseline) & rows["works"]]
    by_baseline = set(zip(reference["dataset"], reference["layer"], strict=True))
    places = zip(changes["dataset"], changes["layer"], strict=True)
    return changes[changes["works"] | np.array([place in by_baseline for place in places], dtype=bool)]
