"""Ratio: a target's confidence in the true class over the mean confidence of reference models, as in RMIA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from attacks.cohort.attack import CohortAttack
from attacks.cohort.cohort import Cohort, Design
from attacks.cohort.moments import Gap, leave_out_moments

FloatArray = npt.NDArray[np.float64]

_LEAST = 1e-300
_MODES = ("online", "offline")


@dataclass(frozen=True, kw_only=True)
class Ratio(CohortAttack):
    """Ratio: the target's probability of the true class over its mean under the other seeds, as RMIA ranks examples.

    With p the target's probability of the true class, the score is log(p / p̄) in nats, averaged over the queries:

    - `online`: p̄ = ½ (mean over references with the example + mean over references without it). A mean over all of
      them would depend on how many have the example.
    - `offline`: p̄ = ½ [(1 + a) · mean over references without the example + 1 − a], with `offline_a` for a.

    RMIA's own form, `rmia_online` and `rmia_offline`, is the share of examples z outside the pool, which no model was trained
    on, with (p/p̄)(x) > gamma · (p/p̄)(z). For one target it is a non-decreasing function of p/p̄, so it ranks that target's
    examples as the ratio does, up to ties; it differs where scores of several targets are pooled. Queries are averaged as in
    the ratio. For z, both means of `rmia_online` are the mean over all references.

    If no reference has an example, or all have it, the missing mean is the other one plus (or minus) the mean difference of
    the two over all examples with both. Probabilities and their complements are kept apart, so that a p that rounds to 1
    keeps its rank. Nothing is random.

    Source: Zarifzadeh et al. 2024, equations 8 to 10. Deviations: the offline mean is over all references without the example;
    queries are averaged on the log scale; p is the plain softmax.
    """

    source: ClassVar[str] = "Zarifzadeh et al. 2024 (RMIA)"

    offline_a: float = 0.3
    """a of RMIA: 0 takes p̄ as if members were always answered with certainty, 1 as if membership made no difference."""
    gamma: float = 1.0
    """γ of RMIA's own form."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.offline_a <= 1:
            raise ValueError(f"offline_a is {self.offline_a}; it must be from 0 to 1")
        if not self.gamma > 0:
            raise ValueError(f"gamma is {self.gamma}; it must be above 0")

    def score_names(self) -> tuple[str, ...]:
        return (*_MODES, *(f"rmia_{mode}" for mode in _MODES))

    def scores(
        self, cohort: Cohort, designs: Sequence[Design], rng: np.random.Generator
    ) -> list[dict[str, FloatArray]]:
        gaps = [Gap(len(design.targets), 2 * cohort.n_queries) for design in designs]
        for block in cohort.blocks():
            probability = _both(cohort.signal("log_odds", block))
            for design, gap in zip(designs, gaps, strict=True):
                for row, (ins, outs) in enumerate(leave_out_moments(probability, design.member[:, block], design)):
                    gap.add(row, ins, outs)
        found = [
            {name: np.empty((len(design.targets), cohort.n_examples)) for name in self.score_names()}
            for design in designs
        ]
        others: list[dict[str, list[FloatArray]]] = [{mode: [] for mode in _MODES} for _ in designs]
        for block in (*cohort.blocks(), *cohort.other_blocks()):
            in_pool = block.start < cohort.n_examples
            odds = cohort.signal("log_odds", block)
            probability = _both(odds)
            for number, (design, gap) in enumerate(zip(designs, gaps, strict=True)):
                member = design.member[:, block] if in_pool else np.zeros(odds.shape[:2], dtype=bool)
                moments = leave_out_moments(probability, member, design)
                rows = [
                    self._log_ratios(odds[target], *(gap.means(row, ins, outs) if in_pool else (outs.mean, outs.mean)))
                    for row, (target, (ins, outs)) in enumerate(zip(design.targets.tolist(), moments, strict=True))
                ]
                for index, mode in enumerate(_MODES):
                    ratios = np.stack([row[index] for row in rows])
                    if in_pool:
                        found[number][mode][:, block] = ratios
                    else:
                        others[number][mode].append(ratios)
        for one, population in zip(found, others, strict=True):
            for mode in _MODES:
                one[f"rmia_{mode}"] = self._shares(one[mode], np.concatenate(population[mode], axis=1))
        return found

    def _log_ratios(self, odds: FloatArray, mean_in: FloatArray, mean_out: FloatArray) -> tuple[FloatArray, FloatArray]:
        """log(p / p̄) of one target's examples (block,), online and offline; the means are of p and of 1 − p."""
        mean_in, mean_out = np.clip(mean_in, 0, 1), np.clip(mean_out, 0, 1)
        a, n_queries = self.offline_a, odds.shape[1]
        certain = np.repeat([1.0, 0.0], n_queries)
        means = (mean_in + mean_out) / 2, ((1 + a) * mean_out + (1 - a) * certain) / 2
        log_p = -np.logaddexp(0, -odds)
        online, offline = ((log_p - _log(*np.split(mean, 2, axis=1))).mean(axis=1) for mean in means)
        return online, offline

    def _shares(self, ratio: FloatArray, population: FloatArray) -> FloatArray:
        """The share of the population's ratios that each ratio exceeds by gamma, per target."""
        limit = ratio - np.log(self.gamma)
        return np.stack(
            [np.searchsorted(np.sort(z), x, side="left") / len(z) for x, z in zip(limit, population, strict=True)]
        )


def _both(odds: FloatArray) -> FloatArray:
    """p and 1 − p (models, block, 2 · queries) from log-odds, each with full relative precision."""
    return np.concatenate([expit(odds), expit(-odds)], axis=-1)


def _log(probability: FloatArray, complement: FloatArray) -> FloatArray:
    """The logarithm of a probability that may round to 1."""
    near_one = complement < 0.5
    result: FloatArray = np.where(
        near_one, np.log1p(-np.where(near_one, complement, 0)), np.log(np.maximum(probability, _LEAST))
    )
    return result
