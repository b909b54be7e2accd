"""LiRA: a likelihood ratio between the models that were trained with an example and those that were not."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr

from attacks.base import BoolArray
from attacks.cohort.attack import CohortAttack
from attacks.cohort.cohort import Cohort, Design
from attacks.cohort.medians import leave_out_medians
from attacks.cohort.moments import Gap, Pair, Side, leave_out_moments
from attacks.cohort.signals import SIGNALS
from attacks.cohort.threads import in_order
from attacks.membership import check_names

FloatArray = npt.NDArray[np.float64]

_LEAST_SPREAD = 1e-30
_LEAST_VARIANCE = _LEAST_SPREAD**2
_HALF_LOG_TWO_PI = np.log(2 * np.pi) / 2


@dataclass(frozen=True, kw_only=True)
class Lira(CohortAttack):
    """LiRA: how much likelier a target's answer is under Gaussians of the other seeds with the example than without it.

    The scores `online_…`, log N(φ; μ_in, σ_in) − log N(φ; μ_out, σ_out), and `offline_…`, log Φ((φ − μ_out) / σ_out), are in
    nats and averaged over the queries, for each of `signals` φ. `online_…_unaugmented` is the first by the example itself alone,
    for targets that were trained without augmentation; it is there if there are several queries. The means are over the
    references with and without the example. If there are none, the missing mean is the other one plus (or minus) the mean gap of
    all examples with both.
    Nothing is random.

    With few references, the gap μ_in − μ_out of an example is mostly noise, and its sign is often wrong. `spread: shrunk`
    therefore shrinks not only the variances but, in `online`, the gap, too: toward the mean gap, by how much true gaps vary over
    the examples (`Gap.shrunk_means`). With many references, little is shrunk; from about 32 on each side, papers take
    `per_example`. `offline` looks at IN references only if there is no other.

    `form: tensorflow_privacy` is for comparison with numbers from that library's `research/mi_lira_2021`. It differs in
    the centers, which are medians; in σ, which is divided by the count, and which `spread: pooled` does not center per
    example, so that it contains the differences between examples, and takes from the IN side for both sides of `online`; and
    in `offline`, which is −log N(φ; μ_out, σ_out): answers far from μ_out on either side count as members'. Deviations: the
    library cuts every example to the smallest number of IN (and of OUT) references of any example, and this form uses all;
    an example without the references that a score needs gets the target's median score. The scores are `tfp_online_…` and
    `tfp_offline_…`.

    Source: Carlini et al. 2022, equation 4 and section VI. Deviations of `form: paper`: means instead of medians; the pooled σ
    is of residuals and per target and query; `shrunk` is ours.
    """

    source: ClassVar[str] = "Carlini et al. 2022"
    revision: ClassVar[int] = 4

    form: Literal["paper", "tensorflow_privacy"] = "paper"
    signals: tuple[str, ...] = ("log_odds", "hinge")
    spread: Literal["shrunk", "per_example", "pooled"] = "shrunk"
    """σ of an example's references, or of all examples' together (IN and OUT apart), or between: shrunk toward the pooled σ.

    `shrunk` adds `prior_weight` references with the pooled variance to an example's own. In `online`, the ratio of σ_in and σ_out
    is that of the pooled ones, and the example's residuals on both sides set their common factor.
    """
    prior_weight: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("signal", self.signals, SIGNALS)
        if not 0 < self.prior_weight < math.inf:
            raise ValueError(f"prior_weight is {self.prior_weight}; it must be a finite number above 0")
        if self.form == "tensorflow_privacy" and self.spread == "shrunk":
            raise ValueError(
                "spread is shrunk, which TensorFlow Privacy does not have; with form tensorflow_privacy it must be per_example "
                "or pooled"
            )

    def score_names(self) -> tuple[str, ...]:
        return tuple(name for signal in self.signals for name in self._names(signal))

    def _names(self, signal: str) -> tuple[str, ...]:
        if self.form == "tensorflow_privacy":
            return f"tfp_online_{signal}", f"tfp_offline_{signal}"
        return f"online_{signal}", f"offline_{signal}", f"online_{signal}_unaugmented"

    def scores(
        self, cohort: Cohort, designs: Sequence[Design], rng: np.random.Generator
    ) -> list[dict[str, FloatArray]]:
        found: list[dict[str, FloatArray]] = [{} for _ in designs]
        n_scores = 3 if cohort.n_queries > 1 else 2
        for signal in self.signals:
            for one, scores in zip(found, self._by_signal(cohort, designs, signal), strict=True):
                one.update(zip(self._names(signal)[:n_scores], scores, strict=False))
        return found

    def _by_signal(self, cohort: Cohort, designs: Sequence[Design], name: str) -> list[FloatArray]:
        """For each design, all scores (3, targets, pool) by one signal."""
        fits = [self._fit(design, cohort) for design in designs]
        found = [np.empty((3, len(design.targets), cohort.n_examples)) for design in designs]

        def fit_block(block: slice) -> list[_Fit]:
            signal = cohort.signal(name, block)
            parts = [self._fit(design, cohort) for design in designs]
            for design, part in zip(designs, parts, strict=True):
                for row, (ins, outs) in enumerate(leave_out_moments(signal, design.member[:, block], design)):
                    part.add(row, ins, outs)
            return parts

        def score_block(block: slice) -> None:
            signal = cohort.signal(name, block)
            for design, fit, out in zip(designs, fits, found, strict=True):
                for row, both in enumerate(fit.scores(signal, design.member[:, block], design)):
                    for score, value in zip(out[:2, row, block], both, strict=True):
                        score[:] = value.mean(axis=1)
                    out[2, row, block] = both[0][:, 0]

        for parts in in_order(fit_block, cohort.blocks()):
            for fit, part in zip(fits, parts, strict=True):
                fit.include(part)
        for _ in in_order(score_block, cohort.blocks()):
            pass
        for each in found:
            missing = np.isnan(each)
            if missing.any():
                each[missing] = np.broadcast_to(np.nanmedian(each, axis=-1, keepdims=True), each.shape)[missing]
        return found

    def _fit(self, design: Design, cohort: Cohort) -> _Fit:
        shape = len(design.targets), cohort.n_queries
        return _Paper(self, *shape) if self.form == "paper" else _TensorFlowPrivacy(self, *shape)


class _Fit(ABC):
    """What is common to all examples, per target. Parts over disjoint blocks of examples add up."""

    @abstractmethod
    def add(self, row: int, ins: Side, outs: Side) -> None:
        """Count one target's block of examples."""

    @abstractmethod
    def include(self, other: Self) -> None:
        """Count the examples of another part, too."""

    @abstractmethod
    def scores(self, signal: FloatArray, member: BoolArray, design: Design) -> Iterator[tuple[FloatArray, FloatArray]]:
        """For each target: online and offline scores (block, queries), NaN where the references do not give them."""


