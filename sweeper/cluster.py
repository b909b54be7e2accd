"""Runs trials on Ray: the only file that imports it.

Ray Tune is handed an explicit list of target ids and one concurrency limit; results do not come back through it
but through the results folder, so nothing here depends on Tune's own state. Errors of a trial are caught and
recorded where they happen; Tune's retries are left to workers that die.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

# Read when Ray is imported: no tables, banners or loggers of Tune's own; trials stay in the user's folder.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import tune

import analysis
import attacks
import models
import sweeper
from models.performance import Performance
from sweeper.allocator import ALLOCATOR_ENVIRONMENT
from sweeper.errors import UserError
from sweeper.records import Store
from sweeper.spec import Trial
from sweeper.trial import record_failure, run_trial

REPORT_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a trial; `what` is the stage it is in or the error's text."""

    kind: Literal["started", "progress", "finished", "failed"]
    target_id: str
    what: str = ""
    fraction: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each trial is given, and how many may run at once (None: as many as fit).

    `chunk_size` is the most examples that private gradients work on at once (None: as many as fit their memory).
    """

    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    max_concurrent: int | None = None
    chunk_size: int | None = None


@contextlib.contextmanager
def connect(address: str | None, verbose: bool) -> Any:
    """Ray for the duration of the block: a private one on this machine, or the cluster at `address`.

    Raises:
        UserError: there is no cluster at `address`.
    """
    quiet: dict[str, Any] = {} if verbose else {"logging_level": "ERROR", "log_to_driver": False}
    runtime_env: dict[str, Any] = {"env_vars": ALLOCATOR_ENVIRONMENT}
    try:
        if address is not None:
            _check_reachable(address)
        if address is None:
            ray.init(address="local", include_dashboard=False, runtime_env=runtime_env, **quiet)
        else:
            packages = (sweeper, models, attacks, analysis)
            runtime_env["py_modules"] = [str(Path(package.__path__[0])) for package in packages]
            ray.init(address=address, runtime_env=runtime_env, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"Ray could not be reached{f' at {address}' if address else ''}: {str(error).splitlines()[0]} "
            "Give --address HOST:PORT of a running cluster (`ray start --head` prints it; for one with tokens set "
            "RAY_AUTH_MODE=token), or --local for this machine alone."
        ) from None
    _protect_token()
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Try the address ourselves: Ray goes on trying for ten minutes.

    Raises:
        OSError: nothing answers there within seconds.
        ValueError: it is not HOST:PORT.
    """
    if address in ("auto", "local"):
        return
    parts = urlsplit(address if "//" in address else f"//{address}")
    if not parts.hostname or not parts.port:
        raise ValueError(f"'{address}' is not HOST:PORT.")
    socket.create_connection((parts.hostname, parts.port), timeout=10).close()


def _protect_token() -> None:
    """Ray writes its authentication token readable by all; keep it to its owner."""
    with contextlib.suppress(OSError):
        (Path.home() / ".ray" / "auth_token").chmod(0o600)


