"""Base classes of comparisons of a cohort and of attacks on it, and what the attacks return."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from attacks.base import AttackError, BoolArray, IntArray
from attacks.cohort.cohort import Cohort, Design
from attacks.comparisons.base import ComparedTarget, Comparison, TargetLabel

FloatArray = npt.NDArray[np.float64]

_MOST_NULL_GROUPS = 8
_NULL_EXAMPLES = 4096
"""Most examples of the pool that a null is made of."""

_REFUSALS = {
    "official": "every seed has the same members, so that no reference lacks them, and its non-members come from another pool",
    "half": "exactly half of the pool are its members, so that each membership can be told from the others by counting",
    "quarters": (
        "exactly a quarter of the pool are its members, so that each membership can be told from the others by counting, and half "
        "of the pool is kept for a shadow model"
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class DesignScores:
    """One score of an attack under one design.

    `is_member` and `score` are (targets, pool), and `n_references` (targets,). **A higher score means more likely a member.**
    """

    targets: IntArray
    is_member: BoolArray
    score: FloatArray
    n_references: IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class CohortScores:
    """One score of an attack on every model of a cohort.

    `scores` has each model as a target and all others but its complement as references. `null` is the same attack on a
    membership that fair coins tossed anew, and by which no model was trained: its AUC is .5 unless the attack is wrong. Each of
    `null_groups` has tosses of its own for all models, so that AUCs of two groups are independent. `null` is of the pool's first
    4,096 examples at most.
    `audits` has two designs for a bound on the seeds' common ε: the targets of each are half of the seeds, and their
    references the other half.
    """

    name: str
    example_id: IntArray
    label: IntArray
    unit: IntArray
    scores: DesignScores
    null: DesignScores
    audits: tuple[DesignScores, DesignScores]


@dataclass(frozen=True, kw_only=True)
class CohortComparison(Comparison):
    """Base of the comparisons of a cohort: the seeds of a cell, whose members independent coins draw."""

    min_seeds: int = 4
    """Fewest finished seeds of a cell that are attacked."""

    def __post_init__(self) -> None:
        if self.min_seeds < 4:
            raise ValueError(
                f"min_seeds is {self.min_seeds}; it must be at least 4, or too many examples lack references"
            )

    def least_seeds(self) -> int:
        return self.min_seeds

    def refusal(self, split: str) -> str | None:
        if split not in _REFUSALS:
            return None
        return (
            f"needs seeds whose members are drawn by independent coins, and split '{split}' has none: {_REFUSALS[split]}. Use "
            "split coins or coin_pairs"
        )

    def groups(self, targets: Sequence[TargetLabel]) -> Iterator[tuple[str, ...]]:
        """The targets of each cell, in the order of their seeds, if there are enough."""
        cells: dict[str, list[TargetLabel]] = {}
        for target in targets:
            if self.refusal(target.split) is None:
                cells.setdefault(target.cell_id, []).append(target)
        for cell in cells.values():
            if len(cell) >= self.min_seeds:
                yield tuple(each.target_id for each in sorted(cell, key=lambda each: each.seed))


@dataclass(frozen=True, kw_only=True)
class CohortAttack(CohortComparison):
    """Base of the attacks whose references are the other seeds of the target's cell. They train nothing.

    The seeds must draw their members by independent coins (the splits `coins` and `coin_pairs`). The complement of a target
    is never its reference: an example's membership there would tell its membership in the target.
    """

    tables: ClassVar[tuple[str, ...]] = ("cohorts", "exposure")
    target_tables: ClassVar[tuple[str, ...]] = ("scores", "attacks")
    needs_answers: ClassVar[bool] = True
    revision: ClassVar[int] = 2

    def run(self, group: Sequence[ComparedTarget], rng: np.random.Generator) -> list[CohortScores]:
        """Each score on each target of the group; `rng` tosses the coins of the null, and is the attack's own."""
        ordered = sorted(group, key=lambda each: each.seed)
        seeds = [each.seed for each in ordered]
        cohort = Cohort([each.answers() for each in ordered], seeds)
        unit = units_of(cohort.member, seeds)
        designs, nulls = _designs(cohort.member, unit), _null_designs(unit, min(cohort.n_examples, _NULL_EXAMPLES), rng)
        if cohort.n_examples <= _NULL_EXAMPLES:  # together, so that signals are computed once
            found = self.scores(cohort, [*designs, *nulls], rng)
        else:
            found = self.scores(cohort, designs, rng)
            found += self.scores(cohort.first(_NULL_EXAMPLES), nulls, rng)
        results = []
        for name in (name for name in self.score_names() if name in found[0]):
            real, *audits = (
                _scores_of([design], [one[name]]) for design, one in zip(designs, found[: len(designs)], strict=True)
            )
            null = _scores_of(nulls, [one[name] for one in found[len(designs) :]])
            results.append(
                CohortScores(
                    name=name,
                    example_id=cohort.example_id,
                    label=cohort.label,
                    unit=unit,
                    scores=real,
                    null=null,
                    audits=(audits[0], audits[1]),
                )
            )
        return results

    @abstractmethod
    def score_names(self) -> tuple[str, ...]:
        """Names of the attack's scores; the first is the one that stands for it. Some may need several queries."""

    @abstractmethod
    def scores(
        self, cohort: Cohort, designs: Sequence[Design], rng: np.random.Generator
    ) -> list[dict[str, FloatArray]]:
        """For each design, each score by its name (targets, pool)."""


