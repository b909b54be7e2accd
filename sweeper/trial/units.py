"""Dispatches on a unit of work, which is a trial or a comparison."""

from __future__ import annotations

from sweeper.results.metrics import recorded_metrics
from sweeper.results.store import Store
from sweeper.sweep.comparisons import ComparisonTask
from sweeper.sweep.trial import Trial
from sweeper.trial.comparison import record_failed_comparison, run_comparison
from sweeper.trial.context import TrialContext
from sweeper.trial.failures import record_failure
from sweeper.trial.run import TrialResult, run_trial
from sweeper.workers.outcomes import Cause


def run_unit(unit: Trial | ComparisonTask, context: TrialContext) -> TrialResult:
    """Do what is missing of the unit, and record it."""
    return run_comparison(unit, context) if isinstance(unit, ComparisonTask) else run_trial(unit, context)


def record_lost_unit(unit: Trial | ComparisonTask, store: Store, attempt: int, error: str, cause: Cause) -> None:
    """Record a unit that ended without a result: its process was killed, or its node was lost.

    Raises:
        StorageError: the store cannot be written.
    """
    if isinstance(unit, ComparisonTask):
        record_failed_comparison(unit, store, error, cause)
    else:
        record_failure(unit, store, attempt, error, cause)


def metrics_of_unit(unit: Trial | ComparisonTask, store: Store) -> dict[str, float]:
    """The unit's recorded results, for a tracker."""
    return {} if isinstance(unit, ComparisonTask) else recorded_metrics(store, unit)
