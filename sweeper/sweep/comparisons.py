"""Comparisons of a sweep's targets: the groups to compare, each a unit of work. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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

    inputs: tuple[str, ...] = ()
    """Records whose membership scores it reads: `target.attack` of an attack on one target, or the id of another comparison."""

    @cached_property
    def comparison_id(self) -> str:
        """A hash of the comparison's configuration, members and inputs: another seed in the group gives another id."""
        what: dict[str, Any] = {
            "comparison": components.configuration("comparison", self.comparison),
            "members": list(self.member_ids),
        }
        if self.queries is not None:
            what["queries"] = self.queries
        if self.inputs:
            what["inputs"] = list(self.inputs)
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
    def kind(self) -> str:
        """Comparisons of one kind take about as long as each other."""
        return f"{self.name} · {self.dataset_label} · {self.split_label}"

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
    def split_label(self) -> str:
        return self.members[0].split_label

    @property
    def seed(self) -> int:
        return self.members[0].seed

    @property
    def memory_kind(self) -> None:
        """Comparisons use no GPU."""
        return None


def plan_groups(targets: Iterable[tuple[TargetLabel, Sequence[Comparison]]]) -> list[Group]:
    """The groups of these targets, each with its comparisons: each group once, in the order of the targets.

    A comparison that needs scores has all that the sweep's attacks and other comparisons may record of its group as inputs. It
    has no group if there are none.
    """
    by_comparison: dict[Comparison, dict[str, TargetLabel]] = {}
    for label, comparisons in targets:
        for comparison in comparisons:
            by_comparison.setdefault(comparison, {})[label.target_id] = label
    groups = [
        Group(
            comparison=comparison,
            member_ids=group,
            queries=min(by_id[target_id].queries for target_id in group) if comparison.needs_answers else None,
        )
        for comparison, by_id in by_comparison.items()
        for group in comparison.groups(list(by_id.values()))
    ]
    scoring: dict[str, list[str]] = {}
    for group in groups:
        for target_id in group.member_ids if "scores" in group.comparison.target_tables else ():
            scoring.setdefault(target_id, []).append(group.comparison_id)
    planned = []
    for group in groups:
        if group.comparison.needs_scores:
            labels = [by_comparison[group.comparison][target_id] for target_id in group.member_ids]
            own = {f"{label.target_id}.{each}" for label in labels for each in label.candidate_ids}
            others = {each for target_id in group.member_ids for each in scoring.get(target_id, ())}
            group = replace(group, inputs=tuple(sorted(own | others)))
        if group.inputs or not group.comparison.needs_scores:
            planned.append(group)
    return planned


def plan_comparisons(trials: Iterable[Trial]) -> list[ComparisonTask]:
    """The comparisons of these trials' targets, each group once, in the order of the trials."""
    by_id = {trial.target_id: trial for trial in trials if trial.comparisons}
    return [
        ComparisonTask(
            comparison=group.comparison,
            member_ids=group.member_ids,
            queries=group.queries,
            inputs=group.inputs,
            members=tuple(by_id[target_id] for target_id in group.member_ids),
        )
        for group in plan_groups((trial.target_label, trial.comparisons) for trial in by_id.values())
    ]
