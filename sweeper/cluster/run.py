"""Runs trials on Ray.

Ray Tune is handed a window of target ids at a time; results do not come back through it but through the store, so
nothing here depends on Tune's own state. What becomes of a trial that fails, or whose worker is lost, is decided by
`scheduling`; Tune's retries are not used, for they cannot tell these apart.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partialmethod
from pathlib import Path
from types import FrameType
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

# Read when Ray is imported: no tables, banners or loggers of Tune's own; trials stay in the user's folder; as many
# trials may wait for a slot as we hand out; no snapshots of a state that is never restored.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "100000")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")

import ray
from ray import tune
from ray._common.utils import get_default_ray_temp_dir
from ray._private.authentication import authentication_token_setup
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.common_pb2 import NodeDeathInfo  # type: ignore[attr-defined]  # generated
from ray.experimental import internal_kv
from ray.job_config import JobConfig
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

import analysis
import attacks
import models
import sweeper
from models.datasets.base import Dataset, DatasetError
from sweeper import imports
from sweeper.errors import UserError, reason_of, sentence
from sweeper.results import attempts
from sweeper.results.launches import CLAIMS, Launch, Running, check_shared
from sweeper.results.store import Store
from sweeper.storage import Storage, StorageError
from sweeper.sweep.trial import Trial
from sweeper.trial.failures import record_failure
from sweeper.workers.allocator import ALLOCATOR_ENVIRONMENT
from sweeper.workers.nodes import clear_unused, in_use, node_folder
from sweeper.workers.outcomes import Outcome, Progress
from sweeper.workers.scheduling import AUTO, Resources, Retries, Schedule
from sweeper.workers.staging import stage, staged_name
from sweeper.workers.worker import Parcel, Settings, attempt_trial, check_gpus, pack

REPORT_EVERY_S = 1.0
_LONGEST_TITLE = 150
"""Characters of a trial's title in the name of a folder, which can have 255 bytes."""
_LOT = 500
"""Trials that travel to workers as one object."""
_STORE_FAILURES = 3
"""So many attempts in a row that could not write their results stop the launch, if it cannot write there either."""
_PAUSE_AFTER_STORE_FAILURE_S, _LONGEST_PAUSE_S = 10.0, 600.0
"""A worker waits so long after an attempt that could record nothing, twice as long after the next."""
_LOST_BEFORE_ANY_WORK = 20
"""So many workers more than twice those at work, lost in a row with no sign of work between them, stop the launch too."""
_NODE_TIMEOUT_S = 600.0
_LOOK_AT_NODES_EVERY_S = 2.0
_EXPECTED_DEATHS = (
    NodeDeathInfo.Reason.Value("EXPECTED_TERMINATION"),
    NodeDeathInfo.Reason.Value("AUTOSCALER_DRAIN_IDLE"),
)
"""Why a node may go without being lost: it was stopped, or an autoscaler had no use for it."""
_LONGEST_RAY_FOLDER = 103 - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.0")
"""Bytes of the path of Ray's folder; a socket's own can have 103 on macOS, 107 on Linux."""
_LOST = (
    ray.exceptions.NodeDiedError,
    ray.exceptions.TaskUnschedulableError,
    ray.exceptions.WorkerCrashedError,
)
"""What Ray says of a task whose node or worker was killed."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a trial; `what` is the stage it is in or the error's text.

    `retried` is a failure that is not final, `elsewhere` the end of a trial that another launch ran. `stopping`, of no trial,
    comes from the handler of a signal.
    """

    kind: Literal["started", "progress", "finished", "failed", "retried", "elsewhere", "stopping"]
    target_id: str
    what: str = ""
    fraction: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Loggers:
    """Trackers that Tune feeds, where they are asked for: a folder for TensorBoard, a tracking URI of MLflow."""

    tensorboard: Path | None = None
    mlflow: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended: whether with all its trials, and if not, why it stopped early (None: it was interrupted)."""

    is_over: bool
    stopped: str | None


class _DriversPaths(JobConfig):
    """Workers look for modules in the working directory only where the driver does; Ray's own have it first on their path."""

    def _runtime_env_has_working_dir(self) -> bool:  # Ray then leaves the path as it is
        return not {"", str(Path.cwd())} & set(sys.path)


