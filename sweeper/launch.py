"""`launch`: runs a sweep from its file to its report. The command line, scripts and notebooks call it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.errors import UserError, reason_of, sentence
from sweeper.messages import Reporter
from sweeper.notify import Notifier
from sweeper.prepare import LaunchOptions, Prepared, prepare, with_next_runs
from sweeper.report import copy_folder, report_on
from sweeper.workers.outcomes import NO_CHECKPOINTS

if TYPE_CHECKING:
    from sweeper.cluster.events import Event, Grown
    from sweeper.results.comparisons import State
    from sweeper.results.expected import Status
    from sweeper.results.gather import Gathered
    from sweeper.results.launches import Launch
    from sweeper.results.store import Store
    from sweeper.sweep.comparisons import ComparisonTask
    from sweeper.sweep.trial import Trial

__all__ = ["LaunchOptions", "LaunchResult", "launch"]

_ROUNDS = 3
"""How often one launch repairs damaged results before it leaves them to the next launch."""


@dataclass(frozen=True, kw_only=True)
class LaunchResult:
    """How a launch ended, and where its results are."""

    location: str
    """The results folder or its URI."""
    n_trials: int
    statuses: Mapping[str, Status]
    """By target id, at the end of the launch."""
    states: Mapping[str, State]
    """States of the finished targets' comparisons, by id, at the end of the launch."""
    failed: tuple[str, ...] = ()
    """One line for each trial that failed: its id, its title and the error."""
    stopped: str | None = None
    """Why the launch stopped early; None if it did not, or was interrupted."""
    damaged: tuple[str, ...] = ()
    """Files that are still damaged."""
    left_out: int = 0
    """Recorded targets of other versions of this sweep."""
    tables: Path | None = None
    """The folder with the gathered tables; None if they could not be gathered (see `problem`)."""
    report: Path | None = None
    """The HTML report; None if there is none (see `problem`)."""
    problem: str | None = None

    fruitless: int = 0
    """Searches that are over and found no settings, so that their arms have no targets."""

    @property
    def n_done(self) -> int:
        return sum(status.word == "done" for status in self.statuses.values())

    @property
    def n_failed(self) -> int:
        return sum(status.word == "failed" for status in self.statuses.values())

    @property
    def n_left(self) -> int:
        return self.n_trials - self.n_done - self.n_failed

    @property
    def n_compared(self) -> int:
        """Comparisons that are recorded."""
        return sum(state == "done" for state in self.states.values())

    def as_json(self) -> dict[str, Any]:
        """How the launch ended, as plain values."""
        return {
            "trials": self.n_trials,
            **{name: getattr(self, f"n_{name}") for name in ("done", "failed", "left", "compared")},
            "comparisons": len(self.states),
            "is_whole": self.is_whole,
            **{name: getattr(self, name) for name in ("stopped", "problem")},
            "report": None if self.report is None else str(self.report),
        }

    @property
    def is_whole(self) -> bool:
        """Whether every trial and comparison is done, every arm has targets, nothing is damaged, and the report is written."""
        is_computed = self.n_done == self.n_trials and self.n_compared == len(self.states) and not self.fruitless
        return is_computed and not self.damaged and self.problem is None


def launch(sweep: str | Prepared, options: LaunchOptions, reporter: Reporter | None = None) -> LaunchResult:
    """Run a sweep's missing trials and comparisons on Ray, gather the results, and write the report.

    Recorded results are not computed again. Ctrl-C and SIGTERM end a launch early; everything finished is kept.

    Raises:
        UserError: the sweep, an option or the data are wrong, or Ray cannot be reached.
    """
    reporter = reporter or Reporter()
    with Notifier(options.notify, reporter.warn) as notifier:
        prepared = prepare(sweep, options, reporter) if isinstance(sweep, str) else sweep
        about = {"sweep": prepared.sweep.name, "results": prepared.store.location}

        def on_failure(target_id: str, title: str, error: str) -> None:
            notifier.post({"event": "failure", **about, "id": target_id, "title": title, "error": error})

        try:
            result = _launch(prepared, options, reporter, on_failure)
        except Exception as error:
            notifier.post({"event": "end", **about, "is_whole": False, "problem": str(error)})
            raise
        notifier.post({"event": "end", **about, **result.as_json()})
        return result