class _Paper(_Fit):
    """Pooled residual variances of both sides, and their mean gap."""

    def __init__(self, attack: Lira, n_targets: int, n_queries: int) -> None:
        self._attack = attack
        self._squares = np.zeros((2, n_targets, n_queries))
        self._freedom = np.zeros((2, n_targets, 1))
        self._gap = Gap(n_targets, n_queries)

    def add(self, row: int, ins: Side, outs: Side) -> None:
        for side, moments in enumerate((ins, outs)):
            self._squares[side, row] += moments.squares.sum(axis=0)
            self._freedom[side, row] += moments.freedom.sum(axis=0)
        self._gap.add(row, ins, outs)

    def include(self, other: Self) -> None:
        self._squares += other._squares
        self._freedom += other._freedom
        self._gap.include(other._gap)

    def scores(self, signal: FloatArray, member: BoolArray, design: Design) -> Iterator[tuple[FloatArray, FloatArray]]:
        moments = leave_out_moments(signal, member, design)
        for row, (target, sides) in enumerate(zip(design.targets.tolist(), moments, strict=True)):
            value = signal[target]
            pooled_in, pooled_out = self._pooled(row)
            mean_in, mean_out = self._gap.means(row, *sides)
            variance_out = self._variance(sides[1], pooled_out)
            offline = log_ndtr((value - mean_out) / np.sqrt(variance_out))
            if self._attack.spread == "shrunk":
                pooled = np.maximum(pooled_in, _LEAST_VARIANCE), np.maximum(pooled_out, _LEAST_VARIANCE)
                variance_in, variance_out = self._common_variances(sides, pooled)
                mean_in, mean_out = self._gap.shrunk_means(row, *sides, (variance_in, variance_out), pooled)
            else:
                variance_in = self._variance(sides[0], pooled_in)
            online = _log_density(value, mean_in, np.sqrt(variance_in)) - _log_density(
                value, mean_out, np.sqrt(variance_out)
            )
            yield online, offline

    def _pooled(self, row: int) -> Pair:
        """Pooled variances (queries,). Without two references on any one side, half of the variance of all gaps, which is more."""
        if not self._freedom[:, row].any():
            half = self._gap.variance(row) / 2
            return half, half
        pooled_in, pooled_out = self._squares[:, row] / np.maximum(self._freedom[:, row], 1)
        return pooled_in, pooled_out

    def _variance(self, side: Side, pooled: FloatArray) -> FloatArray:
        """Variances (block, queries) by one side's references alone."""
        if self._attack.spread == "pooled":
            variance = np.broadcast_to(pooled, side.squares.shape)
        elif self._attack.spread == "per_example":
            variance = np.where(side.freedom > 0, side.squares / np.maximum(side.freedom, 1), pooled)
        else:
            weight = self._attack.prior_weight
            variance = (weight * pooled + side.squares) / (weight + side.freedom)
        return np.maximum(variance, _LEAST_VARIANCE)

    def _common_variances(self, sides: tuple[Side, Side], pooled: Pair) -> Pair:
        """Variances (block, queries) of both sides whose ratio is that of the pooled ones."""
        weight, (ins, outs) = self._attack.prior_weight, sides
        squares = ins.squares / pooled[0] + outs.squares / pooled[1]
        factor = (weight + squares) / (weight + ins.freedom + outs.freedom)
        return pooled[0] * factor, pooled[1] * factor


