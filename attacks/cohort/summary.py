"""What a cohort's scores say about the cell: means over its seeds, rates over all targets together, a bound on ε."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

from attacks.auditing import OneRunAudit, audit_runs
from attacks.base import BoolArray, IntArray
from attacks.cohort.attack import CohortScores, DesignScores, null_groups
from attacks.cohort.cohort import Design, blocks_of
from attacks.cohort.moments import leave_out_moments
from attacks.metrics import MIN_EXPECTED_FALSE_POSITIVES, REPORTED_FPRS, auc, tprs_at_fprs

FloatArray = npt.NDArray[np.float64]
Interval = tuple[float, float, float]
"""An estimate and the ends of its 95 % interval."""

POOLED_FPRS = (0.0001, 0.001, 0.01)
FEWEST_POOLED_FALSE_POSITIVES = 4
"""Expected false positives of all targets together, from which a pooled rate is told. Its interval resamples, and so covers with
four as well; a test shows it."""
_CONFIDENCE = 0.95
_RESAMPLES = 400
_PRIOR_WEIGHT = 4.0
_TOP = 0.01
"""The share of examples whose part of the leak is reported."""


@dataclass(frozen=True, kw_only=True)
class CohortSummary:
    """Metrics of one score over all targets of a cohort.

    `auc`, `tpr_at_fpr` and `null_auc` are means over the targets, with Student's 95 % interval over seeds (over pairs, if
    seeds are complements; of the null, over `null_groups`). A TPR is None if a target has too few non-members.

    `pooled_tpr` is the TPR at an FPR over all targets together, at one threshold. The FPR then differs between examples:
    those whose scores vary most make most of the false positives. `calibrated_tpr` first standardizes each example's scores by
    the mean and spread of its scores in other targets that were trained without it, so that its FPR is about the nominal one if
    these scores are near Gaussian. These targets must not have the target as a reference, or their scores would tell its
    membership; so they are the targets of the same half of an audit, and half of the seeds are references. Both intervals are
    percentiles over resamples of targets and of examples, each drawn with replacement. They are None with too few non-members
    in all targets together, and `calibrated_tpr` with fewer than two targets in a half.

    `top_share` is the share of the pooled true positives that the most exposed 1 % of the examples make; examples are ranked
    by one half of the targets and counted in the other, both ways. As seeds are each other's references, the halves are not
    independent: without a leak, it is above .01.

    Source: of the calibration, Jälkö et al. 2026 (arXiv 2605.25819), who use a Gaussian, too; its form here is ours.
    """

    n_targets: int
    n_units: int
    n_examples: int
    auc: Interval
    null_auc: Interval
    tpr_at_fpr: dict[float, Interval | None]
    pooled_tpr: dict[float, Interval | None]
    calibrated_tpr: dict[float, Interval | None]
    top_share: float | None
    audit: OneRunAudit

    def columns(self) -> dict[str, float | int | None]:
        """Every metric by its column name."""
        columns: dict[str, float | int | None] = {
            "n_targets": self.n_targets,
            "n_units": self.n_units,
            "n_examples": self.n_examples,
        }
        named: list[tuple[str, Interval | None]] = [("auc", self.auc), ("null_auc", self.null_auc)]
        named += [(f"tpr_at_fpr_{fpr:g}", value) for fpr, value in self.tpr_at_fpr.items()]
        named += [(f"pooled_tpr_at_fpr_{fpr:g}", value) for fpr, value in self.pooled_tpr.items()]
        named += [(f"calibrated_tpr_at_fpr_{fpr:g}", value) for fpr, value in self.calibrated_tpr.items()]
        return (columns | interval_columns(named)) | {
            "top_share": self.top_share,
            "epsilon_lower_bound": self.audit.epsilon_lower_bound,
            "audit_delta": self.audit.delta,
            "audit_canaries": self.audit.n_canaries,
            "audit_guesses": self.audit.n_guesses,
            "audit_right": self.audit.n_right,
        }


def summarize(result: CohortScores, delta: float, rng: np.random.Generator) -> CohortSummary:
    """Measure one score of a cohort attack; `rng` draws resamples and breaks ties. `delta` is the seeds' common δ."""
    found, null, unit = result.scores, result.null, result.unit
    return CohortSummary(
        n_targets=len(found.score),
        n_units=len(np.unique(unit)),
        n_examples=found.score.shape[1],
        auc=mean_over_units(_each(found), unit),
        null_auc=mean_over_units(_each(null), null_groups(unit)),
        tpr_at_fpr=_mean_tprs(found, unit),
        pooled_tpr=pooled_tprs(found.is_member, found.score, unit, rng),
        calibrated_tpr=_calibrated_tprs(result.audits, rng),
        top_share=_top_share(found, unit),
        audit=_audit(result, delta, rng),
    )