def units_of(member: BoolArray, seeds: Sequence[int]) -> IntArray:
    """A number for each model, ascending; a model and its complement have the same one. `member` is (models, pool).

    Raises:
        AttackError: two models have the same members, or complements are not of consecutive seeds.
    """
    unit = np.arange(len(seeds))
    for one in range(len(seeds)):
        for other in range(one):
            agreement = float((member[one] == member[other]).mean())
            if agreement == 1:
                raise AttackError(f"Seeds {seeds[other]} and {seeds[one]} have the same members; coins never fall so.")
            if agreement == 0 and one - other > 1:
                raise AttackError(
                    f"Seeds {seeds[other]} and {seeds[one]} are complements, but not of consecutive seeds."
                )
            if agreement == 0:
                unit[one] = other
    return unit


def fair_coins(unit: IntArray, n_examples: int, rng: np.random.Generator) -> BoolArray:
    """A membership (models, examples) that fair coins toss anew. Complements stay complements."""
    tossed: BoolArray = rng.random((len(unit), n_examples)) < 0.5
    complements = np.flatnonzero(unit != np.arange(len(unit)))
    tossed[complements] = ~tossed[unit[complements]]
    return tossed


def _scores_of(designs: Sequence[Design], scores: Sequence[FloatArray]) -> DesignScores:
    """The scores of designs with different targets, in the order of all targets."""
    targets = np.concatenate([design.targets for design in designs])
    order = np.argsort(targets)
    return DesignScores(
        targets=targets[order],
        is_member=np.concatenate([design.member[design.targets] for design in designs])[order],
        score=np.concatenate(scores)[order],
        n_references=np.concatenate([design.counts() for design in designs])[order],
    )


def _designs(member: BoolArray, unit: IntArray) -> list[Design]:
    """The attack itself, and the two halves of an audit."""
    everyone = np.arange(len(unit))
    designs = [Design(member=member, targets=everyone, references=everyone, unit=unit)]
    # In an audit, one model of a unit is attacked: a second one would toss no coins of its own.
    units = np.unique(unit)
    for attacked, used in ((units[::2], units[1::2]), (units[1::2], units[::2])):
        designs.append(
            Design(member=member, targets=attacked, references=np.flatnonzero(np.isin(unit, used)), unit=unit)
        )
    return designs


def null_groups(unit: IntArray) -> IntArray:
    """Which models share the tosses of a null: those of a unit, or of some units if there are more than eight."""
    units, rank = np.unique(unit, return_inverse=True)
    groups: IntArray = rank % min(len(units), _MOST_NULL_GROUPS)
    return groups


def _null_designs(unit: IntArray, n_examples: int, rng: np.random.Generator) -> list[Design]:
    """For each group, an attack on its models with memberships of all models that fair coins toss anew."""
    everyone, groups = np.arange(len(unit)), null_groups(unit)
    return [
        Design(
            member=fair_coins(unit, n_examples, rng),
            targets=np.flatnonzero(groups == own),
            references=everyone,
            unit=unit,
        )
        for own in np.unique(groups)
    ]
