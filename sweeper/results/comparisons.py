"""The state of a sweep's comparisons, from their records."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeVar

from sweeper.results import layout
from sweeper.results.layout import COMPARISONS, FAILED, SUFFIX, TENSORS
from sweeper.results.store import Store
from sweeper.sweep.comparisons import ComparisonTask, Group, plan_comparisons

if TYPE_CHECKING:
    from sweeper.sweep.trial import Trial

State = Literal["done", "failed", "to do"]
_Group = TypeVar("_Group", bound=Group)
_ATTACKS = "attacks"


def states(store: Store, groups: Iterable[Group]) -> dict[str, State]:
    """The state of each comparison, by its id. If it is older than the weights it compared or its inputs, it is due again."""
    groups = list(groups)
    if not groups:
        return {}
    wanted = {COMPARISONS}.union(*((*group.comparison.tables, *group.comparison.target_tables) for group in groups))
    if any(group.inputs for group in groups):
        wanted.add(_ATTACKS)
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
        compared += [recorded[_ATTACKS if "." in each else COMPARISONS].get(each + SUFFIX) for each in group.inputs]
        is_current = len(there) == len(rows) and all(
            each is not None and each.modified <= min(one.modified for one in there) for each in compared
        )
        failed = recorded[COMPARISONS].get(key + FAILED + SUFFIX)
        found[key] = "done" if is_current else "failed" if failed is not None and failed.size else "to do"
    return found


def with_inputs(store: Store, groups: Sequence[_Group], pending: Collection[str]) -> list[_Group]:
    """The groups, with those of their inputs that are recorded or still to come. One that has none of its inputs is left out.

    `pending` are targets whose attacks are still to run. An input that failed is left out, even if it will be tried again: if it
    then finishes, the comparison gets another id. Groups that are inputs of others must be among `groups`.
    """
    if not any(group.inputs for group in groups):
        return list(groups)
    found = states(store, [group for group in groups if not group.inputs])
    attacks = {name for name, entry in store.storage.entries(f"{layout.PARTS}/{_ATTACKS}").items() if entry.size}

    def is_expected(key: str) -> bool:
        target_id, _, attack = key.partition(".")
        if not attack:
            return found[key] != "failed"
        return key + SUFFIX in attacks or (target_id in pending and key + FAILED + SUFFIX not in attacks)

    kept = []
    for group in groups:
        inputs = tuple(filter(is_expected, group.inputs))
        if inputs or not group.inputs:
            kept.append(replace(group, inputs=inputs))
    return kept


def state(store: Store, task: ComparisonTask) -> State:
    """The state of one comparison."""
    return states(store, [task])[task.comparison_id]


class DueComparisons:
    """Tells which comparisons are due as trials end: those that are not recorded and whose targets are all finished.

    Groups are planned over targets that are finished or may still finish. If a target fails, it leaves its groups, and these
    are planned again without it. A comparison with inputs is due when the attacks and comparisons that it reads have ended.

    `finished` are the targets that can be compared, `pending` the trials that are still to run. A target may be in both: then
    only attacks on it are to run.
    """

    def __init__(
        self, store: Store, trials: Iterable[Trial], finished: Collection[str], pending: Collection[str]
    ) -> None:
        self._store = store
        self._finished, self._pending = set(finished), set(pending)
        possible = self._finished | self._pending
        self._trials = [trial for trial in trials if trial.target_id in possible]
        self._given: set[str] = set()
        self._running: set[str] = set()
        self._plan()

    def _plan(self) -> None:
        everything = plan_comparisons(self._trials)
        self._tasks = {task.comparison_id: task for task in everything}
        """All comparisons, with inputs that may fail."""
        self.planned = with_inputs(self._store, everything, self._pending)
        """All comparisons of the targets, recorded or not."""
        self.states = states(self._store, self.planned)
        """The state of each comparison when this launch began, by id."""
        # Whether a comparison with inputs is recorded is looked up when all of them have ended.
        self._waiting = {
            key: task
            for key, task in self._tasks.items()
            if key not in self._given and (task.inputs or self.states[key] != "done")
        }
        self._tasks_of: dict[str, list[str]] = {}
        """Waiting comparisons by each target and comparison that they wait for."""
        for key, task in self._waiting.items():
            for awaited in (*task.member_ids, *(each for each in task.inputs if each in self._tasks)):
                self._tasks_of.setdefault(awaited, []).append(key)

    @property
    def n_done(self) -> int:
        """How many of the planned comparisons are recorded."""
        return sum(state == "done" for state in self.states.values())

    @property
    def waiting(self) -> list[ComparisonTask]:
        """Comparisons that are not due yet and not recorded."""
        return [
            task
            for task in self.planned
            if self.states[task.comparison_id] != "done" and task.comparison_id not in self._given
        ]

    def due(self) -> list[ComparisonTask]:
        """Comparisons that are due now; each is returned once."""
        return self._due_of(list(self._waiting))

    def _due_of(self, comparison_ids: Iterable[str]) -> list[ComparisonTask]:
        due, reading = [], []
        for comparison_id in comparison_ids:
            task = self._waiting.get(comparison_id)
            if task is None or not self._is_ready(task):
                continue
            del self._waiting[comparison_id]
            if task.inputs:
                reading.append(task)
            else:
                due.append(task)
                self._running.add(comparison_id)
        due += self._not_recorded(reading)
        self._given.update(task.comparison_id for task in due)
        return due

    def _is_ready(self, task: ComparisonTask) -> bool:
        """Whether its targets are finished and its inputs have ended."""
        if not self._finished.issuperset(task.member_ids):
            return False
        return not task.inputs or not any(
            each in self._running or each in self._waiting or each in self._pending
            for each in (*task.member_ids, *task.inputs)
        )

    def _not_recorded(self, reading: Sequence[ComparisonTask]) -> list[ComparisonTask]:
        """Those that are not recorded with the inputs that finished."""
        sources = [self._tasks[each] for task in reading for each in task.inputs if each in self._tasks]
        found = [task for task in with_inputs(self._store, [*sources, *reading], ()) if task.inputs]
        known = states(self._store, found)
        return [task for task in found if known[task.comparison_id] != "done" and task.comparison_id not in self._given]

    def _is_comparable(self, target_id: str) -> bool:
        """Whether a trial that ended has a target that can be compared."""
        queries = next(trial.kept_queries for trial in self._trials if trial.target_id == target_id)
        return self._store.has_target(target_id) and (not queries or self._store.has_answers(target_id, queries))

    def ended(self, target_id: str) -> list[ComparisonTask]:
        """Comparisons that become due when a trial or a comparison ends, finished or failed."""
        if target_id in self._running:
            self._running.discard(target_id)
            return self._due_of(self._tasks_of.get(target_id, ()))
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
