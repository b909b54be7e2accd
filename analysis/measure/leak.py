"""What the primary attack finds of a defense: the TPR at the lowest FPR that the data can show, its null, a bound on ε."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from analysis.load import FPR_COLUMNS, POOLED_COLUMNS
from analysis.measure.targets import FRACTION, Measurements, Setting, measured_fpr
from analysis.statistics.estimates import Estimate

_LOWEST_FPR = 0.001
"""The FPR at which the field reports. A higher one is used only if the examples are too few."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The FPR at which all defenses of one setting and dataset have a TPR.

    If `pooled`, one threshold holds for all targets of a cell together, after each example's scores were standardized by those
    of targets without it; else each target has its own threshold.
    """

    fpr: float
    pooled: bool = False

    @property
    def decimals(self) -> int:
        """How many decimals a TPR at this FPR needs, so that guessing itself has two digits."""
        return max(3, 1 - math.floor(math.log10(self.fpr)))

    @property
    def words(self) -> str:
        """“TPR at 1 % FPR (pooled)”."""
        return f"TPR at {100 * self.fpr:g} % FPR" + (" (pooled)" if self.pooled else "")


def low_rate(measured: Measurements, setting: Setting, dataset: str) -> Rate | None:
    """The FPR at which the leak is reported; None if there are too few non-members for any.

    Without a primary attack it is `measured_fpr`. Otherwise it is 0.1 % of each target's own non-members, or else the lowest
    FPR from 0.1 % on of all targets together.
    """
    rows = measured.at(setting, dataset)
    primary = measured.primary(setting, dataset)
    own = measured_fpr(rows)
    if primary is not None:
        attacked = rows[rows["auc"].notna()]
        if len(attacked) and attacked[FPR_COLUMNS[_LOWEST_FPR]].notna().all():
            return Rate(fpr=_LOWEST_FPR)
        for fpr, column in POOLED_COLUMNS.items():
            if fpr >= _LOWEST_FPR and primary.cohorts[column].notna().all():
                return Rate(fpr=fpr, pooled=True)
    return None if own is None else Rate(fpr=own)


def tpr(measured: Measurements, setting: Setting, dataset: str, defense: str, rate: Rate) -> Estimate | None:
    """The TPR of one cell at `rate`; None if it was not measured, or the attack is broken there."""
    if not rate.pooled:
        return measured.estimate(setting, dataset, defense, FPR_COLUMNS[rate.fpr])
    row = cohort(measured, setting, dataset, defense)
    primary = measured.primary(setting, dataset)
    if row is None or primary is None or defense in primary.broken:
        return None
    return interval_of(row, POOLED_COLUMNS[rate.fpr])


def null_auc(measured: Measurements, setting: Setting, dataset: str, defense: str) -> Estimate | None:
    """The primary attack's AUC on a membership by which no model was trained; None without a primary attack."""
    row = cohort(measured, setting, dataset, defense)
    return None if row is None else interval_of(row, "null_auc")


def cohort(measured: Measurements, setting: Setting, dataset: str, defense: str) -> pd.Series | None:
    """The row of `cohorts` of the primary attack on one cell."""
    primary = measured.primary(setting, dataset)
    if primary is None or defense not in primary.cohorts.index:
        return None
    return primary.cohorts.loc[defense]


def interval_of(row: pd.Series, column: str) -> Estimate | None:
    """A value of `cohorts` with its recorded interval; None if it is null."""
    mean, low, high = (row[f"{column}{end}"] for end in ("", "_low", "_high"))
    if pd.isna(mean):
        return None
    known = not (pd.isna(low) or pd.isna(high))
    return Estimate(
        mean=float(mean),
        low=float(low) if known else None,
        high=float(high) if known else None,
        n=int(row["n_targets"]),
        over="resamples",
        bounds=FRACTION,
    )


def value(row: pd.Series | None, column: str) -> float | None:
    """A number of `cohorts`; None if it is null."""
    return None if row is None or pd.isna(row[column]) else float(row[column])
