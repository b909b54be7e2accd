"""One run of Ray Tune over the trials of a schedule."""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from sweeper.cluster.halving import EarlyStopping
from sweeper.cluster.internals import ForgetfulScheduler
from sweeper.cluster.trackers import Loggers, tracker
from sweeper.cluster.watcher import Nodes, Watcher
from sweeper.workers.scheduling import Schedule

_LONGEST_TITLE = 150
"""Characters of a trial's title in a folder's name, which can have 255 bytes."""


def run_tune(
    function: Callable[[dict[str, Any]], None],
    feeder: Feeder,
    watcher: Watcher,
    loggers: Loggers,
    name: str,
    folder: Path,
    warn: Callable[[str], None],
    verbose: bool,
    early_stopping: EarlyStopping,
) -> None:
    """Run Tune once; its files are not needed afterwards. A first Ctrl-C ends it without an error."""
    callbacks: list[tune.Callback] = [watcher, Nodes(warn, watcher.note_resources)]
    if loggers.tensorboard is not None:
        callbacks.append(tracker("tensorboard", "", name, warn))
    if loggers.mlflow is not None:
        callbacks.append(tracker("mlflow", loggers.mlflow, name, warn))
    state_dir = tempfile.mkdtemp(prefix="tune-", dir=folder)
    on_interrupt = signal.getsignal(signal.SIGINT)
    # While Tune runs, it installs its own signal handler, and restores ours at the first Ctrl-C. While it waits for something
    # to run, it checks nothing else.
    feeder.is_interrupted = lambda: signal.getsignal(signal.SIGINT) is on_interrupt
    feeder.on_begin = lambda: _acknowledge_interrupts(watcher.stopping)
    try:
        tune.Tuner(
            tune.with_resources(
                function, lambda config: tune.PlacementGroupFactory([{"CPU": config["cpus"], "GPU": config["gpus"]}])
            ),
            tune_config=tune.TuneConfig(
                search_alg=feeder,
                scheduler=ForgetfulScheduler(
                    keeps_files=loggers.tensorboard is not None, decide=early_stopping.decision
                ),
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
        signal.signal(signal.SIGINT, on_interrupt)  # else Tune's handler swallows the next Ctrl-C
        shutil.rmtree(state_dir, ignore_errors=True)


def _acknowledge_interrupts(acknowledge: Callable[[], None]) -> None:
    """Acknowledge a Ctrl-C at once; Tune's handler prints nothing and then takes seconds to stop its workers."""
    tunes = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        if callable(tunes):
            tunes(number, frame)
        acknowledge()

    signal.signal(signal.SIGINT, handle)


class Feeder(Searcher):
    """Gives Tune the schedule's next trial whenever Tune has room for one."""

    def __init__(self, schedule: Schedule, place: Callable[[str], dict[str, Any]]) -> None:
        super().__init__()
        self._schedule, self._place = schedule, place
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
        trial = self._schedule.units[ticket.target_id]
        title = re.sub(r"[^A-Za-z0-9_.+=-]+", "_", trial.title)
        return {
            "target_id": ticket.target_id,
            **self._place(ticket.target_id),
            "cpus": ticket.cpus,
            "gpus": ticket.gpus,
            # For trackers
            "name": f"{title[:_LONGEST_TITLE]}_{ticket.target_id}",
            "defense": trial.defense_label,
            "dataset": trial.dataset_label,
            "split": trial.split_label,
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