def _launch(
    prepared: Prepared, options: LaunchOptions, reporter: Reporter, on_failure: Callable[[str, str, str], None]
) -> LaunchResult:
    from sweeper.results.comparisons import write_comparisons_now
    from sweeper.results.gather import gather
    from sweeper.storage import StorageError

    store = prepared.store
    store.prepare()
    if options.tensorboard is not None:
        try:
            options.tensorboard.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"--tensorboard {options.tensorboard}: {sentence(reason_of(error))} Name another folder."
            raise UserError(text) from None
    prepared.resolved.record()
    failed: list[str] = []
    stopped = None
    _take_sigterm_as_interrupt()
    with contextlib.ExitStack() as stack:
        runner = _Runner(stack, store, options, reporter, on_failure)
        number = 0
        while number < _ROUNDS:
            is_over = True
            # Failed trials and comparisons are tried again in this launch's first round, and by the next launch.
            pending = [trial for trial in prepared.pending if not number or prepared.word(trial) != "failed"]
            due = [
                state for state in prepared.due.states.values() if state == "to do" or not (number or state == "done")
            ]
            if number and not pending and not due:
                break
            if pending or due:
                write_comparisons_now(store, prepared.due.planned)
                new_failed, is_over, stopped, prepared = runner.run(pending, prepared)
                failed += new_failed
            try:
                with reporter.working("gathering the results"):
                    write_comparisons_now(store, prepared.again(()).due.planned)
                    gathered = gather(store, copy_folder(prepared.sweep.name))
                    ended = prepared.again(())
                    missing = [trial.target_id for trial in ended.pending if ended.word(trial) != "failed"]
                    prepared = ended.again(missing) if missing else ended
            except (StorageError, OSError) as error:
                return LaunchResult(
                    location=store.location,
                    n_trials=len(prepared.trials),
                    statuses=prepared.statuses,
                    states={},
                    failed=tuple(failed),
                    stopped=stopped,
                    problem=f"The results cannot be gathered: {sentence(reason_of(error))} What was recorded is kept; the same "
                    "command goes on from there.",
                )
            reporter.damaged(gathered.damaged)
            if not is_over:
                break
            grown = with_next_runs(prepared, options, reporter)
            number = max(number, 1) if grown else number + 1
            prepared = grown or prepared
    return _conclude(ended, gathered, tuple(failed), stopped, reporter)


def _conclude(
    ended: Prepared, gathered: Gathered, failed: tuple[str, ...], stopped: str | None, reporter: Reporter
) -> LaunchResult:
    """Clean up after the trials, and write the report."""
    from sweeper.storage import StorageError

    store = ended.store
    with contextlib.suppress(StorageError):  # this only cleans up
        store.clear_done({target_id for target_id, status in ended.statuses.items() if status.done})
    result = LaunchResult(
        location=store.location,
        n_trials=len(ended.trials),
        statuses=ended.statuses,
        states=ended.due.states,
        failed=failed,
        stopped=stopped,
        damaged=gathered.damaged,
        left_out=gathered.left_out,
        tables=gathered.folder,
        fruitless=sum(arm.is_over and arm.best is None for arm in ended.resolved.arms.searches),
    )
    if result.n_left == result.n_trials:
        return result
    try:
        return replace(result, report=report_on(gathered.folder, None, store, reporter))
    except UserError as error:
        return replace(result, problem=str(error))


class _Quiet(Reporter):
    """Passes messages on, but shows no work under way: a running sweep has its own display."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def tell(self, text: str) -> None:
        self._reporter.tell(text)

    def warn(self, text: str) -> None:
        self._reporter.warn(text)


class _Growth:
    """A sweep that gets more trials while it runs, as soon as the results of a search's last known runs say which."""

    def __init__(self, prepared: Prepared, options: LaunchOptions, reporter: Reporter) -> None:
        self.prepared = prepared
        self._options, self._reporter = options, _Quiet(reporter)
        self._failed: set[str] = set()
        self._wait()

    def _wait(self) -> None:
        self._awaited = [
            {run.trial.target_id for run in arm.runs if run.score is None}
            for arm in self.prepared.resolved.arms.searches
        ]

    def __call__(self, event: Event) -> Grown | None:
        from sweeper.cluster.events import Grown
        from sweeper.results.comparisons import write_comparisons_now

        if event.kind == "failed":
            self._failed.add(event.target_id)
            return None
        awaited = [runs for runs in self._awaited if event.target_id in runs]
        for runs in awaited:
            runs.discard(event.target_id)
        if all(awaited):  # none of them, or each search still waits for others
            return None
        grown = with_next_runs(self.prepared, self._options, self._reporter, self._failed)
        if grown is None:
            return None
        before = {trial.target_id for trial in self.prepared.trials}
        self.prepared = grown
        self._wait()
        write_comparisons_now(grown.store, grown.due.planned)
        return Grown(trials=[trial for trial in grown.pending if trial.target_id not in before], due=grown.due)