@contextlib.contextmanager
def connect(address: str | None, verbose: bool) -> Iterator[None]:
    """Ray for the duration of the block: a private one on this machine, or the cluster at `address`.

    A private one listens on the loopback interface alone.

    Raises:
        UserError: there is no cluster at `address`.
    """
    quiet: dict[str, Any] = {} if verbose else {"logging_level": "ERROR", "log_to_driver": False}
    own_folder = str(Path(sweeper.__path__[0]).parent)
    ray.cloudpickle.register_pickle_by_value(imports)
    runtime_env: dict[str, Any] = {
        "env_vars": ALLOCATOR_ENVIRONMENT,
        "worker_process_setup_hook": imports.worker_hook(own_folder if address is None else None),
    }
    # What nodes publish to every driver, among it the last lines of a dead raylet's log, is no line of ours.
    ray._private.worker._worker_logs_enabled = verbose
    # Where Ray takes it that there will be no second node, it binds 127.0.0.1; on Linux it asks only this.
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = address is not None
    try:
        if address is None:
            ray.init(
                address="local",
                include_dashboard=False,
                runtime_env=runtime_env,
                job_config=_DriversPaths(),
                _temp_dir=_folder_for_sockets(),
                **quiet,
            )
        else:
            _check_reachable(address)
            _bring_token(address)
            packages = (sweeper, models, attacks, analysis)
            runtime_env["py_modules"] = [str(Path(package.__path__[0])) for package in packages]
            ray.init(address=address, runtime_env=runtime_env, job_config=_DriversPaths(), **quiet)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  of a start that takes too long Ray says no more than that
        raise UserError(
            f"Ray could not be reached{f' at {address}' if address else ''}: {sentence(reason_of(error).splitlines()[0])} "
            "Give --address HOST:PORT of a running cluster that this machine is a node of (`ray start --head` prints it; one with "
            "tokens needs its own, in ~/.ray/auth_token or RAY_AUTH_TOKEN), or --local for this machine alone."
        ) from None
    _protect_token()
    try:
        yield
    finally:
        ray.shutdown()


def _folder_for_sockets() -> str | None:
    """Where a private Ray keeps its files: where it would by itself (None), unless the paths of its sockets were too long.

    Raises:
        UserError: the user asked for such a folder.
    """
    folder = get_default_ray_temp_dir()
    if len(os.fsencode(folder)) <= _LONGEST_RAY_FOLDER:
        return None
    if "RAY_TMPDIR" in os.environ:
        raise UserError(
            f"RAY_TMPDIR is {os.environ['RAY_TMPDIR']}, whose path is too long for Ray's sockets. Set it to a folder whose path has at "
            f"most {_LONGEST_RAY_FOLDER - len('/ray')} bytes, or leave it out."
        )
    return "/tmp/ray"  # as where TMPDIR is not set


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


