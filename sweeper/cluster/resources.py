"""What the nodes of the connected cluster have or can start, and each trial's share of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import ray
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sweeper.cluster import internals
from sweeper.errors import UserError
from sweeper.sweep.trial import Trial
from sweeper.workers.scheduling import AUTO, Resources
from sweeper.workers.worker import check_gpus


def resolve(asked: Resources, trials: Sequence[Trial], warn: Callable[[str], None] = lambda text: None) -> Resources:
    """Fill in resources that were not requested, from what the connected cluster has or can start.

    A trial gets a whole GPU if there are any, else none. It gets one CPU, or its share of a GPU machine's CPUs. If an
    autoscaler runs whose node types are unknown here, a trial that fits no present node causes a warning, not an error.

    Raises:
        UserError: no node can ever run a trial that requests this much.
    """
    startable = _startable_resources()
    nodes = _node_resources() + startable
    largest_gpu = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    largest_cpu = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    gpus = {None: 1.0 if largest_gpu >= 1 else 0.0, **asked.gpus}
    may_grow = not startable and can_grow()
    if largest_gpu == 0 and may_grow and None not in asked.gpus:
        warn(
            "No node has a GPU now, so trials request none. If the autoscaler can start such nodes, give --gpus-per-trial."
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
            warn(f"{problem} now; waiting for the autoscaler to start one. `ray status` shows its progress.")
            continue
        raise UserError(
            f"{problem}: the largest has {largest_cpu:g} CPUs, and no node has more than {largest_gpu:g} GPUs. Request less with "
            "--cpus-per-trial and --gpus-per-trial."
        )
    return resources


def check_own_gpus() -> None:
    """Check that PyTorch can use as many GPUs of this machine as a private Ray counts.

    Raises:
        OSError: it cannot.
    """
    check_gpus(int(max(node.get("GPU", 0.0) for node in _node_resources())))


def _share_of_cpus(gpus: float | Literal["auto"], nodes: Sequence[Mapping[str, float]]) -> float:
    """CPUs for a trial that requests this share of a GPU: the same share of the smallest GPU machine's CPUs, at least one."""
    if isinstance(gpus, str) or not gpus:
        return 1.0
    shares = [node["CPU"] * min(1.0, gpus / node["GPU"]) for node in nodes if node.get("GPU") and node.get("CPU")]
    return float(max(1, int(min(shares)))) if shares else 1.0


def _node_resources() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _launcher_config() -> dict[str, Any]:
    """The configuration of Ray's launcher; only its head node has it."""
    try:
        config = YAML(typ="safe").load(Path.home() / "ray_bootstrap_config.yaml")
    except (OSError, ValueError, YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _startable_resources() -> list[dict[str, float]]:
    """The resources of each node type that Ray's launcher may start, if known here."""
    config = _launcher_config()
    try:
        kinds = config["available_node_types"].values()
        most = config.get("max_workers", 0)
        return [dict(kind["resources"]) for kind in kinds if kind.get("resources") and kind.get("max_workers", most)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def can_grow() -> bool:
    """Whether an autoscaler runs that may start more nodes.

    Every cluster has an autoscaler process. If it cannot start nodes, it gives each node a type of its own.
    """
    most = _launcher_config().get("max_workers")
    if isinstance(most, int) and len(_node_resources()) > most:  # the head is not a worker
        return False
    if _startable_resources() or internals.autoscaler_is_v2():
        return True
    kinds = internals.autoscaler_report().get("node_type_mapping") or {}
    return any(kind != f"node_{node}" for node, kind in kinds.items())


class Window:
    """How many trials to submit at a time: those that fit on the nodes, and a few that wait for the next free slot."""

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
            self._size = slots + max(2, slots // 4, 16 if can_grow() else 0)
            self._looked_at = time.monotonic()
        return self._size
