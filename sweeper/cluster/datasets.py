"""Datasets, decoded once on each node before its first trial, and each node's way to the store and to its GPUs."""

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
"""What Ray says of a task whose node or worker was killed."""


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
        if node["Resources"].get("CPU")  # a head node often has none to give, and then needs no dataset
    }
    if missing and not checks:
        raise UserError(f"{missing[0]} No node that could have it is there yet, so it must be here.")
    if missing and can_grow():
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
            stage_here(dataset, settings, shipped.get(staged_name(dataset)))
    except (UserError, DatasetError, OSError) as error:
        return [sentence(reason_of(error))]
    return []


def stage_here(dataset: Dataset, settings: Settings, reference: Any) -> None:
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


def stage_late(parcel: Parcel, settings: Settings, shipped: Shipped) -> str | None:
    """Stage a trial's dataset on a node that has joined since the launch; gives what is wrong."""
    unit = parcel.open()
    assert isinstance(unit, Trial)
    try:
        check_shared(Storage(settings.store), settings.launch_id)
        stage_here(unit.dataset, settings, shipped.get(parcel.staged_name))
    except (UserError, DatasetError, OSError) as error:
        return reason_of(error)
    return None
