"""The ε of releasing several private runs together, from the recorded Rényi divergences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

Curve = Sequence[Mapping[str, float]]
"""Rényi divergences of one run: `order` and `divergence` of each."""


def joint_epsilon(curves: Sequence[Curve], delta: float) -> float | None:
    """ε at `delta` of releasing all runs; None if they have no order in common.

    Divergences of mechanisms with independent randomness add up at each order. The sum at the best order is converted to ε.
    The result is invalid for runs that share noise or batches.

    Source: Mironov 2017, proposition 1; Canonne, Kamath & Steinke 2020, proposition 12 (conversion).
    """
    by_order = [{point["order"]: point["divergence"] for point in curve} for curve in curves]
    orders = np.array(sorted(set.intersection(*map(set, by_order)) if by_order else ()))
    if not len(orders):
        return None
    divergence = np.array([sum(curve[order] for curve in by_order) for order in orders])
    epsilons = divergence + np.log1p(-1 / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)
    return float(max(0.0, epsilons.min()))


def sharing(private: pd.DataFrame) -> pd.Series:
    """Whether each row of `trials` drew the same batches as another row, as paired mechanisms of one seed do."""
    paired = private["paired_batches"].fillna(False).astype(bool)
    return paired & private["seed"].where(paired).duplicated(keep=False)