def resolve(resources: Resources) -> Resources:
    """Fill in what was not asked for, from what the connected cluster has.

    A trial gets a whole GPU where there are any, else none, and one CPU, or its share of a GPU machine's.

    Raises:
        UserError: no node can ever run a trial that asks for this much.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest_gpu = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    largest_cpu = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    gpus = resources.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if largest_gpu >= 1 else 0.0
    cpus = resources.cpus_per_trial
    if cpus is None:
        shares = [node["CPU"] * min(1.0, gpus / node["GPU"]) for node in nodes if node.get("GPU") and node.get("CPU")]
        cpus = float(max(1, int(min(shares)))) if gpus and shares else 1.0
    if not any(node.get("CPU", 0.0) >= cpus and node.get("GPU", 0.0) >= gpus for node in nodes):
        raise UserError(
            f"No node can run a trial of {cpus:g} CPUs and {gpus:g} GPUs: the largest has {largest_cpu:g} CPUs, and "
            f"{largest_gpu:g} GPUs is the most of one. Ask for less with --cpus-per-trial and --gpus-per-trial."
        )
    return replace(resources, cpus_per_trial=cpus, gpus_per_trial=gpus)


def run_trials(
    trials: Sequence[Trial],
    *,
    data_dir: Path,
    out_dir: Path,
    resources: Resources,
    retries: int,
    on_event: Callable[[Event], None],
    verbose: bool,
) -> None:
    """Run `trials` to the end, or until Ctrl-C; what came of each is in the results folder.

    `resources` are those that `resolve` gave. A trial that fails is tried `retries` times more, be it by an
    error or by the death of its process; then it is recorded as failed, and the rest goes on.
    """
    if not verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    by_id = {trial.target_id: trial for trial in trials}
    function = _trainable(by_id, data_dir.absolute(), out_dir.absolute(), resources, retries)
    store = Store(out_dir)
    watcher = _Watcher(on_event)
    left, aborted = list(by_id), Counter[str]()
    while left:
        try:
            _fit(function, left, resources, retries, watcher, verbose)
            break
        except RuntimeError as error:
            # Where Ray kills a worker for the node's memory, Tune gives up the whole run: begin a new one with what
            # is left, less the trials that were under way too often when that happened.
            if not watcher.running:
                raise
            reason = f"Ray gave up: {str(error).splitlines()[0]}"
            aborted.update(watcher.running)
            for target_id in watcher.running & {each for each, count in aborted.items() if count > retries}:
                watcher.died[target_id] = reason
                on_event(Event(kind="failed", target_id=target_id, what=reason))
            watcher.running.clear()
            statuses = store.statuses(by_id[target_id] for target_id in left)
            ended = watcher.died.keys() | watcher.failed | {each for each, status in statuses.items() if status.done}
            left = [target_id for target_id in left if target_id not in ended]
    for target_id, error_text in watcher.died.items():
        record_failure(by_id[target_id], store, retries + 1, error_text)


def _fit(
    function: Callable[[dict[str, Any]], None],
    target_ids: list[str],
    resources: Resources,
    retries: int,
    watcher: _Watcher,
    verbose: bool,
) -> None:
    """One run of Tune over these targets."""
    asked = {"CPU": resources.cpus_per_trial, "GPU": resources.gpus_per_trial}
    state_dir = tempfile.mkdtemp(prefix="sweeper-tune-")
    try:
        tune.Tuner(
            tune.with_resources(function, {name: amount for name, amount in asked.items() if amount}),
            param_space={"target_id": tune.grid_search(target_ids)},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=resources.max_concurrent,
                reuse_actors=True,
                trial_name_creator=lambda trial: str(trial.config["target_id"]),
                trial_dirname_creator=lambda trial: str(trial.config["target_id"]),
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=state_dir,
                verbose=1 if verbose else 0,
                callbacks=[watcher],
                failure_config=tune.FailureConfig(max_failures=retries),
            ),
        ).fit()
    finally:
        shutil.rmtree(state_dir, ignore_errors=True)


def _trainable(
    by_id: dict[str, Trial], data_dir: Path, out_dir: Path, resources: Resources, retries: int
) -> Callable[[dict[str, Any]], None]:
    gpus, cpus = resources.gpus_per_trial or 0.0, resources.cpus_per_trial or 1.0

    def train_and_attack(config: dict[str, Any]) -> None:
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides no GPU from a trial that asked for none
        import torch

        torch.set_num_threads(max(1, int(cpus)))
        device = torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(min(1.0, gpus))
            torch.backends.cudnn.deterministic = True
        last_report = 0.0

        def report(what: str, fraction: float) -> None:
            nonlocal last_report
            if time.monotonic() - last_report >= REPORT_EVERY_S:
                tune.report({"what": what, "fraction": fraction})
                last_report = time.monotonic()

        for attempt in range(1, retries + 2):
            result = run_trial(
                by_id[config["target_id"]],
                data_dir=data_dir,
                store=Store(out_dir),
                device=device,
                attempt=attempt,
                performance=Performance(chunk_size=resources.chunk_size),
                on_progress=report,
            )
            if result.status == "finished":
                break
        tune.report({"status": result.status, "what": "; ".join(result.errors), "fraction": 1.0})

    return train_and_attack


class _Watcher(tune.Callback):
    """Turns Tune's callbacks into our events, and keeps the trials whose process died for good."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self._on_event = on_event
        self.died: dict[str, str] = {}
        self.failed: set[str] = set()
        self.running: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks into its own state, which is never restored here; a terminal is no pickle.
        return {"died": {}, "failed": set(), "running": set(), "_on_event": None}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.running.add(trial.config["target_id"])
        self._on_event(Event(kind="started", target_id=trial.config["target_id"]))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        status, what = result.get("status"), str(result.get("what", ""))
        target_id = trial.config["target_id"]
        if status is None:
            self._on_event(
                Event(kind="progress", target_id=target_id, what=what, fraction=float(result.get("fraction", 0.0)))
            )
        else:
            self.running.discard(target_id)
            if status != "finished":
                self.failed.add(target_id)
            self._on_event(Event(kind="finished" if status == "finished" else "failed", target_id=target_id, what=what))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        target_id = trial.config["target_id"]
        lines = str(trial.get_pickled_error() or "its process died").strip().splitlines()
        error = f"the trial's process died: {lines[-1] if lines else 'no reason given'}"
        self.died[target_id] = error
        self.running.discard(target_id)
        self._on_event(Event(kind="failed", target_id=target_id, what=error))
