"""Comparisons of a sweep's targets: the groups to compare, each a unit of work. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from attacks.comparisons.base import Comparison, TargetLabel
from sweeper.sweep import components
from sweeper.sweep.identity import identity

if TYPE_CHECKING:
    from sweeper.sweep.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Group:
    """One comparison of one group of targets."""

    comparison: Comparison
    member_ids: tuple[str, ...]
    """Ids of the group's targets; the group is named after the first one."""

    queries: int | None
    """How many of the targets' answers to each example it uses; None if it uses none."""

    @cached_property
    def comparison_id(self) -> str:
        """A hash of the comparison's configuration and its members: another seed in the group gives another id."""
        what: dict[str, Any] = {
            "comparison": components.configuration("comparison", self.comparison),
            "members": list(self.member_ids),
        }
        if self.queries is not None:
            what["queries"] = self.queries
        return identity(what)

    @property
    def name(self) -> str:
        """The name that users type."""
        return components.name_of("comparison", self.comparison)


@dataclass(frozen=True, kw_only=True)
class ComparisonTask(Group):
    """A comparison to run. It is scheduled like a trial, so some of its names are those of `Trial`."""

    members: tuple[Trial, ...]
    """The trials of the group's targets."""

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


def plan_groups(targets: Iterable[tuple[TargetLabel, Sequence[Comparison]]]) -> list[Group]:
    """The groups of these targets, each with its comparisons: each group once, in the order of the targets."""
    by_comparison: dict[Comparison, dict[str, TargetLabel]] = {}
    for label, comparisons in targets:
        for comparison in comparisons:
            by_comparison.setdefault(comparison, {})[label.target_id] = label
    return [
        Group(
            comparison=comparison,
            member_ids=group,
            queries=min(by_id[target_id].queries for target_id in group) if comparison.needs_answers else None,
        )
        for comparison, by_id in by_comparison.items()
        for group in comparison.groups(list(by_id.values()))
    ]


def plan_comparisons(trials: Iterable[Trial]) -> list[ComparisonTask]:
    """The comparisons of these trials' targets, each group once, in the order of the trials."""
    by_id = {trial.target_id: trial for trial in trials if trial.comparisons}
    return [
        ComparisonTask(
            comparison=group.comparison,
            member_ids=group.member_ids,
            queries=group.queries,
            members=tuple(by_id[target_id] for target_id in group.member_ids),
        )
        for group in plan_groups((trial.target_label, trial.comparisons) for trial in by_id.values())
    ]
