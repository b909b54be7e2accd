"""Reconstruction errors by layer: where a decoder works, and how errors change against the baseline."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.measure.targets import Measurements, Setting, against_baseline
from analysis.statistics.estimates import estimate


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
    """Whether the decoder beats both controls, the mean image and an untrained target, by dataset, defense and layer.

    It does where its error on test images lies below the smaller control. With several seeds, the whole 95 % interval over
    seeds must lie below. Where a control was not measured, the answer is False.
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
    """The reconstructions of `setting`, with `works` (see `decoder_works`) and errors capped at the mean image's.

    The cap is fair because an attacker can always answer with the mean image.
    """
    rows = measured.inversion[measured.inversion["setting"] == setting.key]
    works = decoder_works(measured, setting)
    found = [works[key] for key in zip(rows["dataset"], rows["defense"], rows["layer"], strict=True)]
    return rows.assign(mse_test=np.fmin(rows["mse_test"], rows["mse_constant"]), works=np.array(found, dtype=bool))


def judged_changes(measured: Measurements, setting: Setting) -> pd.DataFrame | None:
    """Per target and layer `value`: the change in percent of the error against the baseline, where it supports a verdict.

    It supports one where the decoder of the target or of the baseline beats both controls. None without a baseline or
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