class _TensorFlowPrivacy(_Fit):
    """The number, sum and sum of squares of all values of a side, of all examples and queries."""

    def __init__(self, attack: Lira, n_targets: int, n_queries: int) -> None:
        self._attack = attack
        self._totals = np.zeros((n_targets, 2, 3))

    def add(self, row: int, ins: Side, outs: Side) -> None:
        for side, moments in enumerate((ins, outs)):
            values = moments.count.sum() * moments.mean.shape[1]
            sums = moments.count * moments.mean
            self._totals[row, side] += values, sums.sum(), (sums * moments.mean + moments.squares).sum()

    def include(self, other: Self) -> None:
        self._totals += other._totals

    def scores(self, signal: FloatArray, member: BoolArray, design: Design) -> Iterator[tuple[FloatArray, FloatArray]]:
        moments, medians = leave_out_moments(signal, member, design), leave_out_medians(signal, member, design)
        for target, (n_values, total, squares), sides, (median_in, median_out) in zip(
            design.targets.tolist(), self._totals.swapaxes(1, 2), moments, medians, strict=True
        ):
            value = signal[target]
            if self._attack.spread == "pooled":
                spread_in, spread_out = (
                    np.sqrt(np.maximum(squares / n_values - (total / n_values) ** 2, 0)) + _LEAST_SPREAD
                )
                without = _log_density(value, median_out, spread_in)
            else:
                spread_in, spread_out = (
                    np.sqrt(side.squares / np.maximum(side.count, 1)) + _LEAST_SPREAD for side in sides
                )
                without = _log_density(value, median_out, spread_out)
            offline = _log_density(value, median_out, spread_out) - _HALF_LOG_TWO_PI
            yield _log_density(value, median_in, spread_in) - without, -offline


def _log_density(value: FloatArray, mean: FloatArray, spread: FloatArray | np.float64) -> FloatArray:
    """But for −½ log 2π."""
    return -(((value - mean) / spread) ** 2) / 2 - np.log(spread)
