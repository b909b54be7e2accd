"""Comparisons of a sweep's targets: the groups to compare, each a unit of work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from attacks.comparisons.base import Comparison, TargetLabel
from models.defenses.base import Mechanism
from sweeper.sweep import components
from sweeper.sweep.identity import identity
from sweeper.sweep.trial import Trial


@dataclass(frozen=True, kw_only=True)
class ComparisonTask:
    """One comparison of one group of targets. It is scheduled like a trial, so some of its names are those of `Trial`."""

    comparison: Comparison
    members: tuple[Trial, ...]
    """The trials of the group's targets; the group is named after the first one."""

    @property
    def queries(self) -> int | None:
        """How many of the targets' answers to each example it uses; None if it uses none."""
        return min(trial.kept_queries for trial in self.members) if self.comparison.needs_answers else None

    @cached_property
    def comparison_id(self) -> str:
        """A hash of the comparison's configuration and its members: another seed in the group gives another id."""
        what: dict[str, Any] = {
            "comparison": components.configuration("comparison", self.comparison),
            "members": [trial.target_id for trial in self.members],
        }
        if self.queries is not None:
            what["queries"] = self.queries
        return identity(what)

    @property
    def name(self) -> str:
        """The name that users type."""
        return components.name_of("comparison", self.comparison)

    @property
    def target_id(self) -> str:
        """The id of this unit of work, which is `comparison_id`."""
        return self.comparison_id

    @property
    def title(self) -> str:
        return f"{self.name} · {self.members[0].title}"

    @property
    def defense_label(self) -> str:
        return self.members[0].defense_label

    @property
    def dataset_label(self) -> str:
        return self.members[0].dataset_label

    @property
    def architecture_label(self) -> str:
        return self.members[0].architecture_label

    @property
    def optimizer_label(self) -> str:
        return self.members[0].optimizer_label

    @property
    def split(self) -> str:
        return self.members[0].split

    @property
    def seed(self) -> int:
        return self.members[0].seed

    @property
    def memory_kind(self) -> None:
        """Comparisons use no GPU."""
        return None


def label_of(trial: Trial) -> TargetLabel:
    """What a comparison knows about a trial's target."""
    return TargetLabel(
        target_id=trial.target_id,
        twin_id=trial.twin_id,
        cell_id=trial.cell_id,
        seed=trial.seed,
        split=trial.split,
        is_private=any(isinstance(defense, Mechanism) for defense in trial.defenses),
    )


def plan_comparisons(trials: Iterable[Trial]) -> list[ComparisonTask]:
    """The comparisons of these trials' targets, each group once, in the order of the trials."""
    by_comparison: dict[Comparison, dict[str, Trial]] = {}
    for trial in trials:
        for comparison in trial.comparisons:
            by_comparison.setdefault(comparison, {})[trial.target_id] = trial
    return [
        ComparisonTask(comparison=comparison, members=tuple(by_id[target_id] for target_id in group))
        for comparison, by_id in by_comparison.items()
        for group in comparison.groups([label_of(trial) for trial in by_id.values()])
    ]
