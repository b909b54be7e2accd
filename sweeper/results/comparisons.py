"""The state of a sweep's comparisons, from their records."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from sweeper.results import layout
from sweeper.results.layout import COMPARISONS, FAILED, SUFFIX, TENSORS
from sweeper.results.store import Store
from sweeper.sweep.comparisons import ComparisonTask, Group, plan_comparisons

if TYPE_CHECKING:
    from sweeper.sweep.trial import Trial

State = Literal["done", "failed", "to do"]


def states(store: Store, groups: Iterable[Group]) -> dict[str, State]:
    """The state of each comparison, by its id. If it is older than the weights it compared, it is due again."""
    groups = list(groups)
    if not groups:
        return {}
    wanted = {COMPARISONS}.union(*((*group.comparison.tables, *group.comparison.target_tables) for group in groups))
    weights = store.storage.entries(layout.WEIGHTS)
    recorded = {table: store.storage.entries(f"{layout.PARTS}/{table}") for table in wanted}
    found: dict[str, State] = {}
    for group in groups:
        key = group.comparison_id
        rows = [recorded[table].get(key + SUFFIX) for table in (COMPARISONS, *group.comparison.tables)]
        rows += [
            recorded[table].get(f"{target_id}.{key}{SUFFIX}")
            for table in group.comparison.target_tables
            for target_id in group.member_ids
        ]
        there = [each for each in rows if each is not None and each.size]
        compared = [weights.get(target_id + TENSORS) for target_id in group.member_ids]
        is_current = len(there) == len(rows) and all(
            each is not None and each.modified <= min(one.modified for one in there) for each in compared
        )
        failed = recorded[COMPARISONS].get(key + FAILED + SUFFIX)
        found[key] = "done" if is_current else "failed" if failed is not None and failed.size else "to do"
    return found


def state(store: Store, task: ComparisonTask) -> State:
    """The state of one comparison."""
    return states(store, [task])[task.comparison_id]


class DueComparisons:
    """Tells which comparisons are due as trials end: those that are not recorded and whose targets are all finished.

    Groups are planned over targets that are finished or may still finish. If a target fails, it leaves its groups, and these
    are planned again without it.
    """

    def __init__(
        self, store: Store, trials: Iterable[Trial], finished: Collection[str], pending: Collection[str]
    ) -> None:
        self._store = store
        self._finished, self._pending = set(finished), set(pending)
        possible = self._finished | self._pending
        self._trials = [trial for trial in trials if trial.target_id in possible]
        self._given: set[str] = set()
        self._plan()

    def _plan(self) -> None:
        self.planned = plan_comparisons(self._trials)
        """All comparisons of the targets, recorded or not."""
        self.states = states(self._store, self.planned)
        """The state of each comparison when this launch began, by id."""
        self._waiting = {
            task.comparison_id: task
            for task in self.planned
            if self.states[task.comparison_id] != "done" and task.comparison_id not in self._given
        }
        self._tasks_of: dict[str, list[str]] = {}
        for task in self._waiting.values():
            for trial in task.members:
                self._tasks_of.setdefault(trial.target_id, []).append(task.comparison_id)

    @property
    def n_done(self) -> int:
        """How many of the planned comparisons are recorded."""
        return sum(state == "done" for state in self.states.values())

    @property
    def waiting(self) -> list[ComparisonTask]:
        """Comparisons that are not due yet."""
        return list(self._waiting.values())

    def due(self) -> list[ComparisonTask]:
        """Comparisons that are due now; each is returned once."""
        return self._due_of(list(self._waiting))

    def _due_of(self, comparison_ids: Iterable[str]) -> list[ComparisonTask]:
        due = []
        for comparison_id in comparison_ids:
            task = self._waiting.get(comparison_id)
            if task is not None and all(trial.target_id in self._finished for trial in task.members):
                due.append(self._waiting.pop(comparison_id))
                self._given.add(comparison_id)
        return due

    def _is_comparable(self, target_id: str) -> bool:
        """Whether a trial that ended has a target that can be compared."""
        queries = next(trial.kept_queries for trial in self._trials if trial.target_id == target_id)
        return self._store.has_target(target_id) and (not queries or self._store.has_answers(target_id, queries))

    def ended(self, target_id: str) -> list[ComparisonTask]:
        """Comparisons that become due when a trial ends, finished or failed."""
        if target_id not in self._pending:
            return []
        self._pending.discard(target_id)
        if self._is_comparable(target_id):
            self._finished.add(target_id)
            return self._due_of(self._tasks_of.get(target_id, ()))
        self._trials = [trial for trial in self._trials if trial.target_id != target_id]
        if target_id not in self._tasks_of:
            return []
        self._plan()
        return self.due()


def write_comparisons_now(store: Store, tasks: Sequence[ComparisonTask]) -> None:
    """Record the current comparisons of the sweep's targets; `gather` follows this list."""
    store.write_comparisons_now(
        {task.comparison_id: list(task.member_ids) if task.comparison.target_tables else [] for task in tasks}
    )