def _bring_token(address: str) -> None:
    """Use this user's token where the cluster asks for one: `ray start` does so unasked, to join by address Ray does not.

    Raises:
        UserError: it asks for one, and there is none.
    """
    if address == "auto" or "RAY_AUTH_MODE" in os.environ:
        return
    try:
        with _silence():
            GcsClient(address=address.rpartition("//")[2])
    except ray.exceptions.AuthenticationError:
        logging.getLogger(authentication_token_setup.__name__).setLevel(logging.ERROR)  # it warns of being safe
        if not authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False):
            raise UserError(
                f"The cluster at {address} asks for its token, and there is none here. Copy the file ~/.ray/auth_token of its head "
                "to the same place here, or set RAY_AUTH_TOKEN."
            ) from None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """What C++ writes to standard error is lost."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _protect_token() -> None:
    """Ray writes its authentication token readable by all; keep it to its owner."""
    with contextlib.suppress(OSError):
        (Path.home() / ".ray" / "auth_token").chmod(0o600)


# Before the start


def resolve(asked: Resources, trials: Sequence[Trial], warn: Callable[[str], None] = lambda text: None) -> Resources:
    """Fill in what was not asked for, from what the connected cluster has or can start.

    A trial gets a whole GPU where there are any, else none, and one CPU, or its share of a GPU machine's. Where an
    autoscaler runs whose kinds of nodes are not known here, what no present node can run is warned of, not refused.

    Raises:
        UserError: no node can ever run a trial that asks for this much.
    """
    startable = _startable_resources()
    nodes = _node_resources() + startable
    largest_gpu = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    largest_cpu = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    gpus = {None: 1.0 if largest_gpu >= 1 else 0.0, **asked.gpus}
    may_grow = not startable and _may_grow()
    if largest_gpu == 0 and may_grow and None not in asked.gpus:
        warn(
            "No node has a GPU now, so trials ask for none. If the autoscaler can start such nodes, say --gpus-per-trial."
        )
    if largest_gpu == 0 and not may_grow:
        gpus = {label: 0.0 if share == AUTO else share for label, share in gpus.items()}
    cpus = {label: _share_of_cpus(share, nodes) for label, share in gpus.items()} if None not in asked.cpus else {}
    cpus |= asked.cpus
    resources = replace(asked, cpus=cpus, gpus=gpus)
    for architecture, trial in {trial.architecture_label: trial for trial in trials}.items():
        cpu, share = resources.cpus_of(trial), resources.gpus_of(trial)
        gpu = 1.0 if share == AUTO else float(share)
        if any(node.get("CPU", 0.0) >= cpu and node.get("GPU", 0.0) >= gpu for node in nodes):
            continue
        problem = f"No node can run a trial of {architecture} with {cpu:g} CPUs and {gpu:g} GPUs"
        if may_grow:
            warn(f"{problem} now; waiting for the autoscaler to start one. `ray status` says what it is doing.")
            continue
        raise UserError(
            f"{problem}: the largest has {largest_cpu:g} CPUs, and {largest_gpu:g} GPUs is the most of one. Ask for less with "
            "--cpus-per-trial and --gpus-per-trial."
        )
    return resources


def check_own_gpus() -> None:
    """Make sure that PyTorch can use the GPUs of this machine, as a private Ray counts them.

    Raises:
        OSError: it cannot.
    """
    check_gpus(int(max(node.get("GPU", 0.0) for node in _node_resources())))


def _share_of_cpus(gpus: float | Literal["auto"], nodes: Sequence[Mapping[str, float]]) -> float:
    """CPUs of a trial that asks for so much of a GPU: as much of the CPUs of the poorest machine with GPUs, one at least."""
    if isinstance(gpus, str) or not gpus:
        return 1.0
    shares = [node["CPU"] * min(1.0, gpus / node["GPU"]) for node in nodes if node.get("GPU") and node.get("CPU")]
    return float(max(1, int(min(shares)))) if shares else 1.0


def _node_resources() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _launcher_config() -> dict[str, Any]:
    """The configuration of Ray's launcher; its head node alone has it."""
    try:
        config = YAML(typ="safe").load(Path.home() / "ray_bootstrap_config.yaml")
    except (OSError, ValueError, YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _startable_resources() -> list[dict[str, float]]:
    """What each kind of node has that Ray's launcher may start, where that is known here."""
    config = _launcher_config()
    try:
        kinds = config["available_node_types"].values()
        most = config.get("max_workers", 0)
        return [dict(kind["resources"]) for kind in kinds if kind.get("resources") and kind.get("max_workers", most)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _may_grow() -> bool:
    """Whether an autoscaler runs, which may start nodes that are not there yet.

    Every cluster has a process of that name. Where it may start nothing, it gives each node a kind of its own.
    """
    most = _launcher_config().get("max_workers")
    if isinstance(most, int) and len(_node_resources()) > most:  # the head is no worker
        return False
    if _startable_resources() or is_autoscaler_v2(fetch_from_server=True):
        return True
    status: bytes | None = internal_kv._internal_kv_get(b"__autoscaling_status")
    report = json.loads(status or "{}").get("autoscaler_report") or {}
    return any(kind != f"node_{node}" for node, kind in (report.get("node_type_mapping") or {}).items())


Shipped = Mapping[str, Any]
"""References to the driver's datasets in Ray's object store, by the name of their file on a node."""


def stage_datasets(
    trials: Sequence[Trial],
    settings: Settings,
    *,
    is_cluster: bool,
    uses_gpus: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> Shipped:
    """Have every dataset decoded once on each node, and each node's way to the store and to its GPUs tried.

    A node that lacks a dataset gets the driver's, now or when it joins. One that is lost meanwhile is no problem: more may
    be lost at any time.

    Raises:
        UserError: a dataset is neither here nor on a node, a node cannot write the store, or PyTorch cannot use its GPUs.
    """
    datasets = list(dict.fromkeys(trial.dataset for trial in trials))
    if not is_cluster:
        clear_unused()
        try:
            if uses_gpus:
                check_own_gpus()
            for dataset in datasets:
                _stage_here(dataset, settings, None)
        except (DatasetError, OSError) as error:
            raise UserError(sentence(reason_of(error))) from None
        return {}
    shipped, missing = {}, []
    for dataset in datasets:
        try:
            shipped[staged_name(dataset)] = ray.put(dataset.load(settings.data_dir))
        except DatasetError as error:
            missing.append(str(error))
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in alive}
    checks = {
        node["NodeID"]: _prepare_node.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        ).remote(datasets, settings, shipped, int(node["Resources"].get("GPU", 0)) if uses_gpus else 0)
        for node in alive
        if node["Resources"].get("CPU")  # a head node often has none to give, and then needs no dataset
    }
    if missing and not checks:
        raise UserError(f"{missing[0]} No node that could have it is there yet, so it must be here.")
    if missing and _may_grow():
        warn(f"{missing[0]} Nodes that join later must have it.")
    problems = []
    for node_id, check in checks.items():
        try:
            problems += [f"{nodes[node_id]}: {problem}" for problem in ray.get(check, timeout=_NODE_TIMEOUT_S)]
        except _LOST:
            continue  # if it comes back, or another in its place, the first trial there does this
        except ray.exceptions.RayError as error:
            problems.append(f"{nodes[node_id]}: it cannot run sweeper's code: {_words_of(error)}")
    if problems:
        raise UserError(
            f"{len(problems)} of the cluster's {len(checks)} nodes cannot run this sweep. " + " ".join(problems[:3])
        )
    return shipped


def _words_of(error: Exception) -> str:
    """The line of Ray's error that says what happened, without colors: of a task's traceback the last."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    return lines[-1 if isinstance(error, ray.exceptions.RayTaskError) else 0].strip()


@ray.remote(num_cpus=0, max_retries=2)
def _prepare_node(datasets: list[Dataset], settings: Settings, shipped: Shipped, declared_gpus: int) -> list[str]:
    """On a node: stage the datasets, try the store and the GPUs; gives what is wrong."""
    clear_unused()
    try:
        check_shared(Storage(settings.store), settings.launch_id)
        Store(settings.store).prepare()
        check_gpus(declared_gpus)
        for dataset in datasets:
            _stage_here(dataset, settings, shipped.get(staged_name(dataset)))
    except (UserError, DatasetError, OSError) as error:
        return [sentence(reason_of(error))]
    return []


def _stage_here(dataset: Dataset, settings: Settings, reference: Any) -> None:
    """Stage a dataset on this node, unless that was done: from the node's own files, else the driver's.

    Raises:
        DatasetError: it is in neither place.
    """
    folder = node_folder(settings.launch_id)
    if (folder / staged_name(dataset)).exists():
        return
    try:
        data = dataset.load(settings.data_dir)
    except DatasetError:
        if reference is None:
            raise
        data = ray.get(reference)
    stage(dataset, data, folder)


def clear_staged(launch_id: str, *, is_cluster: bool) -> None:
    """Remove the launch's folder from every node that still answers."""
    if not is_cluster:
        shutil.rmtree(node_folder(launch_id), ignore_errors=True)
        return
    clearings = [
        _clear_node.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        ).remote(launch_id)
        for node in ray.nodes()
        if node["Alive"]
    ]
    with contextlib.suppress(ray.exceptions.RayError):
        ray.wait(clearings, num_returns=len(clearings), timeout=10)


