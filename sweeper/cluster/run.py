"""Runs trials on Ray.

Ray Tune gets a window of target ids at a time. Results come back through the store, not through Tune, so nothing here
depends on Tune's state. `scheduling` decides what happens to a trial that fails or loses its worker. Tune's own retries
are not used, because they cannot tell these cases apart.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import ray
from ray import tune

from sweeper.cluster.datasets import Shipped
from sweeper.cluster.events import Ended, Event, Grown
from sweeper.cluster.halving import EarlyStopping
from sweeper.cluster.resources import Window
from sweeper.cluster.trackers import Loggers
from sweeper.cluster.tune import Feeder, run_tune
from sweeper.cluster.watcher import Watcher
from sweeper.errors import UserError
from sweeper.results.comparisons import DueComparisons, state, states
from sweeper.results.launches import Launch
from sweeper.results.layout import CLAIMS
from sweeper.results.store import Store
from sweeper.search.early_stopping import VALIDATION_ACCURACY, Halving
from sweeper.storage import StorageError
from sweeper.sweep.comparisons import ComparisonTask
from sweeper.sweep.trial import Trial
from sweeper.workers.nodes import in_use, node_folder
from sweeper.workers.outcomes import Outcome, Progress
from sweeper.workers.scheduling import Resources, Retries, Schedule
from sweeper.workers.staging import staged_name
from sweeper.workers.time_left import TimeLeft
from sweeper.workers.worker import Parcel, Settings, attempt_trial, pack

REPORT_EVERY_S = 1.0


_LOT = 500
"""Units of work that travel to workers as one object."""


_PAUSE_AFTER_STORE_FAILURE_S, _LONGEST_PAUSE_S = 10.0, 600.0
"""A worker's pause after an attempt that could not record its results; it doubles with each further attempt."""


def run_units(
    units: Sequence[Trial | ComparisonTask],
    *,
    store: Store,
    launch: Launch,
    settings: Settings,
    resources: Resources,
    retries: Retries,
    on_event: Callable[[Event], None],
    due: DueComparisons | None = None,
    shipped: Shipped | None = None,
    loggers: Loggers | None = None,
    attempt: Callable[..., Outcome] = attempt_trial,
    halvings: Mapping[str, Halving] | None = None,
    grow: Callable[[Event], Grown | None] = lambda event: None,
    warn: Callable[[str], None] = lambda text: None,
    verbose: bool = False,
) -> Ended:
    """Run trials and comparisons to the end, or until Ctrl-C; their results are in the store.

    Comparisons of `due` run as soon as their targets and inputs are finished. `resources` are the result of `resolve`. `attempt` makes
    one attempt at a unit of work, on a worker. `halvings` are those of the searches that stop runs early, by their ids. `grow` is asked
    at the end of each unit which trials follow from it.
    """
    if not verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    by_id = {unit.target_id: unit for unit in units}
    waiting = () if due is None else due.waiting
    time_left = TimeLeft({unit.target_id: unit.kind for unit in (*units, *waiting)}, time.monotonic())

    def add(more: Sequence[Trial | ComparisonTask]) -> None:
        for unit in more:
            if unit.target_id not in by_id:
                by_id[unit.target_id] = unit
                on_event(Event(kind="added", target_id=unit.target_id, what=unit.title, unit_kind=unit.kind))
                time_left.kinds[unit.target_id] = unit.kind
        schedule.add(more)

    def tell(event: Event) -> None:
        nonlocal due
        time_left.note(event.kind, event.target_id, event.fraction, time.monotonic())
        on_event(event)
        if event.kind not in ("finished", "failed", "elsewhere"):
            return
        try:
            if due is not None:
                add(due.ended(event.target_id))
            if grown := grow(event):
                due = grown.due
                early_stopping.add(grown.trials)
                add([*grown.trials, *due.due()])
        except (StorageError, UserError) as error:
            schedule.stop(str(error))

    def is_done(target_id: str) -> bool:
        unit = by_id[target_id]
        return state(store, unit) == "done" if isinstance(unit, ComparisonTask) else store.status(unit).done

    def claim(target_id: str) -> Literal["ours", "theirs", "done", "unknown"]:
        try:
            if launch.claim(target_id) == "theirs":
                return "theirs"
            if launch.met_others and is_done(target_id):
                launch.release(target_id)
                tell(Event(kind="elsewhere", target_id=target_id))
                return "done"
        except StorageError as error:
            schedule.stop(str(error))
            return "unknown"
        return "ours"

    def settled(target_ids: Collection[str]) -> list[str]:
        theirs = [by_id[target_id] for target_id in target_ids]
        try:
            claimed = store.storage.entries(CLAIMS)
            statuses = store.statuses([unit for unit in theirs if not isinstance(unit, ComparisonTask)])
            words: dict[str, str] = {each: status.word for each, status in statuses.items()}
            words |= states(store, [unit for unit in theirs if isinstance(unit, ComparisonTask)])
            failed = [each for each, word in words.items() if word == "failed" and each not in claimed]
            cut_short = store.cut_short(failed)
        except StorageError:  # checked again soon
            return []
        ended = [each for each, word in words.items() if word == "done"]
        ended += [each for each in failed if each not in cut_short]
        for target_id in ended:
            tell(Event(kind="elsewhere", target_id=target_id))
        return ended

    window = Window(resources, lambda: schedule.smallest_gpus)
    schedule = Schedule(units, resources=resources, retries=retries, claim=claim, settled=settled, window=window)
    early_stopping = EarlyStopping(units, halvings or {})
    watcher = Watcher(schedule, by_id, store, launch, tell, early_stopping, time_left)
    launch.report(watcher.activity)
    if due is not None:
        add(due.due())
    function = _trainable(units, settings, shipped or {}, attempt)
    positions = {unit.target_id: position for position, unit in enumerate(units)}

    def place(target_id: str) -> dict[str, Any]:
        """Where a worker finds the unit: at a position in the lots that all trials share, or in a lot of its own."""
        if target_id in positions:
            return {"position": positions[target_id]}
        return {"position": 0, "lot": ray.put(pack([by_id[target_id]], staged_name))}

    interrupted = False
    first = next(iter(by_id.values()), None)
    name = first.members[0].sweep if isinstance(first, ComparisonTask) else first.sweep if first else "sweep"
    with in_use(node_folder(settings.launch_id)) as folder:
        while not schedule.is_over and not interrupted:
            try:
                feeder = Feeder(schedule, place)
                run_tune(function, feeder, watcher, loggers or Loggers(), name, folder, warn, verbose, early_stopping)
                # A Ctrl-C that reached Tune before our handler leaves trials behind.
                interrupted = watcher.is_stopping or not feeder.is_finished or bool(schedule.out)
            except RuntimeError as error:
                # If Ray kills a worker because the node's memory is full, Tune aborts the whole run: start a new run with the rest.
                if not schedule.out:
                    raise
                watcher.all_lost(f"Ray gave up: {str(error).splitlines()[0]}")
                interrupted = watcher.is_stopping
    return Ended(
        is_over=schedule.is_over and schedule.stopped is None,
        stopped=schedule.stopped,
    )


