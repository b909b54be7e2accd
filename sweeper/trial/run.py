"""`run_trial`: runs one trial, from its configuration to its records. No Ray; a debugger calls it directly."""

from __future__ import annotations

import datetime
import logging
import time
import traceback
from dataclasses import asdict, dataclass

import numpy as np

from models.answers import answer_of
from models.datasets.base import Examples
from sweeper.results.store import DamagedError, Store
from sweeper.storage import StorageError
from sweeper.sweep.trial import Trial
from sweeper.trial.attack import attack_target, run_attacks
from sweeper.trial.context import TrialContext
from sweeper.trial.failures import cause_of, describe, record_as_failed, record_diverged_run
from sweeper.trial.rows import accuracy_columns, data_columns, output_columns, training_columns, trial_row
from sweeper.trial.target import (
    load_data,
    outputs_of,
    record_answers,
    recorded_model,
    train_target,
    weights_of,
)
from sweeper.workers.outcomes import Cause, Progress

logger = logging.getLogger(__name__)


_DAMAGED_PARTS = 4
"""After this many damaged files of one trial, the disk is blamed."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial ended: `finished`, or `failed` with one text per error and the first error's cause."""

    target_id: str
    status: str
    errors: tuple[str, ...] = ()
    cause: Cause | None = None
    trained: bool = False
    attacks_run: int = 0


def run_trial(trial: Trial, context: TrialContext) -> TrialResult:
    """Do what is missing of a trial, and record each result as soon as it is complete.

    A recorded target is not trained again, and a recorded attack is not run again. A long training stores a checkpoint after
    the first epoch that ends at least `checkpoint_every_s` seconds after the last one, and resumes from an existing checkpoint.
    An error in training or in one attack is recorded as a failed row (or raised, with `raise_errors`); the other attacks
    still run.

    Raises:
        StorageError: the store cannot be read or written, so nothing can be recorded, failures included.
    """
    for _ in range(_DAMAGED_PARTS):
        try:
            return _run_missing(trial, context)
        except DamagedError as error:
            # The damaged file is set aside by now, so it counts as missing and is made again.
            logger.warning("%s", error)
    raise StorageError(
        f"Files of {trial.target_id} in {context.store.location} are damaged again and again. Check the disk."
    )


def _run_missing(trial: Trial, context: TrialContext) -> TrialResult:
    started_at = datetime.datetime.now(datetime.UTC)
    store = context.store
    status = store.status(trial)
    if status.done:
        return TrialResult(target_id=trial.target_id, status="finished")
    trained = False
    try:
        context.on_progress(Progress(what="loading", fraction=0.0))
        started = time.perf_counter()
        data = load_data(trial, context)
        load_time_s = time.perf_counter() - started
        split = trial.split_plan.draw(data.info.n_train, data.info.n_test, trial.seed)
        if status.target == "finished":
            _check_same_data(trial, data, store)
            if not status.answered:
                record_answers(trial, recorded_model(trial, data, context), data, split, context)
        else:
            target = train_target(trial, data, split, context)
            outputs = outputs_of(answer_of(target.model, trial.defenses), data, np.arange(len(data.labels)))
            row = trial_row(trial, started_at, context.attempt, context.device) | {"load_time_s": load_time_s}
            row |= data_columns(data, split) | training_columns(target) | accuracy_columns(outputs, split)
            status = store.status(trial)
            if status.target != "finished":  # otherwise a process that was believed lost has recorded it meanwhile
                store.write_target(
                    trial.target_id,
                    row | {"status": "finished"},
                    [{"target_id": trial.target_id, **asdict(record)} for record in target.history],
                    output_columns(trial.target_id, outputs, split),
                    weights_of(target.model),
                )
            if trial.kept_queries:
                record_answers(trial, target.model, data, split, context)
            trained = True
        missing = status.missing_attacks
        attacked = attack_target(trial, data, split, context) if missing else None
    except (StorageError, DamagedError):
        raise
    except Exception as error:
        if context.raise_errors:
            raise
        logger.debug("trial %s failed", trial.target_id, exc_info=True)
        traceback.print_exc()
        text, cause = describe(error), cause_of(error)
        if cause == "diverged" and trial.search_run is not None:
            # A result like others: these settings are no good
            record_diverged_run(trial, store, trial_row(trial, started_at, context.attempt, context.device), text)
            return TrialResult(target_id=trial.target_id, status="finished", trained=True)
        record_as_failed(trial, store, trial_row(trial, started_at, context.attempt, context.device), text, cause)
        return TrialResult(target_id=trial.target_id, status="failed", errors=(text,), cause=cause)
    errors, first_cause = run_attacks(trial, missing, attacked, split, context)
    return TrialResult(
        target_id=trial.target_id,
        status="failed" if errors else "finished",
        errors=tuple(errors),
        cause=first_cause,
        trained=trained,
        attacks_run=sum(each in trial.attack_ids for each in missing),
    )


def _check_same_data(trial: Trial, data: Examples, store: Store) -> None:
    """Refuse to attack a recorded target with data that differ from its training data."""
    recorded = store.read_part("trials", trial.target_id).column("dataset_sha256")[0].as_py()
    if recorded != data.sha256:
        raise ValueError(
            f"the data of '{trial.dataset_label}' have changed since the target was trained (SHA-256 {recorded[:12]}…, now "
            f"{data.sha256[:12]}…). Restore the former data, or name another results folder with --out"
        )