def interval_columns(named: Iterable[tuple[str, Interval | None]]) -> dict[str, float | None]:
    """Each estimate and the ends of its interval, by the names of their columns."""
    return {
        name + end: number
        for name, value in named
        for end, number in zip(("", "_low", "_high"), value or (None, None, None), strict=True)
    }


def lowest_fpr(is_member: BoolArray) -> float | None:
    """The lowest of `POOLED_FPRS` that the non-members of all targets together can tell; None if there is none."""
    n_non_members = int((~is_member).sum())
    return next((fpr for fpr in POOLED_FPRS if n_non_members * fpr >= FEWEST_POOLED_FALSE_POSITIVES), None)


def threshold_at(is_member: BoolArray, score: FloatArray, fpr: float) -> float:
    """The score that a share `fpr` of all non-members reaches."""
    outside = score[~is_member]
    place = len(outside) - max(1, round(fpr * len(outside)))
    return float(np.partition(outside, place)[place])


def _calibrated_tprs(
    halves: tuple[DesignScores, DesignScores], rng: np.random.Generator
) -> dict[float, Interval | None]:
    if min(len(half.targets) for half in halves) < 2:
        return dict.fromkeys(POOLED_FPRS)
    is_member = np.concatenate([half.is_member for half in halves])
    score = np.concatenate([calibrated_scores(half.is_member, half.score) for half in halves])
    return pooled_tprs(is_member, score, np.arange(len(score)), rng)


def calibrated_scores(is_member: BoolArray, score: FloatArray) -> FloatArray:
    """Scores (targets, pool) in spreads above the mean of the same example's scores in other targets without it.

    The spread is shrunk toward the median one. An example without any such target gets the mean over all examples.
    """
    everyone = np.arange(len(score))
    design = Design(member=is_member, targets=everyone, references=everyone, unit=everyone)
    mean, squares, count = (np.empty_like(score) for _ in range(3))
    for block in blocks_of(0, score.shape[1]):
        moments = leave_out_moments(score[:, block, None], is_member[:, block], design)
        for row, (_, outs) in enumerate(moments):
            mean[row, block], squares[row, block], count[row, block] = (
                each[:, 0] for each in (outs.mean, outs.squares, outs.count)
            )
    result = np.empty_like(score)
    for row, known in enumerate(count > 0):
        variance = _shrunk(squares[row], np.maximum(count[row] - 1, 0))
        center = np.where(known, mean[row], mean[row][known].mean() if known.any() else 0.0)
        result[row] = (score[row] - center) / np.sqrt(np.maximum(variance, np.finfo(float).tiny))
    return result


def pooled_tprs(
    is_member: BoolArray, score: FloatArray, unit: IntArray, rng: np.random.Generator
) -> dict[float, Interval | None]:
    """The TPR at each of `POOLED_FPRS` over all targets together, with its interval over targets and examples."""
    found: dict[float, Interval | None] = dict.fromkeys(POOLED_FPRS)
    lowest = lowest_fpr(is_member)
    fprs = [fpr for fpr in POOLED_FPRS if lowest is not None and fpr >= lowest]
    if fprs:
        resampled = np.array(list(_resampled_tprs(is_member, score, unit, fprs, rng)))
        low, high = np.quantile(resampled, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2], axis=0)
        for index, (fpr, estimate) in enumerate(
            zip(fprs, tprs_at_fprs(is_member.ravel(), score.ravel(), fprs), strict=True)
        ):
            found[fpr] = (estimate, min(estimate, float(low[index])), max(estimate, float(high[index])))
    return found


def _resampled_tprs(
    is_member: BoolArray, score: FloatArray, unit: IntArray, fprs: list[float], rng: np.random.Generator
) -> Iterator[FloatArray]:
    """The TPRs of resamples. Only scores near or above the thresholds are sorted, and those far below are rarely needed."""
    units = np.unique(unit)
    n_examples = score.shape[1]
    floor = threshold_at(is_member, score, min(1.0, 5 * max(fprs)))
    target, example = np.nonzero(score >= floor)
    order = np.lexsort((rng.random(len(target)), -score[target, example]))
    target, example = target[order], example[order]
    inside = is_member[target, example]
    near = int(np.searchsorted(np.cumsum(~inside), 1.5 * max(fprs) * (~is_member).sum()))
    member_weight = is_member.astype(np.float32)
    for _ in range(_RESAMPLES):
        drawn = np.bincount(rng.integers(len(units), size=len(units)), minlength=len(units))
        of_target = drawn[np.searchsorted(units, unit)].astype(np.float64)
        of_example = np.bincount(rng.integers(n_examples, size=n_examples), minlength=n_examples).astype(np.float32)
        total_in = float(of_target @ (member_weight @ of_example))  # float32 is exact up to 16 million examples
        total_out = float(of_target.sum() * of_example.sum()) - total_in
        wanted = np.array(fprs) * (total_out + 1)
        for few in (slice(near), slice(None)):
            weight = of_target[target[few]] * of_example[example[few]]
            true_positives, false_positives = np.cumsum(weight * inside[few]), np.cumsum(weight * ~inside[few])
            if len(weight) and false_positives[-1] > wanted.max():
                break
        yield np.interp(wanted, false_positives, true_positives) / max(total_in, 1.0)