def _trainable(
    units: Sequence[Trial | ComparisonTask], settings: Settings, shipped: Shipped, attempt: Callable[..., Outcome]
) -> Callable[[dict[str, Any]], None]:
    """What a worker runs for each unit of work. It is sent by value, and must not refer to anything that imports PyTorch."""
    lots = [ray.put(pack(units[start : start + _LOT], staged_name)) for start in range(0, len(units), _LOT)]
    lot_size, report_every_s = _LOT, REPORT_EVERY_S
    pause_s, longest_pause_s = _PAUSE_AFTER_STORE_FAILURE_S, _LONGEST_PAUSE_S
    received: dict[int, list[Parcel]] = {}
    failures_in_a_row = 0

    def train_and_attack(config: dict[str, Any]) -> None:
        nonlocal failures_in_a_row
        number, position = divmod(config["position"], lot_size)
        if "lot" in config:
            number = -1
            received[number] = ray.get(config["lot"])
        elif number not in received:  # keep one lot, because the next trial is usually in the same one
            received.clear()
            received[number] = ray.get(lots[number])
        parcel = received[number][position]
        last_report = 0.0
        measured: dict[str, float] = {}

        def report(progress: Progress) -> None:
            nonlocal last_report
            measured.update(progress.metrics)
            if VALIDATION_ACCURACY in progress.metrics or time.monotonic() - last_report >= report_every_s:
                tune.report({"what": progress.what, "fraction": progress.fraction, **progress.metrics})
                last_report = time.monotonic()

        problem = None
        needs_dataset = bool(parcel.staged_name)
        if needs_dataset and not (node_folder(settings.launch_id) / parcel.staged_name).exists():
            # This node joined after the launch began.
            from sweeper.cluster.datasets import stage_late

            problem = stage_late(parcel, settings, shipped)
        if problem is None:
            outcome = attempt(parcel, settings, cpus=config["cpus"], gpus=config["gpus"], on_progress=report)
        else:
            outcome = Outcome(target_id=parcel.target_id, cause="store", error=problem)
        failures_in_a_row = failures_in_a_row + 1 if outcome.cause == "store" else 0
        if failures_in_a_row:
            # Otherwise a node that cannot write would take all trials before other nodes take any.
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
