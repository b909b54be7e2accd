"""One attempt at a trial, as a worker makes it: in a fresh child process with its own log and time limit.

The worker itself does not import PyTorch; the children's fork server does, once.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.errors import reason_of
from sweeper.results import attempts, layout
from sweeper.storage import Storage, StorageError
from sweeper.workers.isolation import Ending, Send, run_in_child
from sweeper.workers.nodes import in_use, node_folder
from sweeper.workers.outcomes import Cause, Outcome, Progress

if TYPE_CHECKING:
    import torch

    from models.datasets.base import Dataset
    from sweeper.sweep.comparisons import ComparisonTask
    from sweeper.sweep.trial import Trial

PRETEND_GPUS = "SWEEPER_PRETEND_GPUS"
"""For tests: if set in the environment of Ray's nodes, trials that request declared but missing GPUs take turns on the CPU."""
_COPY_LOG_EVERY_S = 30.0
_CUDA_CONTEXT_BYTES = 600 * 2**20
"""Memory that a process takes on a GPU beside PyTorch's own."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that all attempts of a launch share; paths are each node's own."""

    launch_id: str
    store: str
    data_dir: Path
    chunk_size: int | None = None
    time_limit_s: float | None = None
    checkpoint_every_s: float = 60.0
    is_tracked: bool = False
    """Whether outcomes include the recorded results, for a tracker."""


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A pickled trial or comparison on its way to the child that runs it. Opening it imports PyTorch."""

    target_id: str
    title: str
    staged_name: str
    """Name of its dataset's file in the node's folder; empty for a comparison, which needs none."""
    lot: bytes
    """The pickled trials of one lot, which share most of their content. All parcels of the lot refer to these bytes."""
    position: int

    def open(self) -> Trial | ComparisonTask:
        """The trial or comparison. Unpickling is safe: the driver pickled it, and it came through Ray, not from the store."""
        unit: Trial | ComparisonTask = pickle.loads(self.lot)[self.position]
        return unit


def pack(units: Sequence[Trial | ComparisonTask], staged_name: Callable[[Dataset], str]) -> list[Parcel]:
    """Pack one lot of trials or comparisons as parcels."""
    lot = pickle.dumps(list(units))
    return [
        Parcel(
            target_id=unit.target_id,
            title=unit.title,
            staged_name=staged_name(dataset) if (dataset := getattr(unit, "dataset", None)) is not None else "",
            lot=lot,
            position=position,
        )
        for position, unit in enumerate(units)
    ]


@dataclass(frozen=True, kw_only=True)
class _Task:
    settings: Settings
    parcel: Parcel
    staged: Path
    cpus: float
    gpus: float
    attempt: int


def attempt_trial(
    parcel: Parcel,
    settings: Settings,
    *,
    cpus: float,
    gpus: float,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Make one attempt at what is missing of a trial. When this returns, its result is in the store.

    Crash, hang and error are distinguished; each gives a failed row until another attempt succeeds.
    """
    target_id = parcel.target_id
    storage = Storage(settings.store)
    try:
        staged = node_folder(settings.launch_id)
        with in_use(staged):
            attempt = attempts.begin(storage, target_id)
            log = _open_log(storage, target_id, staged)
            _append(log, _headline(parcel, attempt))
            task = _Task(settings=settings, parcel=parcel, staged=staged, cpus=cpus, gpus=gpus, attempt=attempt)
            # Ray does not hide GPUs from a trial that requested none.
            devices = os.environ.get("CUDA_VISIBLE_DEVICES") if gpus else ""
            with _mirrored(log, storage, layout.log(target_id)):
                ending = run_in_child(
                    _run,
                    task,
                    log=log,
                    environment={} if devices is None else {"CUDA_VISIBLE_DEVICES": devices},
                    time_limit_s=settings.time_limit_s,
                    on_message=on_progress,
                )
                outcome = _outcome(parcel, storage, attempt, ending)
                _append(log, f"--- ended: {f'{outcome.cause}: {outcome.error}' if outcome.cause else 'finished'}\n")
            return outcome
    except (StorageError, OSError) as error:
        return Outcome(target_id=target_id, cause="store", error=reason_of(error))


def _append(log: Path, line: str) -> None:
    with log.open("a", encoding="utf-8", errors="replace") as file:
        file.write(line)


def _open_log(storage: Storage, target_id: str, staged: Path) -> Path:
    """A file on this node for the trial's output, which begins with the output of earlier attempts."""
    log_name = layout.log(target_id)
    if storage.is_local:
        log = storage.root / log_name
        if log.is_symlink() or (log.exists() and not log.is_file()):
            storage.write(log_name, b"")  # replaces a link that leads elsewhere or nowhere
        return log
    log = staged / f"{target_id}.log"
    with contextlib.suppress(FileNotFoundError):
        stored = storage.read(log_name)
        if not log.exists() or not log.read_bytes().startswith(stored):
            log.write_bytes(stored)
    return log


