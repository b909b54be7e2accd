"""The state of a sweep's comparisons, from their records."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from sweeper.results import layout
from sweeper.results.layout import COMPARISONS, FAILED, SUFFIX, TENSORS
from sweeper.results.store import Store
from sweeper.sweep.comparisons import ComparisonTask, plan_comparisons
from sweeper.sweep.trial import Trial

State = Literal["done", "failed", "to do"]


def states(store: Store, tasks: Iterable[ComparisonTask]) -> dict[str, State]:
    """The state of each comparison, by its id. If it is older than the weights it compared, it is due again."""
    tasks = list(tasks)
    if not tasks:
        return {}
    weights = store.storage.entries(layout.WEIGHTS)
    recorded = store.storage.entries(f"{layout.PARTS}/{COMPARISONS}")
    results = {
        table: store.storage.entries(f"{layout.PARTS}/{table}") for table in {task.comparison.table for task in tasks}
    }
    found: dict[str, State] = {}
    for task in tasks:
        key = task.comparison_id
        rows = results[task.comparison.table].get(key + SUFFIX)
        done = recorded.get(key + SUFFIX)
        compared = [weights.get(trial.target_id + TENSORS) for trial in task.members]
        is_current = done is not None and rows is not None and bool(done.size and rows.size)
        is_current = is_current and all(each and rows and rows.modified >= each.modified for each in compared)
        failed = recorded.get(key + FAILED + SUFFIX)
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

    def ended(self, target_id: str) -> list[ComparisonTask]:
        """Comparisons that become due when a trial ends, finished or failed."""
        if target_id not in self._pending:
            return []
        self._pending.discard(target_id)
        if self._store.has_target(target_id):
            self._finished.add(target_id)
            return self._due_of(self._tasks_of.get(target_id, ()))
        self._trials = [trial for trial in self._trials if trial.target_id != target_id]
        if target_id not in self._tasks_of:
            return []
        self._plan()
        return self.due()


def write_comparisons_now(store: Store, tasks: Sequence[ComparisonTask]) -> None:
    """Record the current comparisons of the sweep's targets; `gather` follows this list."""
    store.write_comparisons_now([task.comparison_id for task in tasks])
