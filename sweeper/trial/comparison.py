"""`run_comparison`: computes one comparison of recorded targets and records its rows. No Ray."""

from __future__ import annotations

import json
import logging
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from attacks.base import MembershipScores
from attacks.cohort.attack import CohortScores
from attacks.cohort.best import CohortBest
from attacks.cohort.cohort import Answers
from sweeper.results import answers, comparisons
from sweeper.results.checkpoints import metadata_of
from sweeper.results.schema import SCHEMA_VERSION
from sweeper.results.store import PARAMETERS, Store
from sweeper.storage import StorageError
from sweeper.sweep import components
from sweeper.sweep.comparisons import ComparisonTask
from sweeper.sweep.identity import canonical_json
from sweeper.sweep.trial import Trial
from sweeper.trial import sources
from sweeper.trial.best_of import recorded_scores
from sweeper.trial.cohort import best_tables, cohort_tables
from sweeper.trial.context import TrialContext
from sweeper.trial.failures import describe
from sweeper.trial.run import TrialResult
from sweeper.workers.outcomes import Cause, Progress

logger = logging.getLogger(__name__)


class RecordedTarget:
    """A target of the group, read from the store on demand."""

    def __init__(self, trial: Trial, task: ComparisonTask, store: Store, scratch: Path) -> None:
        self.target_id, self.seed = trial.target_id, trial.seed
        self._queries, self._inputs, self._store, self._scratch = task.queries, task.inputs, store, scratch

    def parameters(self) -> dict[str, npt.NDArray[Any]]:
        """The trained parameters by name.

        Raises:
                DamagedError: the weights are missing, or differ from the recorded hash.
                ValueError: the version of the code that wrote them did not record which tensors are parameters.
        """
        weights = self._store.read_weights(self.target_id)
        try:
            arrays = load_arrays(weights)
            return {name: arrays[name] for name in json.loads(metadata_of(weights)[PARAMETERS])}
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"the parameters of {self.target_id} cannot be identified: {error}") from None

    def answers(self) -> Answers:
        """Its recorded answers.

        Raises:
            DamagedError: the answers are missing or damaged.
        """
        assert self._queries is not None
        return answers.read(self._store, self.target_id, self._queries, self._scratch)

    def membership_scores(self) -> dict[str, MembershipScores]:
        """Its recorded scores by the attacks and comparisons that are inputs, each named `attack/score`.

        Raises:
            DamagedError: scores are missing or damaged.
        """
        ids = [each.removeprefix(f"{self.target_id}.") for each in self._inputs]
        # The rest are attacks on other targets, and comparisons that this target is no part of.
        own = [each for each in ids if "." not in each and self._store.has_attack(self.target_id, each)]
        names = {
            each: self._store.read_part("attacks", f"{self.target_id}.{each}").column("attack")[0].as_py()
            for each in own
        }
        return recorded_scores(self._store, self.target_id, names)


def run_comparison(task: ComparisonTask, context: TrialContext) -> TrialResult:
    """Run a comparison unless it is recorded, and record its rows. An error is recorded as a failed row.

    Raises:
        StorageError: the store cannot be read or written.
    """
    store, comparison_id = context.store, task.comparison_id
    if comparisons.state(store, task) == "done":
        return TrialResult(target_id=comparison_id, status="finished")
    context.on_progress(Progress(what=task.name, fraction=0.0))
    started = time.perf_counter()
    # Attacks on one target derive their streams from its seed. A group has several seeds, so the id replaces them.
    rng = np.random.default_rng([int(comparison_id[:8], 16), int(comparison_id[8:], 16)])
    try:
        with tempfile.TemporaryDirectory() as scratch:
            group = [RecordedTarget(trial, task, store, Path(scratch)) for trial in task.members]
            results = task.comparison.run(group, rng)
        context.on_progress(Progress(what=f"{task.name}: metrics", fraction=0.7))
        if isinstance(results, CohortBest):
            tables = best_tables(task, results, store, time.perf_counter() - started)
        elif cohort := [each for each in results if isinstance(each, CohortScores)]:
            tables = cohort_tables(task, cohort, context, rng, lambda: time.perf_counter() - started)
        else:
            tables = {task.comparison.tables[0]: [each for each in results if not isinstance(each, CohortScores)]}
    except StorageError:
        raise
    except Exception as error:
        if context.raise_errors:
            raise
        logger.debug("comparison %s failed", comparison_id, exc_info=True)
        traceback.print_exc()
        record_failed_comparison(task, store, describe(error), "error")
        return TrialResult(target_id=comparison_id, status="failed", errors=(describe(error),), cause="error")
    row = _row(task) | {"status": "finished", "compare_time_s": time.perf_counter() - started}
    store.write_comparison(comparison_id, row, tables)
    return TrialResult(target_id=comparison_id, status="finished")


def record_failed_comparison(task: ComparisonTask, store: Store, error: str, cause: Cause) -> None:
    """Record that a comparison failed.

    Raises:
        StorageError: the store cannot be written.
    """
    row = _row(task) | {"status": "failed", "error": error, "cause": cause}
    store.write_failed_comparison(task.comparison_id, row)


def _row(task: ComparisonTask) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "comparison_id": task.comparison_id,
        "comparison": task.name,
        "config": canonical_json(components.configuration("comparison", task.comparison)),
        "members": [trial.target_id for trial in task.members],
        "component_sha256": sources.of_comparison(task.comparison).sha256,
    }
