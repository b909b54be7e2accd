"""`launch`: runs a sweep from its file to its report. The command line, scripts and notebooks call it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.errors import UserError, reason_of, sentence, unknown_name
from sweeper.messages import Reporter
from sweeper.notify import Notifier
from sweeper.report import copy_folder, report_on
from sweeper.workers.outcomes import NO_CHECKPOINTS
from sweeper.workers.scheduling import Resources, Retries

if TYPE_CHECKING:
    from sweeper.cluster.events import Event, Grown
    from sweeper.results.comparisons import DueComparisons, State
    from sweeper.results.expected import Status
    from sweeper.results.gather import Gathered
    from sweeper.results.launches import Launch
    from sweeper.results.searches import RecordedScores
    from sweeper.results.store import Store
    from sweeper.search.price import Price
    from sweeper.sweep.comparisons import ComparisonTask
    from sweeper.sweep.expand import Arms, Sweep
    from sweeper.sweep.preflight import ResolvedTrial
    from sweeper.sweep.trial import Trial

_ROUNDS = 3
"""How often one launch repairs damaged results before it leaves them to the next launch."""


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """How to run a sweep. Nothing here changes what is measured, except through the device's arithmetic."""

    data: Path = Path("data")
    """The folder that holds the datasets."""
    out: str | Path | None = None
    """Where results go: a folder or a URI; None is `results/NAME`."""
    overrides: Sequence[str] = ()
    """`key=value` with dotted keys, as for `--set`."""
    only: Sequence[str] = ()
    """Patterns of the trials to run, as for `--only`; if empty, all run."""
    address: str | None = None
    """HOST:PORT of a running Ray cluster, or `auto`; None is this machine alone."""
    resources: Resources = field(default_factory=Resources)
    retries: Retries = field(default_factory=Retries)
    time_limit_s: float | None = 86400.0
    """An attempt at a trial that takes longer is killed."""
    checkpoint_every_s: float | None = 60.0
    tensorboard: Path | None = None
    mlflow: str | None = None
    download: bool = False
    """Fetch missing public datasets."""
    redo_changed: bool = False
    """Delete and compute again what was recorded by other code of its components."""
    verbose: bool = False
    """Show Ray's output."""
    notify: str | None = None
    """A URL that gets one JSON at each failure and at the end."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A sweep that was read and checked."""

    sweep: Sweep
    store: Store
    arms: Arms
    """All its trials and searches, as far as they are known."""
    prices: Mapping[str, Price]
    """What each search costs in ε, by its id."""
    chosen: Sequence[ResolvedTrial]
    """The chosen trials, and what each resolves to."""
    scores: RecordedScores
    """The scores of its searches' runs that it rests on."""
    warnings: tuple[str, ...] = ()
    """What was wrong with it, and was said."""

    @property
    def trials(self) -> list[Trial]:
        """The chosen trials."""
        return [each.trial for each in self.chosen]

    @property
    def forgotten(self) -> Resolved:
        """The same with no score known."""
        return replace(self, scores=type(self.scores)(self.store))

    def record(self) -> None:
        """Write down what the sweep consists of, for `gather`, `status` and readers."""
        from sweeper.search.price import as_json

        searches = [as_json(arm, self.prices[arm.search_id], self.arms.targets_of(arm)) for arm in self.arms.searches]
        self.store.write_sweep(self.sweep, self.arms.trials, searches)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A resolved sweep, and its recorded state."""

    resolved: Resolved
    statuses: Mapping[str, Status]
    """By target id."""
    due: DueComparisons
    """The comparisons of targets that are finished or that a launch may finish."""

    @property
    def sweep(self) -> Sweep:
        return self.resolved.sweep

    @property
    def store(self) -> Store:
        return self.resolved.store

    @property
    def trials(self) -> list[Trial]:
        """The chosen trials."""
        return self.resolved.trials

    @property
    def pending(self) -> list[Trial]:
        """The chosen trials that are not done."""
        return [trial for trial in self.trials if not self.statuses[trial.target_id].done]

    def word(self, trial: Trial) -> str:
        """A chosen trial's status in one word."""
        return self.statuses[trial.target_id].word

    def again(self, may_finish: Collection[str]) -> Prepared:
        """The same by what is on record now. Of the unfinished targets only those of `may_finish` are still expected."""
        return look_up(self.resolved, may_finish)


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


