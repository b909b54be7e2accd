"""Ratio: a target's confidence in the true class over the mean confidence of reference models, as in RMIA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from attacks.base import AttackError
from attacks.cohort.attack import CohortAttack
from attacks.cohort.cohort import Cohort, Design
from attacks.cohort.moments import Gap, leave_out_moments
from attacks.cohort.threads import in_order

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
    the ratio. For z, both means of `rmia_online` are the mean over all references. Without such examples, there is only the ratio.

    If no reference has an example, or all have it, the missing mean is the other one plus (or minus) the mean difference of
    the two over all examples with both. Probabilities and their complements are kept apart, so that a p that rounds to 1
    keeps its rank. Nothing is random.

    `form: privacy_meter` is for comparison with numbers from that library's `run_rmia`, whose score is `privacy_meter`: the
    share of `rmia_offline` at gamma 1, by the first query alone. Its mean over references without the example is of the k
    highest of the probabilities that are left when those of references with it are set to 0, where k is half of the number of
    references. With coins, this is biased: an example that more than k references lack gets the mean of the highest ones, and
    zeros enter the mean of one that fewer lack. For z, which all references lack, it is the mean of the higher half. This is
    why it is not the default. All models' probabilities are then held in memory, 8 bytes each.

    Source: Zarifzadeh et al. 2024, equations 8 to 10. Deviations: the offline mean is over all references without the example;
    queries are averaged on the log scale; p is the plain softmax.
    """

    source: ClassVar[str] = "Zarifzadeh et al. 2024 (RMIA)"

    form: Literal["paper", "privacy_meter"] = "paper"
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
        if self.form == "privacy_meter" and self.gamma != 1:
            raise ValueError(f"gamma is {self.gamma}; with form privacy_meter it must be 1")

    def score_names(self) -> tuple[str, ...]:
        if self.form == "privacy_meter":
            return ("privacy_meter",)
        return (*_MODES, *(f"rmia_{mode}" for mode in _MODES))

    def scores(
        self, cohort: Cohort, designs: Sequence[Design], rng: np.random.Generator
    ) -> list[dict[str, FloatArray]]:
        has_others = bool(list(cohort.other_blocks()))
        if self.form == "privacy_meter":
            if not has_others:
                raise AttackError(
                    "The models' answers are all about the pool, and this form needs examples that no model was trained on. Record "
                    "answers about test examples, too."
                )
            pool, population = (
                np.concatenate(
                    list(in_order(lambda block: expit(cohort.signal("log_odds", block)[..., 0]), blocks)), axis=1
                )
                for blocks in (cohort.blocks(), cohort.other_blocks())
            )
            return [{"privacy_meter": privacy_meter(pool, population, design, self.offline_a)} for design in designs]
        gaps = self._gaps(cohort, designs)
        found = [{mode: np.empty((len(design.targets), cohort.n_examples)) for mode in _MODES} for design in designs]

        def ratios_of(block: slice) -> list[tuple[FloatArray, ...]]:
            """For each design, online and offline log-ratios (targets, block)."""
            in_pool = block.start < cohort.n_examples
            odds = cohort.signal("log_odds", block)
            probability = _both(odds)
            ratios = []
            for design, gap in zip(designs, gaps, strict=True):
                member = design.member[:, block] if in_pool else np.zeros(odds.shape[:2], dtype=bool)
                moments = leave_out_moments(probability, member, design)
                rows = [
                    self._log_ratios(odds[target], *(gap.means(row, ins, outs) if in_pool else (outs.mean, outs.mean)))
                    for row, (target, (ins, outs)) in enumerate(zip(design.targets.tolist(), moments, strict=True))
                ]
                ratios.append(tuple(np.stack(each) for each in zip(*rows, strict=True)))
            return ratios

        for block, in_pool in zip(cohort.blocks(), in_order(ratios_of, cohort.blocks()), strict=True):
            for one, both in zip(found, in_pool, strict=True):
                for mode, each in zip(_MODES, both, strict=True):
                    one[mode][:, block] = each
        if not has_others:
            return found
        others = list(in_order(ratios_of, cohort.other_blocks()))
        for number, one in enumerate(found):
            for index, mode in enumerate(_MODES):
                z = np.concatenate([ratios[number][index] for ratios in others], axis=1)
                one[f"rmia_{mode}"] = _shares(one[mode] - np.log(self.gamma), z)
        return found

    def _gaps(self, cohort: Cohort, designs: Sequence[Design]) -> list[Gap]:
        """For each design, the mean gaps of p and of 1 − p."""
        gaps = [Gap(len(design.targets), 2 * cohort.n_queries) for design in designs]

        def gaps_of(block: slice) -> list[Gap]:
            probability = _both(cohort.signal("log_odds", block))
            parts = [Gap(len(design.targets), 2 * cohort.n_queries) for design in designs]
            for design, part in zip(designs, parts, strict=True):
                for row, (ins, outs) in enumerate(leave_out_moments(probability, design.member[:, block], design)):
                    part.add(row, ins, outs)
            return parts

        for parts in in_order(gaps_of, cohort.blocks()):
            for gap, part in zip(gaps, parts, strict=True):
                gap.include(part)
        return gaps

    def _log_ratios(self, odds: FloatArray, mean_in: FloatArray, mean_out: FloatArray) -> tuple[FloatArray, FloatArray]:
        """log(p / p̄) of one target's examples (block,), online and offline; the means are of p and of 1 − p."""
        mean_in, mean_out = np.clip(mean_in, 0, 1), np.clip(mean_out, 0, 1)
        a, n_queries = self.offline_a, odds.shape[1]
        certain = np.repeat([1.0, 0.0], n_queries)
        means = (mean_in + mean_out) / 2, ((1 + a) * mean_out + (1 - a) * certain) / 2
        log_p = -np.logaddexp(0, -odds)
        online, offline = ((log_p - _log(*np.split(mean, 2, axis=1))).mean(axis=1) for mean in means)
        return online, offline


def privacy_meter(probability: FloatArray, population: FloatArray, design: Design, offline_a: float) -> FloatArray:
    """Scores (targets, pool) of `form: privacy_meter`, from probabilities of the true class (models, pool) and (models, z)."""
    found = np.empty((len(design.targets), probability.shape[1]))
    for row, target in enumerate(design.targets.tolist()):
        references = design.references_of(target)
        ratios = []
        k = max(1, len(references) // 2)
        for p, is_out in ((probability, ~design.member[references]), (population, np.ones((1, 1), dtype=bool))):
            mean_out = np.sort(p[references] * is_out, axis=0)[: -k - 1 : -1].mean(axis=0)
            ratios.append(p[target] / ((1 + offline_a) / 2 * mean_out + (1 - offline_a) / 2))
        found[row] = _shares(ratios[0][None], ratios[1][None])[0]
    return found


def _shares(limit: FloatArray, population: FloatArray) -> FloatArray:
    """The share of the population (targets, z) that each limit (targets, pool) exceeds, per target."""
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
