"""The best of all scores of each target of a cohort, selected without bias, with a null of the selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from attacks.base import AttackError, BoolArray, IntArray, MembershipScores
from attacks.cohort.attack import fair_coins, null_groups, units_of
from attacks.cohort.summary import Interval, interval_columns, mean_over_units
from attacks.metrics import REPORTED_FPRS
from attacks.selection import BestOf, best_of

Candidates = Mapping[str, MembershipScores]


@dataclass(frozen=True, kw_only=True, eq=False)
class CohortBest:
    """For each target of a cohort, the best of its `candidates`, in the order of the targets.

    `null_auc` is the AUC of the same selection on a membership that fair coins toss anew: .5 on average, unless the selection
    is biased. Candidates that were fitted on membership labels would have to be fitted again, so they are left out of it; None
    if no other is left. `unit` is equal for a target and its complement.
    """

    candidates: tuple[Candidates, ...]
    best: tuple[BestOf, ...]
    null_auc: tuple[float | None, ...]
    unit: IntArray

    def columns(self) -> dict[str, float | int | None]:
        """Means over the targets by their columns, with Student's 95 % interval over units. None if a target lacks a value."""
        metrics = [each.metrics for each in self.best]
        rates = {fpr: [each.tpr_at_fpr[fpr] for each in metrics] for fpr in REPORTED_FPRS}
        named = [("auc", _mean([each.auc for each in metrics], self.unit))]
        named += [("null_auc", _mean(self.null_auc, null_groups(self.unit)))]
        named += [(f"tpr_at_fpr_{fpr:g}", _mean(values, self.unit)) for fpr, values in rates.items()]
        n_examples = metrics[0].n_members + metrics[0].n_non_members
        return {
            "n_targets": len(metrics),
            "n_units": len(np.unique(self.unit)),
            "n_examples": n_examples,
            **interval_columns(named),
        }


def best_of_cohort(candidates: Sequence[Candidates], seeds: Sequence[int], rng: np.random.Generator) -> CohortBest:
    """Select the best of each target's candidates by `best_of`, and repeat it on the null. `seeds` ascend.

    `rng` draws halves that no candidate sets, and tosses the null's coins.

    Raises:
        AttackError: the targets do not have the same examples, or their members are not drawn by coins.
        ValueError: see `best_of`.
    """
    example_id, member = _membership(candidates)
    unit = units_of(member, seeds)
    best = tuple(best_of(each, rng) for each in candidates)
    tossed = fair_coins(unit, len(example_id), rng)
    null_auc = []
    for each, coins in zip(candidates, tossed, strict=True):
        unfitted = {
            name: replace(one, is_member=coins[np.searchsorted(example_id, one.example_id)])
            for name, one in each.items()
            if one.fold is None
        }
        null_auc.append(best_of(unfitted, rng).metrics.auc if unfitted else None)
    return CohortBest(candidates=tuple(candidates), best=best, null_auc=tuple(null_auc), unit=unit)


def _mean(values: Sequence[float | None], unit: IntArray) -> Interval | None:
    known = [value for value in values if value is not None]
    return mean_over_units(known, unit) if len(known) == len(values) else None


def _membership(candidates: Sequence[Candidates]) -> tuple[IntArray, BoolArray]:
    """The examples, ascending, and the membership of each target (targets, examples)."""
    firsts = [next(iter(each.values())) for each in candidates]
    orders = [np.argsort(each.example_id) for each in firsts]
    ids = [each.example_id[order] for each, order in zip(firsts, orders, strict=True)]
    if not all(np.array_equal(each, ids[0]) for each in ids):
        raise AttackError("The targets of the cohort were not attacked on the same examples.")
    return ids[0], np.array([each.is_member[order] for each, order in zip(firsts, orders, strict=True)])
