"""LiRA: a likelihood ratio between the models that were trained with an example and those that were not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr

from attacks.cohort.attack import CohortAttack
from attacks.cohort.cohort import Cohort, Design
from attacks.cohort.moments import Gap, Side, leave_out_moments

FloatArray = npt.NDArray[np.float64]

_LEAST_SPREAD = 1e-30


@dataclass(frozen=True, kw_only=True)
class Lira(CohortAttack):
    """LiRA: how much likelier a target's answer is under Gaussians of the other seeds with the example than without it."""

    source: ClassVar[str] = "Carlini et al. 2022"

    signals: tuple[str, ...] = ("log_odds", "hinge")
    spread: Literal["shrunk", "per_example", "pooled"] = "shrunk"
    prior_weight: float = 4.0

    def score_names(self) -> tuple[str, ...]:
        return tuple(f"{mode}_{signal}" for signal in self.signals for mode in ("online", "offline"))

    def scores(
        self, cohort: Cohort, designs: Sequence[Design], rng: np.random.Generator
    ) -> list[dict[str, FloatArray]]:
        fits = {signal: [_Fit(len(design.targets), cohort.n_queries) for design in designs] for signal in self.signals}
        for block in cohort.blocks():
            for name, per_design in fits.items():
                signal = cohort.signal(name, block)
                for design, fit in zip(designs, per_design, strict=True):
                    for row, (ins, outs) in enumerate(leave_out_moments(signal, design.member[:, block], design)):
                        fit.add(row, ins, outs)
        found = [
            {name: np.empty((len(design.targets), cohort.n_examples)) for name in self.score_names()}
            for design in designs
        ]
        for block in cohort.blocks():
            for name, per_design in fits.items():
                signal = cohort.signal(name, block)
                for design, fit, out in zip(designs, per_design, found, strict=True):
                    moments = leave_out_moments(signal, design.member[:, block], design)
                    for row, (target, (ins, outs)) in enumerate(zip(design.targets.tolist(), moments, strict=True)):
                        online, offline = self._densities(signal[target], ins, outs, fit, row)
                        out[f"online_{name}"][row, block] = online.mean(axis=1)
                        out[f"offline_{name}"][row, block] = offline.mean(axis=1)
        return found

    def _densities(
        self, value: FloatArray, ins: Side, outs: Side, fit: _Fit, row: int
    ) -> tuple[FloatArray, FloatArray]:
        mean_in, mean_out = fit.gap.means(row, ins, outs)
        in_variance, out_variance = fit.variances(row)
        spread_in, spread_out = self._spread(ins, in_variance), self._spread(outs, out_variance)
        online = _log_density(value, mean_in, spread_in) - _log_density(value, mean_out, spread_out)
        return online, log_ndtr((value - mean_out) / spread_out)

    def _spread(self, side: Side, pooled: FloatArray) -> FloatArray:
        if self.spread == "pooled":
            variance = np.broadcast_to(pooled, side.squares.shape)
        elif self.spread == "per_example":
            variance = np.where(side.freedom > 0, side.squares / np.maximum(side.freedom, 1), pooled)
        else:
            variance = (self.prior_weight * pooled + side.squares) / (self.prior_weight + side.freedom)
        spread: FloatArray = np.sqrt(variance) + _LEAST_SPREAD
        return spread


class _Fit:
    """What is common to all examples, per target and query: pooled residual variances of both sides, and their mean gap."""

    def __init__(self, n_targets: int, n_queries: int) -> None:
        self._squares = np.zeros((2, n_targets, n_queries))
        self._freedom = np.zeros((2, n_targets, 1))
        self.gap = Gap(n_targets, n_queries)

    def add(self, row: int, ins: Side, outs: Side) -> None:
        for side, moments in enumerate((ins, outs)):
            self._squares[side, row] += moments.squares.sum(axis=0)
            self._freedom[side, row] += moments.freedom.sum(axis=0)
        self.gap.add(row, ins, outs)

    def variances(self, row: int) -> tuple[FloatArray, FloatArray]:
        ins, outs = self._squares[:, row] / np.maximum(self._freedom[:, row], 1)
        return ins, outs


def _log_density(value: FloatArray, mean: FloatArray, spread: FloatArray) -> FloatArray:
    return -(((value - mean) / spread) ** 2) / 2 - np.log(spread)
