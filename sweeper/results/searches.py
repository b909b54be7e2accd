"""Scores of the runs of searches, from their records."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sweeper.errors import UserError
from sweeper.results import layout
from sweeper.results.layout import SUFFIX
from sweeper.results.store import DamagedError, Store
from sweeper.search.unfold import Score

if TYPE_CHECKING:
    from sweeper.search.spec import Leak, SearchPlan
    from sweeper.sweep.trial import Trial


class RecordedScores:
    """Looks up the scores of runs. What is recorded when it is created counts; later records need a new one."""

    def __init__(self, store: Store, known: dict[str, Score] | None = None) -> None:
        self._store = store
        self._known = {} if known is None else known
        """By target id. Scores never change, so several look-ups can share them."""
        self._there: dict[str, set[str]] = {}

    def __call__(self, trial: Trial, plan: SearchPlan) -> Score | None:
        key = trial.target_id
        if key not in self._known:
            score = self._read(key, plan.leak, trial.early_stop is not None)
            if score is None:
                return None
            self._known[key] = score
        return self._known[key]

    def again(self) -> RecordedScores:
        """The same by what is recorded now."""
        return RecordedScores(self._store, self._known)

    def _is_there(self, table: str, key: str) -> bool:
        if table not in self._there:
            entries = self._store.storage.entries(f"{layout.PARTS}/{table}")
            self._there[table] = {name for name, entry in entries.items() if entry.size}
        return key + SUFFIX in self._there[table]

    def _read(self, target_id: str, leak: Leak | None, stops_early: bool) -> Score | None:
        if not self._is_there("trials", target_id):
            return None
        try:
            row = self._store.read_part("trials", target_id).to_pylist()[0]
            score = Score(
                accuracy=row["validation_accuracy"],
                is_stopped=row["status"] == "stopped",
                reached=self._reached(target_id) if stops_early else {},
            )
            if score.accuracy is None or score.is_stopped or leak is None:
                return score
            key = f"{target_id}.{leak.attack_id}"
            if not self._is_there("attacks", key):
                return None
            rows = self._store.read_part("attacks", key).to_pylist()
        except DamagedError:  # it counts as missing
            return None
        seen = [each[leak.metric] for each in rows if each[leak.metric] is not None]
        if not seen:
            raise UserError(
                f"The search limits {leak.metric}, which the attack does not measure with so few non-members. Limit auc, or a "
                "rate at a larger FPR."
            )
        return replace(score, leak=max(seen))

    def _reached(self, target_id: str) -> dict[int, float]:
        """Validation accuracy by epoch, where it was measured."""
        if not self._is_there("history", target_id):
            return {}
        rows = self._store.read_part("history", target_id).to_pylist()
        return {row["epoch"]: row["validation_accuracy"] for row in rows if row["validation_accuracy"] is not None}
