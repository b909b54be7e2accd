"""One attempt at a trial, as a worker makes it: in a fresh child process, with a log and a time limit of its own."""

from __future__ import annotations

import datetime
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from models.performance import Performance
from sweeper.isolation import Ending, Send, run_in_child
from sweeper.records import Store
from sweeper.scheduling import Cause, Outcome
from sweeper.spec import Trial
from sweeper.staging import in_use, node_folder
from sweeper.storage import StorageError
from sweeper.trial import Progress, record_failure, run_trial

_CUDA_CONTEXT_BYTES = 600 * 2**20
"""What a process that uses a GPU takes there beside PyTorch's own memory."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all attempts of a launch have in common; paths are each node's own."""

    launch_id: str
    store: str
    data_dir: Path
    chunk_size: int | None = None
    time_limit_s: float | None = None
    checkpoint_every_s: float = 60.0
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Task:
    settings: Settings
    trial: Trial
    staged: Path
    cpus: float
    gpus: float
    attempt: int


def attempt_trial(
    trial: Trial,
    settings: Settings,
    *,
    cpus: float,
    gpus: float,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Make one attempt at what is missing of a trial; whatever becomes of it is in the store when this returns.

    A crash, a hang and an error are told apart; each is a failed row until another attempt succeeds.
    """
    store = Store(settings.store)
    target_id = trial.target_id
    try:
        staged = node_folder(settings.launch_id)
        with in_use(staged):
            attempt = store.begin_attempt(target_id)
            log = store.local_log(target_id) or staged / f"{target_id}.log"
            with log.open("a", encoding="utf-8") as file:
                file.write(_headline(trial, attempt))
            task = _Task(settings=settings, trial=trial, staged=staged, cpus=cpus, gpus=gpus, attempt=attempt)
            # Ray hides no GPU from a trial that asked for none.
            devices = os.environ.get("CUDA_VISIBLE_DEVICES") if gpus else ""
            environment = dict(settings.environment)
            if devices is not None:
                environment["CUDA_VISIBLE_DEVICES"] = devices
            ending = run_in_child(
                _run,
                task,
                log=log,
                environment=environment,
                time_limit_s=settings.time_limit_s,
                on_message=on_progress,
            )
            outcome = _outcome(trial, store, attempt, ending)
            if store.local_log(target_id) is None:
                store.write_log(target_id, log)
            return outcome
    except (StorageError, OSError) as error:
        return Outcome(target_id=target_id, cause="store", error=str(error))


def _outcome(trial: Trial, store: Store, attempt: int, ending: Ending) -> Outcome:
    if ending.how == "returned":
        outcome: Outcome = ending.value
        if outcome.cause is None:
            store.end_attempts(trial.target_id)
        return outcome
    causes: dict[str, Cause] = {"raised": "error", "died": "process_died", "timed_out": "time_limit"}
    cause = causes[ending.how]
    record_failure(trial, store, attempt, ending.text, cause)
    return Outcome(target_id=trial.target_id, cause=cause, error=ending.text)


def _run(task: _Task, send: Send) -> Outcome:
    """In the child: the trial itself."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)

    def report(progress: Progress) -> None:
        measured = ", ".join(f"{name} {value:.4g}" for name, value in progress.metrics.items())
        logging.info("%3.0f %% %s%s", 100 * progress.fraction, progress.what, f": {measured}" if measured else "")
        send(progress)

    torch.set_num_threads(max(1, int(task.cpus)))
    device = torch.device("cuda" if task.gpus and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, task.gpus))
        torch.backends.cudnn.deterministic = True
    try:
        result = run_trial(
            task.trial,
            data_dir=task.settings.data_dir,
            store=Store(task.settings.store),
            device=device,
            attempt=task.attempt,
            staged=task.staged,
            checkpoint_every_s=task.settings.checkpoint_every_s,
            performance=Performance(chunk_size=task.settings.chunk_size),
            on_progress=report,
        )
    except StorageError as error:
        return Outcome(target_id=task.trial.target_id, cause="store", error=str(error))
    return Outcome(
        target_id=task.trial.target_id,
        cause=result.cause,
        error="; ".join(result.errors),
        gpu_memory_peak=_gpu_memory_peak(device),
    )


def _gpu_memory_peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    return min(1.0, (torch.cuda.max_memory_reserved(device) + _CUDA_CONTEXT_BYTES) / total)


def _headline(trial: Trial, attempt: int) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return f"--- attempt {attempt} at {trial.target_id} ({trial.title}), {now}, on {socket.gethostname()}\n"