def prepare(sweep: str, options: LaunchOptions, reporter: Reporter | None = None) -> Prepared:
    """Read and check a sweep (a packaged name or a YAML file), and look up its recorded state. Runs nothing.

    Raises:
        UserError: the sweep, an option or the data are wrong.
    """
    from sweeper.sweep.preflight import check_datasets

    reporter = reporter or Reporter()

    def check_first(trials: list[Trial]) -> None:
        if (
            options.address is None and not options.download
        ):  # each node is asked for its own copy; missing datasets are fetched last
            check_datasets(trials, options.data, download=False)

    resolved = resolve_sweep(sweep, options, reporter, check_first)
    trials = resolved.trials
    known = {trial.architecture_label for trial in trials}
    for label in (*options.resources.cpus, *options.resources.gpus):
        if label is not None and label not in known:
            raise unknown_name("architecture of this sweep", label, known)
    if options.download:
        check_datasets(trials, options.data, download=True)
    return look_up(resolved)


def look_up(resolved: Resolved, may_finish: Collection[str] | None = None) -> Prepared:
    """Look up a sweep's recorded state. Comparisons are planned over finished targets and those that may still finish.

    `may_finish` has ids of chosen targets; None means all chosen ones.
    """
    from sweeper.results.comparisons import DueComparisons

    store, everything = resolved.store, resolved.arms.trials
    statuses = store.statuses(everything)
    chosen = {trial.target_id for trial in resolved.trials}
    finished = {target_id for target_id, status in statuses.items() if status.comparable}
    done = {target_id for target_id, status in statuses.items() if status.done}
    due = DueComparisons(store, everything, finished, (chosen if may_finish is None else set(may_finish)) - done)
    return Prepared(
        resolved=resolved,
        statuses={target_id: status for target_id, status in statuses.items() if target_id in chosen},
        due=due,
    )


def resolve_sweep(
    sweep: str,
    options: LaunchOptions,
    reporter: Reporter,
    check_first: Callable[[list[Trial]], None] = lambda trials: None,
    before: Resolved | None = None,
) -> Resolved:
    """Read and check a sweep, or one that was read `before`, by the results of its searches' runs.

    `check_first` is called with the chosen trials before they are resolved, because looking for their data is faster.
    """
    from sweeper.results.store import Store

    with reporter.working("reading the sweep"):
        from sweeper.results.searches import RecordedScores
        from sweeper.sweep.expand import arms_of, select
        from sweeper.sweep.load import load_sweep

        loaded = load_sweep(sweep, options.overrides) if before is None else before.sweep
        store = Store(options.out or f"results/{loaded.name}")
        scores = RecordedScores(store) if before is None else before.scores.again()
        arms = arms_of(loaded, scores)
        trials = select(arms.trials, options.only)
    check_first(trials)
    with reporter.working("checking the sweep"):
        from sweeper.search.price import price_of
        from sweeper.sweep.preflight import resolve_trials, twins_left_out

        resolved = {} if before is None else {each.trial.target_id: each for each in before.chosen}
        new = [each for each in trials if each.target_id not in resolved or resolved[each.target_id].trial != each]
        newly, warnings = resolve_trials(new, options.data)
        resolved |= {each.trial.target_id: each for each in newly}
        known = {} if before is None else before.prices
        prices = {arm.search_id: known.get(arm.search_id) or price_of(arm, options.data) for arm in arms.searches}
        if warning := twins_left_out(trials, arms.trials):
            warnings.append(warning)
    warnings = [*_problems(loaded, arms), *warnings]
    said = () if before is None else before.warnings
    for warning in warnings:
        if warning not in said:
            reporter.warn(warning)
    return Resolved(
        sweep=loaded,
        store=store,
        arms=arms,
        prices=prices,
        chosen=[resolved[trial.target_id] for trial in trials],
        scores=scores,
        warnings=tuple(dict.fromkeys([*said, *warnings])),
    )