@ray.remote(num_cpus=0, max_retries=0)
def _clear_node(launch_id: str) -> None:
    shutil.rmtree(node_folder(launch_id), ignore_errors=True)


# The run


def run_trials(
    trials: Sequence[Trial],
    *,
    store: Store,
    launch: Launch,
    settings: Settings,
    resources: Resources,
    retries: Retries,
    on_event: Callable[[Event], None],
    shipped: Shipped | None = None,
    loggers: Loggers | None = None,
    attempt: Callable[..., Outcome] = attempt_trial,
    warn: Callable[[str], None] = lambda text: None,
    verbose: bool = False,
) -> Ended:
    """Run `trials` to the end, or until Ctrl-C; what came of each is in the store.

    `resources` are those that `resolve` gave; `attempt` makes one attempt at a trial, on a worker.
    """
    if not verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    by_id = {trial.target_id: trial for trial in trials}

    def claim(target_id: str) -> Literal["ours", "theirs", "done", "unknown"]:
        try:
            if launch.claim(target_id) == "theirs":
                return "theirs"
            if launch.met_others and store.status(by_id[target_id]).done:
                launch.release(target_id)
                on_event(Event(kind="elsewhere", target_id=target_id))
                return "done"
        except StorageError as error:
            schedule.stop(str(error))
            return "unknown"
        return "ours"

    def settled(target_ids: Collection[str]) -> list[str]:
        try:
            claimed = store.storage.entries(CLAIMS)
            statuses = store.statuses([by_id[target_id] for target_id in target_ids])
            failed = [each for each, status in statuses.items() if status.word == "failed" and each not in claimed]
            cut_short = store.cut_short(failed)
        except StorageError:  # asked again soon
            return []
        ended = [each for each, status in statuses.items() if status.done]
        ended += [each for each in failed if each not in cut_short]
        for target_id in ended:
            on_event(Event(kind="elsewhere", target_id=target_id))
        return ended

    window = _Window(resources, lambda: schedule.smallest_gpus)
    schedule = Schedule(trials, resources=resources, retries=retries, claim=claim, settled=settled, window=window)
    watcher = _Watcher(schedule, store, launch, on_event)
    launch.report(watcher.running)
    function = _trainable(trials, settings, shipped or {}, attempt)
    positions = {trial.target_id: position for position, trial in enumerate(trials)}
    interrupted = False
    with in_use(node_folder(settings.launch_id)) as folder:
        while not schedule.is_over and not interrupted:
            try:
                feeder = _Feeder(schedule, positions)
                _fit(function, feeder, watcher, loggers or Loggers(), trials[0].sweep, folder, warn, verbose)
                # A Ctrl-C that Tune heard before we could leaves trials behind.
                interrupted = watcher.is_stopping or not feeder.is_finished or bool(schedule.out)
            except RuntimeError as error:
                # Where Ray kills a worker for the node's memory, Tune gives up the whole run: begin one with the rest.
                if not schedule.out:
                    raise
                watcher.all_lost(f"Ray gave up: {str(error).splitlines()[0]}")
                interrupted = watcher.is_stopping
    return Ended(
        is_over=schedule.is_over and schedule.stopped is None,
        stopped=schedule.stopped,
    )