@contextlib.contextmanager
def _mirrored(log: Path, storage: Storage, log_name: str) -> Iterator[None]:
    """Copy the log to an object store at the end of the block, and regularly before, in case this node is lost."""
    if storage.is_local:
        yield
        return
    over = threading.Event()

    def copy_on() -> None:
        copied = -1
        while True:
            size = log.stat().st_size
            if size != copied:
                with contextlib.suppress(StorageError):  # the last copy reports errors
                    storage.write(log_name, log.read_bytes())
                copied = size
            if over.wait(_COPY_LOG_EVERY_S):
                return

    copying = threading.Thread(target=copy_on, name="sweeper-log", daemon=True)
    copying.start()
    try:
        yield
    finally:
        over.set()
        copying.join()
    storage.write(log_name, log.read_bytes())


def _outcome(parcel: Parcel, storage: Storage, attempt: int, ending: Ending) -> Outcome:
    if ending.how == "returned":
        outcome: Outcome = ending.value
        if outcome.cause is None:
            attempts.end(storage, parcel.target_id)
        return outcome
    from sweeper.results.store import Store
    from sweeper.trial.units import record_lost_unit

    causes: dict[str, Cause] = {"raised": "error", "died": "process_died", "timed_out": "time_limit"}
    cause = causes[ending.how]
    record_lost_unit(parcel.open(), Store(storage.uri), attempt, ending.text, cause)
    return Outcome(target_id=parcel.target_id, cause=cause, error=ending.text)


def _run(task: _Task, send: Send) -> Outcome:
    """In the child process: run the trial itself."""
    import torch

    from models.performance import Performance
    from sweeper.results.store import DamagedError, Store
    from sweeper.trial.context import TrialContext
    from sweeper.trial.units import metrics_of_unit, run_unit

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)

    def report(progress: Progress) -> None:
        measured = ", ".join(f"{name} {value:.4g}" for name, value in progress.metrics.items())
        logging.info("%3.0f %% %s%s", 100 * progress.fraction, progress.what, f": {measured}" if measured else "")
        send(progress)

    trial = task.parcel.open()
    if task.gpus and not torch.cuda.is_available() and PRETEND_GPUS not in os.environ:  # another node's may work
        problem = f"PyTorch cannot use GPU {os.environ.get('CUDA_VISIBLE_DEVICES')} of {socket.gethostname()}"
        return Outcome(target_id=trial.target_id, cause="store", error=problem)
    torch.set_num_threads(max(1, int(task.cpus)))
    device = torch.device("cuda" if task.gpus and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, task.gpus))
        torch.backends.cudnn.deterministic = True
    store = Store(task.settings.store)
    try:
        result = run_unit(
            trial,
            TrialContext(
                data_dir=task.settings.data_dir,
                store=store,
                device=device,
                attempt=task.attempt,
                staged=task.staged,
                checkpoint_every_s=task.settings.checkpoint_every_s,
                performance=Performance(chunk_size=task.settings.chunk_size),
                on_progress=report,
            ),
        )
        metrics: dict[str, float] = {}
        if task.settings.is_tracked:
            with contextlib.suppress(DamagedError):
                metrics = metrics_of_unit(trial, store)
    except StorageError as error:
        return Outcome(target_id=trial.target_id, cause="store", error=str(error))
    return Outcome(
        target_id=trial.target_id,
        cause=result.cause,
        error="; ".join(result.errors),
        gpu_memory_peak=_gpu_memory_peak(device) if result.trained else None,
        metrics=metrics,
    )


def check_gpus(declared: int) -> None:
    """Check that PyTorch can use as many GPUs of this machine as Ray declares.

    Raises:
        OSError: it cannot.
    """
    if PRETEND_GPUS in os.environ:
        return
    torch = sys.modules.get("torch")
    usable = torch.cuda.device_count() if torch is not None else 0
    if usable >= declared:
        return
    # In a process of its own, because Ray hides the GPUs from one that requested none.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-P", "-c", "import torch; print(torch.cuda.device_count())"]
    answer = subprocess.run(command, env=environment, capture_output=True, check=False).stdout.strip()
    usable = int(answer) if answer.isdigit() else 0
    if usable < declared:
        raise OSError(
            f"Ray declares {declared} GPUs on {socket.gethostname()}, but PyTorch can use {usable}. Check `nvidia-smi` there and "
            "whether the driver is recent enough for PyTorch's CUDA (see `sweeper doctor`), or start Ray there with fewer. With "
            "--gpus-per-trial 0 trials run on CPUs."
        )


def _gpu_memory_peak(device: torch.device) -> float | None:
    import torch

    if device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    return min(1.0, (torch.cuda.max_memory_reserved(device) + _CUDA_CONTEXT_BYTES) / total)


def _headline(parcel: Parcel, attempt: int) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return f"--- attempt {attempt} at {parcel.target_id} ({parcel.title}), {now}, on {socket.gethostname()}\n"
