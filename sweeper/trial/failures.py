"""Records a trial's failures as rows."""

from __future__ import annotations

import datetime
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from models.train import DivergedError
from sweeper.results.expected import BEST_OF
from sweeper.results.store import Store
from sweeper.sweep import components
from sweeper.sweep.trial import Trial
from sweeper.trial.best_of import best_of_config
from sweeper.trial.rows import attack_row, trial_row
from sweeper.workers.outcomes import Cause


def record_failure(trial: Trial, store: Store, attempt: int, error: str, cause: Cause) -> None:
    """Record a trial that ended without a result: its process was killed, or its node was lost.

    Raises:
        StorageError: the store cannot be written.
    """
    row = trial_row(trial, datetime.datetime.now(datetime.UTC), attempt, torch.device("cpu"))
    row |= {"device": None, "machine": None, "threads": None}  # these are unknown for the process that died
    record_as_failed(trial, store, row, error, cause)


def record_as_failed(trial: Trial, store: Store, row: dict[str, Any], error: str, cause: Cause) -> None:
    """Write a failed row for the target or, if that is finished, for each missing attack."""
    status = store.status(trial)
    if status.target != "finished":
        store.write_failed_target(trial.target_id, row | {"status": "failed", "error": error, "cause": cause})
        return
    for each in status.missing_attacks:
        record_failed_attack(trial, each, store, error, cause)


def record_diverged_run(trial: Trial, store: Store, row: dict[str, Any], error: str) -> None:
    """Record a run of a search whose training diverged: it is done, without a model."""
    store.write_run_without_model(trial.target_id, row | {"status": "failed", "error": error, "cause": "diverged"}, [])


def record_stopped_run(trial: Trial, store: Store, attempt: int, reached: Mapping[int, float]) -> None:
    """Record a run of a search that was stopped early: it is done, without a model. `reached` has its accuracy by epoch.

    Raises:
        StorageError: the store cannot be written.
    """
    if store.has_target(trial.target_id):  # it finished before it could be stopped
        return
    row = trial_row(trial, datetime.datetime.now(datetime.UTC), attempt, torch.device("cpu"))
    row |= {"device": None, "machine": None, "threads": None}  # these are unknown for the process that was stopped
    row |= {"status": "stopped", "validation_accuracy": reached[max(reached)]}
    history = [
        {"target_id": trial.target_id, "epoch": epoch, "validation_accuracy": accuracy}
        for epoch, accuracy in sorted(reached.items())
    ]
    store.write_run_without_model(trial.target_id, row, history)


def record_failed_attack(trial: Trial, each: str, store: Store, error: str, cause: Cause) -> None:
    attack = trial.attack_ids.get(each)
    if attack is None:
        row = attack_row(trial, each, BEST_OF, "membership", best_of_config(trial))
    else:
        name = components.name_of("attack", attack)
        row = attack_row(trial, each, name, attack.family, components.configuration("attack", attack))
    store.write_failed_attack(trial.target_id, each, row | {"status": "failed", "error": error, "cause": cause})


# Messages of CUDA's libraries when memory runs out outside PyTorch's own allocator.
_LIBRARY_OUT_OF_MEMORY = re.compile(r"CUDA error: out of memory|CU(BLAS|DNN|SOLVER)_STATUS_ALLOC_FAILED")


def cause_of(error: Exception) -> Cause:
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, torch.OutOfMemoryError) or _LIBRARY_OUT_OF_MEMORY.search(str(error)):
        return "gpu_memory"
    return "error"


def describe(error: Exception) -> str:
    """The error's type and text, and where in our code it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
