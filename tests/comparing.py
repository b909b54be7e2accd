"""Runs the comparisons of finished targets, as a launch does, without Ray."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sweeper.results.comparisons import DueComparisons, write_comparisons_now
from sweeper.results.store import Store
from sweeper.sweep.trial import Trial
from sweeper.trial.comparison import run_comparison
from sweeper.trial.context import TrialContext
from sweeper.trial.run import TrialResult


def run_comparisons(store: Store, trials: Sequence[Trial]) -> list[TrialResult]:
    """Run what is due, and what becomes due by that."""
    due = DueComparisons(store, trials, {each.target_id for each in trials if store.status(each).comparable}, ())
    write_comparisons_now(store, due.planned)
    context = TrialContext(data_dir=store.storage.root, store=store, device=torch.device("cpu"))
    results, waiting = [], due.due()
    while waiting:
        task, *waiting = waiting
        results.append(run_comparison(task, context))
        waiting += due.ended(task.comparison_id)
    return results
