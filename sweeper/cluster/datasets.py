"""Decodes each dataset once per node before the first trial there, and checks each node's access to the store and its GPUs."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from models.datasets.base import Dataset, DatasetError
from sweeper.cluster.resources import can_grow, check_own_gpus
from sweeper.errors import UserError, reason_of, sentence
from sweeper.results.launches import check_shared
from sweeper.results.store import Store
from sweeper.storage import Storage
from sweeper.sweep.trial import Trial
from sweeper.workers.nodes import clear_unused, node_folder
from sweeper.workers.staging import stage, staged_name
from sweeper.workers.worker import Parcel, Settings, check_gpus

_NODE_TIMEOUT_S = 600.0


_LOST = (
    ray.exceptions.NodeDiedError,
    ray.exceptions.TaskUnschedulableError,
    ray.exceptions.WorkerCrashedError,
)
"""Ray's errors for a task whose node or worker was killed."""


Shipped = Mapping[str, Any]
"""References to the driver's datasets in Ray's object store, keyed by file name on a node."""


def stage_datasets(
    trials: Sequence[Trial],
    settings: Settings,
    *,
    is_cluster: bool,
    uses_gpus: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> Shipped:
    """Decode every dataset once on each node, and check each node's access to the store and to its GPUs.

    A node that lacks a dataset gets the driver's copy, now or when it joins. Losing a node meanwhile is no error, because
    nodes may be lost at any time.

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
                stage_here(dataset, settings, None)
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
        if node["Resources"].get("CPU")  # a head node often offers no CPUs, and then needs no dataset
    }
    if missing and not checks:
        raise UserError(f"{missing[0]} No node that could have it has joined yet, so it must be here.")
    if missing and can_grow():
        warn(f"{missing[0]} Nodes that join later must have it.")
    problems = []
    for node_id, check in checks.items():
        try:
            problems += [f"{nodes[node_id]}: {problem}" for problem in ray.get(check, timeout=_NODE_TIMEOUT_S)]
        except _LOST:
            continue  # if it returns or is replaced, the first trial there does this
        except ray.exceptions.RayError as error:
            problems.append(f"{nodes[node_id]}: it cannot run sweeper's code: {_words_of(error)}")
    if problems:
        raise UserError(
            f"{len(problems)} of the cluster's {len(checks)} nodes cannot run this sweep. " + " ".join(problems[:3])
        )
    return shipped


def _words_of(error: Exception) -> str:
    """The informative line of Ray's error, without colors: the last line of a task's traceback."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    return lines[-1 if isinstance(error, ray.exceptions.RayTaskError) else 0].strip()


@ray.remote(num_cpus=0, max_retries=2)
def _prepare_node(datasets: list[Dataset], settings: Settings, shipped: Shipped, declared_gpus: int) -> list[str]:
    """On a node: stage the datasets, and check the store and the GPUs. Returns the problems found."""
    clear_unused()
    try:
        check_shared(Storage(settings.store), settings.launch_id)
        Store(settings.store).prepare()
        check_gpus(declared_gpus)
        for dataset in datasets:
            stage_here(dataset, settings, shipped.get(staged_name(dataset)))
    except (UserError, DatasetError, OSError) as error:
        return [sentence(reason_of(error))]
    return []


def stage_here(dataset: Dataset, settings: Settings, reference: Any) -> None:
    """Stage a dataset on this node unless it is staged already: from the node's own files, else from the driver's copy.

    Raises:
        DatasetError: the dataset is in neither place.
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
    """Remove the launch's folder from every reachable node."""
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


def stage_late(parcel: Parcel, settings: Settings, shipped: Shipped) -> str | None:
    """Stage a trial's dataset on a node that joined after the launch began. Returns the problem, if any."""
    unit = parcel.open()
    assert isinstance(unit, Trial)
    try:
        check_shared(Storage(settings.store), settings.launch_id)
        stage_here(unit.dataset, settings, shipped.get(parcel.staged_name))
    except (UserError, DatasetError, OSError) as error:
        return reason_of(error)
    return None