def _fit(
    function: Callable[[dict[str, Any]], None],
    feeder: _Feeder,
    watcher: _Watcher,
    loggers: Loggers,
    name: str,
    folder: Path,
    warn: Callable[[str], None],
    verbose: bool,
) -> None:
    """One run of Tune, whose files are of no use after it. A first Ctrl-C ends it without an error."""
    callbacks: list[tune.Callback] = [watcher, _LostNodes(warn)]
    if loggers.tensorboard is not None:
        callbacks.append(_tracker("tensorboard", "", name, warn))
    if loggers.mlflow is not None:
        callbacks.append(_tracker("mlflow", loggers.mlflow, name, warn))
    state_dir = tempfile.mkdtemp(prefix="tune-", dir=folder)
    on_interrupt = signal.getsignal(signal.SIGINT)
    # Tune puts its own handler in place while it runs, and ours back at the first Ctrl-C; where it waits for something to
    # run, it does not look further.
    feeder.is_interrupted = lambda: signal.getsignal(signal.SIGINT) is on_interrupt
    feeder.on_begin = lambda: _acknowledge_interrupts(watcher.stopping)
    try:
        tune.Tuner(
            tune.with_resources(
                function, lambda config: tune.PlacementGroupFactory([{"CPU": config["cpus"], "GPU": config["gpus"]}])
            ),
            tune_config=tune.TuneConfig(
                search_alg=feeder,
                scheduler=_Forgetful(keeps_files=loggers.tensorboard is not None),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=lambda trial: str(trial.config["name"]),
                trial_dirname_creator=lambda trial: str(trial.config["name"]),
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(loggers.tensorboard.absolute()) if loggers.tensorboard else state_dir,
                verbose=1 if verbose else 0,
                callbacks=callbacks,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        ).fit()
    finally:
        signal.signal(signal.SIGINT, on_interrupt)  # Tune leaves its own, which would swallow the next Ctrl-C
        shutil.rmtree(state_dir, ignore_errors=True)


def _tracker(kind: Literal["tensorboard", "mlflow"], uri: str, name: str, warn: Callable[[str], None]) -> tune.Callback:
    if kind == "tensorboard":
        from ray.tune.logger import TBXLoggerCallback

        return _Forgiving(TBXLoggerCallback(), "TensorBoard", warn)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its own are four minutes, and all waits
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    mlflow = MLflowLoggerCallback(tracking_uri=uri, experiment_name=name)
    parts = urlsplit(uri)
    return _Forgiving(mlflow, "MLflow", warn, secrets=(parts.username, parts.password))


def _acknowledge_interrupts(acknowledge: Callable[[], None]) -> None:
    """Let a Ctrl-C be acknowledged at once; the handler of Tune, which then takes seconds to end its workers, says nothing."""
    tunes = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        if callable(tunes):
            tunes(number, frame)
        acknowledge()

    signal.signal(signal.SIGINT, handle)


class _LostNodes(tune.Callback):
    """Says of each node that was lost, once, that it was."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._alive: dict[str, str] = {}
        self._looked_at = -math.inf

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self._looked_at < _LOOK_AT_NODES_EVERY_S:
            return
        self._looked_at = time.monotonic()
        for node in ray.nodes():
            if node["Alive"]:
                self._alive[node["NodeID"]] = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                continue
            name = self._alive.pop(node["NodeID"], None)
            if name is not None and node.get("DeathReason") not in _EXPECTED_DEATHS:
                self._warn(f"Node {name} was lost; what ran there goes on elsewhere.")


class _Forgiving(tune.Callback):
    """A tracker whose errors end nothing but itself: after the first, which is told, it hears of nothing more."""

    def __init__(
        self, tracker: tune.Callback, name: str, warn: Callable[[str], None], secrets: Sequence[str | None] = ()
    ) -> None:
        self._tracker: tune.Callback | None = tracker
        self._name, self._warn, self._secrets = name, warn, secrets

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks

    def _tell(self, what: str, *args: Any, **info: Any) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, what)(*args, **info)
        except Exception as error:  # noqa: BLE001  a tracker's, whatever it is
            self._tracker = None
            text = f"{type(error).__name__}: {error}"
            for secret in filter(None, self._secrets):
                text = text.replace(secret, "***").replace(unquote(secret), "***")
            self._warn(f"{self._name} is told nothing more, for it failed: {text}")

    setup = partialmethod(_tell, "setup")
    on_step_begin = partialmethod(_tell, "on_step_begin")
    on_step_end = partialmethod(_tell, "on_step_end")
    on_trial_start = partialmethod(_tell, "on_trial_start")
    on_trial_result = partialmethod(_tell, "on_trial_result")
    on_trial_complete = partialmethod(_tell, "on_trial_complete")
    on_trial_error = partialmethod(_tell, "on_trial_error")
    on_experiment_end = partialmethod(_tell, "on_experiment_end")


def _trainable(
    trials: Sequence[Trial], settings: Settings, shipped: Shipped, attempt: Callable[..., Outcome]
) -> Callable[[dict[str, Any]], None]:
    """What a worker does for each trial. It travels by value, and must refer to nothing that imports PyTorch."""
    lots = [ray.put(pack(trials[start : start + _LOT], staged_name)) for start in range(0, len(trials), _LOT)]
    lot_size, report_every_s = _LOT, REPORT_EVERY_S
    pause_s, longest_pause_s = _PAUSE_AFTER_STORE_FAILURE_S, _LONGEST_PAUSE_S
    received: dict[int, list[Parcel]] = {}
    failures_in_a_row = 0

    def train_and_attack(config: dict[str, Any]) -> None:
        nonlocal failures_in_a_row
        number, position = divmod(config["position"], lot_size)
        if number not in received:  # one lot is kept, for the next trial is mostly of the same
            received.clear()
            received[number] = ray.get(lots[number])
        parcel = received[number][position]
        last_report = 0.0
        measured: dict[str, float] = {}

        def report(progress: Progress) -> None:
            nonlocal last_report
            measured.update(progress.metrics)
            if time.monotonic() - last_report >= report_every_s:
                tune.report({"what": progress.what, "fraction": progress.fraction, **progress.metrics})
                last_report = time.monotonic()

        problem = None
        if not (node_folder(settings.launch_id) / parcel.staged_name).exists():  # this node has joined since the launch
            from sweeper.cluster.run import stage_late

            problem = stage_late(parcel, settings, shipped)
        if problem is None:
            outcome = attempt(parcel, settings, cpus=config["cpus"], gpus=config["gpus"], on_progress=report)
        else:
            outcome = Outcome(target_id=parcel.target_id, cause="store", error=problem)
        failures_in_a_row = failures_in_a_row + 1 if outcome.cause == "store" else 0
        if failures_in_a_row:
            # lest a node that cannot write has taken all trials before others took any
            time.sleep(min(longest_pause_s, pause_s * 2 ** (failures_in_a_row - 1)))
        tune.report(
            {
                "ended": True,
                "cause": outcome.cause,
                "what": outcome.error,
                "gpu_memory_peak": outcome.gpu_memory_peak,
                **measured,
                **outcome.metrics,
            }
        )

    return train_and_attack


def stage_late(parcel: Parcel, settings: Settings, shipped: Shipped) -> str | None:
    """Stage a trial's dataset on a node that has joined since the launch; gives what is wrong."""
    try:
        check_shared(Storage(settings.store), settings.launch_id)
        _stage_here(parcel.open().dataset, settings, shipped.get(parcel.staged_name))
    except (UserError, DatasetError, OSError) as error:
        return reason_of(error)
    return None


class _Feeder(Searcher):
    """Gives Tune the schedule's next trial whenever it has room for one."""

    def __init__(self, schedule: Schedule, positions: Mapping[str, int]) -> None:
        super().__init__()
        self._schedule, self._positions = schedule, positions
        self.is_finished = False
        self.is_interrupted: Callable[[], bool] = lambda: False
        self.on_begin: Callable[[], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher into its own state, which is never restored here

    def set_search_properties(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        if self.on_begin is not None:
            self.on_begin()
            self.on_begin = None
        if self._schedule.is_over:
            self.is_finished = True
            return Searcher.FINISHED
        if self.is_interrupted():
            return Searcher.FINISHED
        ticket = self._schedule.next()
        if ticket is None:
            return None
        trial = self._schedule.trials[ticket.target_id]
        title = re.sub(r"[^A-Za-z0-9_.+=-]+", "_", trial.title)
        return {
            "target_id": ticket.target_id,
            "position": self._positions[ticket.target_id],
            "cpus": ticket.cpus,
            "gpus": ticket.gpus,
            # For trackers
            "name": f"{title[:_LONGEST_TITLE]}_{ticket.target_id}",
            "defense": trial.defense_label,
            "dataset": trial.dataset_label,
            "split": trial.split,
            "architecture": trial.architecture_label,
            "optimizer": trial.optimizer_label,
            "seed": trial.seed,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Forgetful(FIFOScheduler):
    """Runs trials in the order they come, and has Tune forget each that has ended.

    By itself Tune keeps them all until its run ends, and looks through them at every step.
    """

    def __init__(self, *, keeps_files: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._keeps_files = keeps_files

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        its = tune_controller._tune_controller
        ended = {each for each in its._stopped_trials | its._failed_trials if each not in its._trial_to_actor}
        ended -= set(its._trials[-1:])  # with none left it would read back its own snapshot in the end
        if ended:
            its._trials[:] = [each for each in its._trials if each not in ended]
            for trials in (its._stopped_trials, its._failed_trials, its._live_trials, its._trials_to_cache):
                trials -= ended
            waiting = its._actor_manager._pending_actors_to_enqueued_actor_tasks
            for gone in waiting.keys() - its._actor_manager._pending_actors_to_attrs.keys():
                del waiting[gone]
            for trial in ended:
                its._trial_metadata.pop(trial.trial_id, None)
                if not self._keeps_files:
                    shutil.rmtree(trial.local_path, ignore_errors=True)
        return super().choose_trial_to_run(tune_controller)


@dataclass(frozen=True, kw_only=True)
class _UnderWay:
    began: float
    stage: str = "starting"
    fraction: float = 0.0
    node: str = ""


class _Watcher(TrialProgressCallback):
    """Turns Tune's callbacks into the schedule's ends and our events.

    It stands in for Tune's own reporter, which prints what each trial reports, and would keep them all.
    """

    def __init__(self, schedule: Schedule, store: Store, launch: Launch, on_event: Callable[[Event], None]) -> None:
        super().__init__()
        self._schedule, self._store, self._launch, self._on_event = schedule, store, launch, on_event
        self._running: dict[str, _UnderWay] = {}
        self._store_failures = 0
        self._lost_in_a_row = 0
        self.is_stopping = False

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks too

    def running(self) -> tuple[Running, ...]:
        """What runs now; called from another thread."""
        now = time.monotonic()
        return tuple(
            Running(
                target_id=target_id,
                title=self._schedule.trials[target_id].title,
                stage=each.stage,
                fraction=each.fraction,
                seconds=now - each.began,
                node=each.node,
            )
            for target_id, each in list(self._running.items())
        )

    def stopping(self) -> None:
        """A Ctrl-C was heard."""
        self.is_stopping = True
        self._on_event(Event(kind="stopping", target_id=""))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        target_id = trial.config["target_id"]
        self._running[target_id] = _UnderWay(began=time.monotonic())
        self._on_event(Event(kind="started", target_id=target_id))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        target_id, what = trial.config["target_id"], str(result.get("what") or "")
        self._lost_in_a_row = 0
        if not result.get("ended"):
            fraction = float(result.get("fraction", 0.0))
            before = self._running.get(target_id, _UnderWay(began=time.monotonic()))
            node = str(result.get("hostname") or "")  # Tune's own, as are all that stand beside ours
            self._running[target_id] = replace(before, stage=what, fraction=fraction, node=node)
            self._on_event(Event(kind="progress", target_id=target_id, what=what, fraction=fraction))
            return
        self._running.pop(target_id, None)
        if result["cause"] == "store":
            self._store_failures += 1
            if self._store_failures >= _STORE_FAILURES and not self._can_write():
                self._schedule.stop(what)
            self._lost(target_id, what)
            return
        self._store_failures = 0
        outcome = Outcome(
            target_id=target_id, cause=result["cause"], error=what, gpu_memory_peak=result["gpu_memory_peak"]
        )
        final = self._schedule.ended(outcome)
        kind: Literal["finished", "failed", "retried"] = "finished" if outcome.cause is None else "failed"
        self._end(target_id, kind if final else "retried", what)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        target_id = trial.config["target_id"]
        reason = _reason(trial)
        self._running.pop(target_id, None)
        if target_id in self._schedule.out:
            self._lost_in_a_row += 1
            if self._lost_in_a_row >= _LOST_BEFORE_ANY_WORK + 2 * len(self._schedule.out):
                self._schedule.stop(f"workers end before they begin to work: {reason}")
            self._lost(target_id, f"its worker or node was lost: {reason}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Nothing more: what came of it was reported."""

    def _can_write(self) -> bool:
        """Whether the store can be written from here: then it is one node that cannot."""
        try:
            self._store.prepare()
        except StorageError:
            return False
        return True

    def all_lost(self, reason: str) -> None:
        """All that runs was lost at once."""
        self._running.clear()
        for target_id in list(self._schedule.out):
            self._lost(target_id, reason)

    def _lost(self, target_id: str, reason: str) -> None:
        final = self._schedule.lost(target_id)
        if final:
            try:
                trial = self._schedule.trials[target_id]
                record_failure(
                    trial, self._store, attempts.count(self._store.storage, target_id), reason, "worker_lost"
                )
            except StorageError as error:
                self._schedule.stop(str(error))
        self._end(target_id, "failed" if final else "retried", reason)

    def _end(self, target_id: str, kind: Literal["finished", "failed", "retried"], what: str) -> None:
        if kind != "retried":
            with contextlib.suppress(StorageError):  # a claim that is left behind dies with this launch
                self._launch.release(target_id)
        self._on_event(Event(kind=kind, target_id=target_id, what=what))


def _reason(trial: Any) -> str:
    """The last line of what Ray says of a lost worker. Tune's own ways of asking look where it is only copied later."""
    try:
        lines = Path(trial.local_path, "error.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except (OSError, TypeError):
        lines = []
    return lines[-1].strip() if lines else "no reason given"


class _Window:
    """How many trials to hand out at a time: what fits on the nodes, and a few that wait for the next free slot."""

    def __init__(self, resources: Resources, smallest_gpus: Callable[[], float]) -> None:
        self._resources, self._smallest_gpus = resources, smallest_gpus
        self._looked_at = -math.inf
        self._size = 1

    def __call__(self) -> int:
        if self._resources.max_concurrent is not None:
            return self._resources.max_concurrent
        if time.monotonic() - self._looked_at > 5:
            cpus, gpus = min(self._resources.cpus.values()), self._smallest_gpus()
            slots = 0
            for node in _node_resources():
                fits = [int(node.get("CPU", 0.0) / cpus)] + ([int(node.get("GPU", 0.0) / gpus)] if gpus else [])
                slots += min(fits)
            self._size = slots + max(2, slots // 4, 16 if _may_grow() else 0)
            self._looked_at = time.monotonic()
        return self._size