def _take_sigterm_as_interrupt() -> None:
    """Handle SIGTERM as Ctrl-C: finished results are kept, and what is left is reported."""
    if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


class _Runner:
    """Ray and this launch's registration in the results. Both start with the first trial, and stay until the end."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        store: Store,
        options: LaunchOptions,
        reporter: Reporter,
        on_failure: Callable[[str, str, str], None],
    ) -> None:
        self._stack, self._store, self._options, self._reporter = stack, store, options, reporter
        self._on_failure = on_failure
        self._launch: Launch | None = None

    def run(self, pending: list[Trial], prepared: Prepared) -> tuple[list[str], bool, str | None, Prepared]:
        """Run trials and comparisons, and the trials that follow from them.

        Returns the failures, whether all ended, if not, the reason if there is one, and what the sweep has become.
        """
        options, reporter = self._options, self._reporter
        with reporter.working("starting Ray"):
            from sweeper.cluster import connection, datasets, resources
            from sweeper.cluster.run import run_units
            from sweeper.cluster.trackers import Loggers
            from sweeper.results.launches import Launch
            from sweeper.workers.worker import Settings

            if self._launch is None:
                self._launch = self._stack.enter_context(Launch(self._store.storage))
                self._stack.enter_context(connection.connect(options.address, options.verbose))
                _take_sigterm_as_interrupt()  # again, because Ray replaces the handler
                self._stack.callback(datasets.clear_staged, self._launch.id, is_cluster=options.address is not None)
            asked = options.resources
            if options.address is None and not asked.gpus:
                try:
                    resources.check_own_gpus()
                except OSError as error:
                    reporter.warn(f"{error} Now they do.")
                    asked = replace(asked, gpus={None: 0.0})
            granted = resources.resolve(asked, pending, reporter.warn)
        settings = Settings(
            launch_id=self._launch.id,
            store=self._store.storage.uri,
            data_dir=options.data.absolute(),
            chunk_size=granted.chunk_size,
            time_limit_s=options.time_limit_s,
            checkpoint_every_s=options.checkpoint_every_s or NO_CHECKPOINTS,
            is_tracked=options.tensorboard is not None or options.mlflow is not None,
        )
        with reporter.working("decoding the datasets once on each node"):
            shipped = datasets.stage_datasets(
                pending,
                settings,
                is_cluster=options.address is not None,
                uses_gpus=any(granted.gpus_of(trial) for trial in pending),
                warn=reporter.warn,
            )
        for other in self._launch.others:
            reporter.tell(f"Another launch works on these results: {other.name}; trials are shared.")
        waiting = prepared.due.waiting
        units: list[Trial | ComparisonTask] = [*pending, *waiting]
        titles = {unit.target_id: unit.title for unit in units}
        failed: list[str] = []
        growth = _Growth(prepared, options, reporter)
        with reporter.running(units, len(prepared.trials) - len(pending)) as on_event:

            def note(event: Event) -> None:
                if event.kind == "added":
                    titles[event.target_id] = event.what
                if event.kind == "failed":
                    failed.append(f"{event.target_id} {titles[event.target_id]}: {event.what}")
                    self._on_failure(event.target_id, titles[event.target_id], event.what)
                on_event(event)

            ended = run_units(
                pending,
                due=prepared.due,
                store=self._store,
                launch=self._launch,
                settings=settings,
                resources=granted,
                retries=options.retries,
                on_event=note,
                shipped=shipped,
                halvings={
                    arm.early_stop: arm.halving for arm in prepared.resolved.arms.searches if arm.early_stop is not None
                },
                grow=growth,
                loggers=Loggers(tensorboard=options.tensorboard, mlflow=options.mlflow),
                warn=reporter.warn,
                verbose=options.verbose,
            )
        return failed, ended.is_over, ended.stopped, growth.prepared
