"""Means with 95 % intervals, and when two of them can be told apart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit  # the t quantile alone: importing scipy.stats takes a second

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval; `low` and `high` are None where there is no interval.

    `n` is the number of seeds. `over` says what the interval covers: "seeds" is the t-interval over the
    seeds' values, so it holds what changes from one training run to another; "examples" is the interval
    that the attack gave for its one run, so it holds the choice of examples only and is narrower than the
    truth.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    over: Literal["seeds", "examples"] = "seeds"

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval, or None."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """Mean of `values` with the two-sided Student t-interval, mean ± t(0.975, n − 1)·s/√n.

    Nulls and NaNs are left out. One value has no interval; no value gives None. The values are taken as
    independent and near normal, which for three seeds is an assumption, not something they can show.
    """
    known = np.array([value for value in values if value is not None], dtype=float)
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    mean = float(known.mean())
    if len(known) == 1:
        return Estimate(mean=mean, low=None, high=None, n=1)
    t = float(stdtrit(len(known) - 1, (1 + CONFIDENCE) / 2))
    half = t * float(known.std(ddof=1)) / math.sqrt(len(known))
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=len(known))


def compare(first: Estimate | None, second: Estimate | None) -> int | None:
    """1 where `first` lies clearly above `second`, −1 clearly below, 0 where the intervals overlap.

    None where there is no interval over seeds: then nothing tells the difference from the luck of one run.
    Asking that the intervals be disjoint is stricter than a t-test of the difference, and can be checked by
    eye on a figure.
    """
    if first is None or second is None or "examples" in (first.over, second.over):
        return None
    return _order(first, second)


def sign(value: Estimate | None, reference: float = 0.0) -> int | None:
    """1 or −1 where the interval lies above or below `reference`, 0 where it holds it, None without one.

    An interval over examples counts: it says what holds for the one target that was trained.
    """
    return _order(value, Estimate(mean=reference, low=reference, high=reference, n=1))


def _order(first: Estimate | None, second: Estimate | None) -> int | None:
    if first is None or second is None or first.low is None or second.low is None:
        return None
    if first.high is None or second.high is None:
        return None
    if first.low > second.high:
        return 1
    return -1 if first.high < second.low else 0
