"""What a defense costs in training time."""

from __future__ import annotations

import pandas as pd

from analysis.measure.targets import NOT_NEGATIVE, Measurements, Setting, against_baseline
from analysis.statistics.estimates import Estimate, estimate


def time_ratios(measured: Measurements) -> pd.DataFrame | None:
    """The targets with `value`: training time over that of the baseline of the same dataset and seed."""
    if measured.baseline is None or measured.baseline not in set(measured.frame["defense"]):
        return None
    return against_baseline(measured.frame, measured.baseline, "train_time_s", "ratio")


def time_ratio(ratios: pd.DataFrame | None, setting: Setting, dataset: str, defense: str) -> Estimate | None:
    """Mean and interval over seeds of the time ratio of one cell; None without a baseline."""
    if ratios is None:
        return None
    here = (ratios["setting"] == setting.key) & (ratios["dataset"] == dataset)
    return estimate(ratios.loc[here & (ratios["defense"] == defense), "value"], NOT_NEGATIVE)
