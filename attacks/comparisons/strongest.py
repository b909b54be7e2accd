"""Strongest: the best of all membership attacks on a target, those of its cohort included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from attacks.base import AttackError
from attacks.cohort.attack import CohortComparison
from attacks.comparisons.base import ComparedTarget

if TYPE_CHECKING:
    from attacks.cohort.best import CohortBest

_PUBLISHED_FORMS = ("tfp_", "privacy_meter")
"""Beginnings of the names of scores that are computed as other software does, for comparison with the literature."""


@dataclass(frozen=True, kw_only=True)
class Strongest(CohortComparison):
    """Strongest: the best score of each target, chosen on one half of the examples and measured on the other, both ways.

    The candidates are all recorded scores of the target: of the attacks on it alone, and of those that take its cell's other
    seeds as references. Decisions, estimates without scores, and scores of published forms are no candidates. An attack that
    failed is left out.

    Random: the halves, unless candidates were fitted on halves, and the coins of the null.

    Source: ours.
    """

    tables: ClassVar[tuple[str, ...]] = ("cohorts",)
    target_tables: ClassVar[tuple[str, ...]] = ("attacks",)
    needs_scores: ClassVar[bool] = True
    source: ClassVar[str] = "ours"

    def run(self, group: Sequence[ComparedTarget], rng: np.random.Generator) -> CohortBest:
        from attacks.cohort.best import best_of_cohort  # slow to import, and `plan` only asks for the groups

        candidates = []
        for target in group:
            scores = sorted(target.membership_scores().items())
            own = {name: one for name, one in scores if not one.name.startswith(_PUBLISHED_FORMS)}
            if not own:
                raise AttackError(f"No attack that scores each example has finished on target {target.target_id}.")
            candidates.append(own)
        return best_of_cohort(candidates, [target.seed for target in group], rng)
