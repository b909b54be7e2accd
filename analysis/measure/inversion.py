"""Reconstruction errors by layer: where a decoder works, and how errors change against the baseline."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import stdtr

from analysis.measure.targets import Measurements, Setting, against_baseline
from analysis.measure.verdicts import ERROR_RATE
from analysis.statistics.estimates import estimate
from analysis.statistics.tests import holm


def inversion_settings(measured: Measurements) -> list[Setting]:
    """Settings with reconstructions, the official split first."""
    present = set(measured.inversion["setting"]) if len(measured.inversion) else set()
    return [setting for setting in measured.settings if setting.key in present]


def layers(measured: Measurements, setting: Setting) -> list[str]:
    """The cut points from the input to the output."""
    rows = measured.inversion[measured.inversion["setting"] == setting.key]
    return [str(layer) for layer in rows.sort_values("layer_index")["layer"].unique()]


def mse_changes(measured: Measurements, setting: Setting) -> pd.DataFrame | None:
    """Per target and layer `value`: 100·(MSE − MSE_baseline)/MSE_baseline on test images, same seed."""
    if measured.baseline is None or measured.inversion.empty:
        return None
    rows = measured.inversion[measured.inversion["setting"] == setting.key]
    changes = against_baseline(rows, measured.baseline, "mse_test", "percent", extra="layer")
    return None if changes.empty else changes


def decoder_works(measured: Measurements, setting: Setting) -> dict[tuple[str, str, str], bool]:
    """Whether the decoder is shown to beat both controls, the mean image and an untrained target, by dataset, defense and layer.

    The decoder must have a smaller error on test images than the better control, by Student's one-sided test over seeds,
    adjusted for all reconstructions of the report together (Holm 1979). The probability that even one decoder is wrongly said
    to work is at most 0.05. One seed, several seeds with the same value, or a control that was not measured show nothing.
    """
    if measured.inversion.empty:
        return {}
    controls = measured.inversion[["mse_constant", "mse_untrained"]].min(axis=1, skipna=False)
    margins = measured.inversion.assign(margin=measured.inversion["mse_test"] - controls)
    cells = list(margins.groupby(["setting", "dataset", "defense", "layer"])["margin"])
    adjusted = holm([_p_below_zero(margin) for _, margin in cells])
    return {
        (str(dataset), str(defense), str(layer)): p is not None and p < ERROR_RATE
        for ((key, dataset, defense, layer), _), p in zip(cells, adjusted, strict=True)
        if key == setting.key
    }


def _p_below_zero(margins: pd.Series) -> float | None:
    """One-sided p-value over seeds of a mean of zero or above; None if the seeds give no estimate of chance."""
    found = None if margins.isna().any() else estimate(margins)
    return None if found is None or not found.error else float(stdtr(found.df, found.mean / found.error))


def why_no_decoder(measured: Measurements, setting: Setting) -> str:
    """Why no decoder of `setting` is shown to work, as part of a sentence."""
    seeds = measured.inversion.loc[measured.inversion["setting"] == setting.key, "seed"].nunique()
    if seeds == 1:
        return "one seed cannot show what a decoder can do"
    return "no decoder is shown to beat both controls, the mean image and an untrained target"


def judged_inversion(measured: Measurements, setting: Setting) -> pd.DataFrame:
    """The reconstructions of `setting`, with `works` (see `decoder_works`) and errors capped at the mean image's.

    The cap is fair because an attacker can always answer with the mean image.
    """
    rows = measured.inversion[measured.inversion["setting"] == setting.key]
    works = decoder_works(measured, setting)
    found = [works[key] for key in zip(rows["dataset"], rows["defense"], rows["layer"], strict=True)]
    return rows.assign(mse_test=np.fmin(rows["mse_test"], rows["mse_constant"]), works=np.array(found, dtype=bool))


def judged_changes(measured: Measurements, setting: Setting) -> pd.DataFrame | None:
    """Per target and layer `value`: the change in percent of the error against the baseline, where it supports a verdict.

    It supports one if the decoder of the target or of the baseline is shown to beat both controls. None without a baseline or
    without reconstructions.
    """
    if measured.baseline is None or measured.inversion.empty:
        return None
    rows = judged_inversion(measured, setting)
    changes = against_baseline(rows, measured.baseline, "mse_test", "percent", extra="layer")
    reference = rows[(rows["defense"] == measured.baseline) & rows["works"]]
    by_baseline = set(zip(reference["dataset"], reference["layer"], strict=True))
    places = zip(changes["dataset"], changes["layer"], strict=True)
    return changes[changes["works"] | np.array([place in by_baseline for place in places], dtype=bool)]