def _problems(sweep: Sweep, arms: Arms) -> list[str]:
    """What is wrong with the searches of a sweep."""
    problems = []
    untuned = [part.name for part in sweep.parts if part.search is None]
    if arms.searches and untuned:
        problems.append(
            f"Parts without a search: {', '.join(untuned)}. Their arms are not tuned as the others are, so a comparison with them "
            "decides little."
        )
    for arm in arms.searches:
        if arm.best is not None and arm.plan.leak is not None and arm.best.score is not None:
            leak = arm.best.score.leak
            if leak is not None and leak > arm.plan.leak.most:
                problems.append(
                    f"No run of the search of {arm.cell.defense_label} on {arm.cell.dataset_label} kept its {arm.plan.leak.metric} at "
                    f"most {arm.plan.leak.most:g}. The one that leaked least, {leak:.3f}, is taken."
                )
        if arm.is_over and arm.best is None:
            stopped = sum(run.score is not None and run.score.is_stopped for run in arm.runs)
            ended = f"{len(arm.runs) - stopped} diverged" + (f", {stopped} were stopped early" if stopped else "")
            problems.append(
                f"No run of the search of {arm.cell.defense_label} on {arm.cell.dataset_label} came to its end ({ended}), so it has no "
                "settings to train with. Give it a space with lower learning rates."
            )
    return problems


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
            grown = _with_next_runs(prepared, options, reporter)
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


def forget_other_code(
    prepared: Prepared, options: LaunchOptions, *, redo: bool, dry_run: bool, reporter: Reporter
) -> Prepared:
    """Report records that were made by other code of their components than today's; if `redo`, delete them."""
    from sweeper.results.sources import recorded_sources
    from sweeper.trial.sources import made_otherwise

    trials, store = prepared.trials, prepared.store
    comparisons = {task.comparison_id: task for task in prepared.due.planned}
    keys = made_otherwise(trials, recorded_sources(store), comparisons.values())
    if not keys:
        return prepared
    counts = Counter("attacks" if "." in key else "comparisons" if key in comparisons else "targets" for key in keys)
    what = " and ".join(f"{counts[kind]} {kind}" for kind in ("targets", "attacks", "comparisons") if counts[kind])
    titles = {trial.target_id: trial.title for trial in trials} | {key: task.title for key, task in comparisons.items()}
    title = titles[keys[0].partition(".")[0]]
    if not redo:
        reporter.warn(
            f"{what} on record were made by other code than there is now, the first of them {keys[0]} ({title}). They are kept, "
            "and tables will mix both. To recompute them, launch with --redo-changed, which deletes them. Or raise the `revision` "
            "of what you edited, or name another folder with --out; then they stay beside the new ones."
        )
        return prepared
    if not dry_run:
        store.forget(keys)
    reporter.tell(f"{what} of other code {'would be' if dry_run else 'are'} made anew.")
    if dry_run or not prepared.resolved.arms.searches:
        return look_up(prepared.resolved)
    # The searches begin anew, too
    return look_up(resolve_sweep(prepared.sweep.name, options, reporter, before=prepared.resolved.forgotten))


def _with_next_runs(
    prepared: Prepared, options: LaunchOptions, reporter: Reporter, failed: Collection[str] = ()
) -> Prepared | None:
    """The sweep with the trials whose settings follow from what was just recorded; None if there are none.

    Targets that have `failed` are not expected any more.
    """
    if not prepared.resolved.arms.searches:
        return None
    resolved = resolve_sweep(prepared.sweep.name, options, reporter, before=prepared.resolved)
    if resolved.trials == prepared.trials:
        return None
    resolved.record()
    if more := len(resolved.trials) - len(prepared.trials):
        reporter.tell(f"The searches so far give {more} more trials.")
    return look_up(resolved, {trial.target_id for trial in resolved.trials}.difference(failed))


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
        grown = _with_next_runs(self.prepared, self._options, self._reporter, self._failed)
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