def _each(found: DesignScores) -> list[float]:
    return [auc(member, score) for member, score in zip(found.is_member, found.score, strict=True)]


def _mean_tprs(found: DesignScores, unit: IntArray) -> dict[float, Interval | None]:
    fewest = (~found.is_member).sum(axis=1).min()
    fprs = [fpr for fpr in REPORTED_FPRS if fewest * fpr >= MIN_EXPECTED_FALSE_POSITIVES]
    tprs = [tprs_at_fprs(member, score, fprs) for member, score in zip(found.is_member, found.score, strict=True)]
    means = {fpr: mean_over_units([each[index] for each in tprs], unit) for index, fpr in enumerate(fprs)}
    return {fpr: means.get(fpr) for fpr in REPORTED_FPRS}


def mean_over_units(values: list[float], unit: IntArray) -> Interval:
    """The mean over targets, and Student's interval over the units' means, within [0, 1]."""
    means = np.array(
        [np.mean([value for value, own in zip(values, unit, strict=True) if own == each]) for each in np.unique(unit)]
    )
    mean = float(np.mean(values))
    half = student_t.ppf((1 + _CONFIDENCE) / 2, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
    return mean, max(0.0, float(mean - half)), min(1.0, float(mean + half))


def _top_share(found: DesignScores, unit: IntArray) -> float | None:
    """The share of the true positives of each half of the targets that the other half's most exposed examples make."""
    fpr = lowest_fpr(found.is_member)
    if fpr is None:
        return None
    units = np.unique(unit)
    halves = [np.isin(unit, units[::2]), np.isin(unit, units[1::2])]
    n_top = max(1, round(_TOP * found.score.shape[1]))
    shares = []
    for ranking, counted in (halves, halves[::-1]):
        exposure = separation(found.is_member[ranking], found.score[ranking])
        above = found.score[counted] > threshold_at(found.is_member[counted], found.score[counted], fpr)
        caught = (above & found.is_member[counted]).sum(axis=0)
        if not caught.any():
            return None
        shares.append(caught[np.argsort(-exposure, kind="stable")[:n_top]].sum() / caught.sum())
    return float(np.mean(shares))


def separation(is_member: BoolArray, score: FloatArray) -> FloatArray:
    """Per example (pool,): its mean score in targets with it − in those without it, in spreads. 0 if it lacks either.

    The spread is that of its scores about the two means, shrunk toward the median one.
    """
    inside, outside = is_member.astype(np.float64), (~is_member).astype(np.float64)
    n_in, n_out = inside.sum(axis=0), outside.sum(axis=0)
    mean_in = (score * inside).sum(axis=0) / np.maximum(n_in, 1)
    mean_out = (score * outside).sum(axis=0) / np.maximum(n_out, 1)
    squares = ((score - np.where(is_member, mean_in, mean_out)) ** 2).sum(axis=0)
    freedom = np.maximum(n_in - 1, 0) + np.maximum(n_out - 1, 0)
    spread = np.sqrt(_shrunk(squares, freedom))
    known = (n_in > 0) & (n_out > 0) & (spread > 0)
    result: FloatArray = np.where(known, mean_in - mean_out, 0.0) / np.where(known, spread, 1.0)
    return result


def _shrunk(squares: FloatArray, freedom: FloatArray) -> FloatArray:
    """Variances from squared residuals, shrunk toward their median; a mean would be that of a few wide examples.

    Examples whose scores do not vary do not count in the median.
    """
    varying = (freedom > 0) & (squares > 0)
    typical = float(np.median(squares[varying] / freedom[varying])) if varying.any() else 0.0
    shrunk: FloatArray = (_PRIOR_WEIGHT * typical + squares) / (_PRIOR_WEIGHT + freedom)
    return shrunk


def _audit(result: CohortScores, delta: float, rng: np.random.Generator) -> OneRunAudit:
    """The better of the bounds from the two halves of the seeds, each at half the error that is allowed to both."""
    audits = [
        audit_runs(
            list(zip(half.is_member, half.score, strict=True)),
            n_guesses_per_side=max(1, half.score.shape[1] // 10),
            delta=delta,
            confidence=1 - (1 - _CONFIDENCE) / 2,
            rng=rng,
        )
        for half in result.audits
    ]
    return max(audits, key=lambda each: each.epsilon_lower_bound)
