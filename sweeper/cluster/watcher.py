"""Turns Tune's callbacks into updates of the schedule and into events."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ray
from ray import tune

from sweeper.cluster.events import Event
from sweeper.cluster.halving import EarlyStopping
from sweeper.cluster.internals import EXPECTED_DEATHS, SilentReporter, reason_of_loss
from sweeper.results import attempts
from sweeper.results.launches import CURVES, MOST_POINTS, RESOURCES, Activity, Launch, Running
from sweeper.results.store import Store
from sweeper.search.early_stopping import EPOCH
from sweeper.storage import StorageError
from sweeper.sweep.comparisons import ComparisonTask
from sweeper.sweep.trial import Trial
from sweeper.trial.failures import record_stopped_run
from sweeper.trial.units import record_lost_unit
from sweeper.workers.outcomes import Outcome
from sweeper.workers.scheduling import Schedule
from sweeper.workers.time_left import TimeLeft

_STORE_FAILURES = 3
"""This many attempts in a row that cannot write their results stop the launch, if the driver cannot write either."""


_LOST_BEFORE_ANY_WORK = 20
"""The launch also stops if this many workers, plus twice those at work, are lost in a row with no sign of work between them."""


_LOOK_AT_NODES_EVERY_S = 2.0


class Nodes(tune.Callback):
    """Looks at the cluster now and then: warns once about each lost node, and notes how much of its resources is in use."""

    def __init__(self, warn: Callable[[str], None], note: Callable[[Mapping[str, tuple[float, float]]], None]) -> None:
        self._warn, self._note = warn, note
        self._alive: dict[str, str] = {}
        self._looked_at = -math.inf

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self._looked_at < _LOOK_AT_NODES_EVERY_S:
            return
        self._looked_at = time.monotonic()
        total, free = ray.cluster_resources(), ray.available_resources()
        self._note({name: (total[name] - free.get(name, 0.0), total[name]) for name in RESOURCES if name in total})
        for node in ray.nodes():
            if node["Alive"]:
                self._alive[node["NodeID"]] = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                continue
            name = self._alive.pop(node["NodeID"], None)
            if name is not None and node.get("DeathReason") not in EXPECTED_DEATHS:
                self._warn(f"Node {name} was lost; its trials continue elsewhere.")


@dataclass(frozen=True, kw_only=True)
class _UnderWay:
    began: float
    stage: str = "starting"
    fraction: float = 0.0
    node: str = ""
    curve: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def measured(self, result: Mapping[str, Any]) -> Mapping[str, tuple[float, ...]]:
        """The curve with what was measured after one more epoch, if `result` has that."""
        point = {name: float(result[name]) for name in CURVES if isinstance(result.get(name), int | float)}
        epochs = self.curve.get(EPOCH, ())
        if EPOCH not in point or (epochs and point[EPOCH] <= epochs[-1]) or not all(map(math.isfinite, point.values())):
            return self.curve
        if epochs and point.keys() != self.curve.keys():
            return self.curve
        curve = {name: (*self.curve.get(name, ()), value) for name, value in point.items()}
        return {name: values[::2] if len(values) > MOST_POINTS else values for name, values in curve.items()}


class Watcher(SilentReporter):
    """Turns Tune's callbacks into updates of the schedule and into our events."""

    def __init__(
        self,
        schedule: Schedule,
        units: Mapping[str, Trial | ComparisonTask],
        store: Store,
        launch: Launch,
        on_event: Callable[[Event], None],
        early_stopping: EarlyStopping,
        time_left: TimeLeft,
    ) -> None:
        super().__init__()
        self._early_stopping, self._time_left = early_stopping, time_left
        self._units = units
        self._schedule, self._store, self._launch, self._on_event = schedule, store, launch, on_event
        self._running: dict[str, _UnderWay] = {}
        self._store_failures = 0
        self._lost_in_a_row = 0
        self._resources: Mapping[str, tuple[float, float]] = {}
        self.is_stopping = False

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks too

    def activity(self) -> Activity:
        """What is going on now; called from another thread."""
        now = time.monotonic()
        running = tuple(
            Running(
                target_id=target_id,
                title=self._schedule.units[target_id].title,
                stage=each.stage,
                fraction=each.fraction,
                seconds=now - each.began,
                node=each.node,
                curve=each.curve,
            )
            for target_id, each in list(self._running.items())
        )
        return Activity(running=running, resources=self._resources, left_s=self._time_left.left_s(now))

    def note_resources(self, resources: Mapping[str, tuple[float, float]]) -> None:
        """Keep how much of the cluster's resources is in use and how much there is."""
        self._resources = resources

    def stopping(self) -> None:
        """Handle a Ctrl-C."""
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
        if target_id in self._early_stopping.stopped:
            self._stopped_early(target_id)
            return
        if not result.get("ended"):
            fraction = float(result.get("fraction", 0.0))
            before = self._running.get(target_id, _UnderWay(began=time.monotonic()))
            node = str(result.get("hostname") or "")  # set by Tune, like all keys beside ours
            self._running[target_id] = replace(
                before, stage=what, fraction=fraction, node=node, curve=before.measured(result)
            )
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
        reason = reason_of_loss(trial)
        self._running.pop(target_id, None)
        if target_id in self._schedule.out:
            self._lost_in_a_row += 1
            if self._lost_in_a_row >= _LOST_BEFORE_ANY_WORK + 2 * len(self._schedule.out):
                self._schedule.stop(f"workers end before they start work: {reason}")
            self._lost(target_id, f"its worker or node was lost: {reason}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Do nothing: the trial's outcome was reported already."""

    def _stopped_early(self, target_id: str) -> None:
        """Record a run of a search that ASHA has just stopped, unless it finished in the meantime."""
        if self._running.pop(target_id, None) is None:
            return
        trial = self._units[target_id]
        assert isinstance(trial, Trial)
        reached = self._early_stopping.reached[target_id]
        try:
            record_stopped_run(trial, self._store, attempts.count(self._store.storage, target_id), reached)
        except StorageError as error:
            self._schedule.stop(str(error))
        self._schedule.ended(Outcome(target_id=target_id))
        self._end(target_id, "finished", f"stopped after epoch {max(reached)}")

    def _can_write(self) -> bool:
        """Whether the store can be written from here; if so, the fault is that node's."""
        try:
            self._store.prepare()
        except StorageError:
            return False
        return True

    def all_lost(self, reason: str) -> None:
        """Handle the loss of everything that runs."""
        self._running.clear()
        for target_id in list(self._schedule.out):
            self._lost(target_id, reason)

    def _lost(self, target_id: str, reason: str) -> None:
        final = self._schedule.lost(target_id)
        if final:
            try:
                record_lost_unit(
                    self._units[target_id],
                    self._store,
                    attempts.count(self._store.storage, target_id),
                    reason,
                    "worker_lost",
                )
            except StorageError as error:
                self._schedule.stop(str(error))
        self._end(target_id, "failed" if final else "retried", reason)

    def _end(self, target_id: str, kind: Literal["finished", "failed", "retried"], what: str) -> None:
        if kind != "retried":
            with contextlib.suppress(StorageError):  # a claim that is left behind expires with this launch
                self._launch.release(target_id)
        self._on_event(Event(kind=kind, target_id=target_id, what=what))
