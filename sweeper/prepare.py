"""A sweep read, checked and compared with what is on record: what a launch or a plan starts from. Nothing runs here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.errors import unknown_name
from sweeper.messages import Reporter
from sweeper.workers.scheduling import Resources, Retries

if TYPE_CHECKING:
    from sweeper.results.comparisons import DueComparisons
    from sweeper.results.expected import Status
    from sweeper.results.searches import RecordedScores
    from sweeper.results.store import Store
    from sweeper.search.price import Price
    from sweeper.sweep.expand import Arms, Sweep
    from sweeper.sweep.preflight import ResolvedTrial
    from sweeper.sweep.trial import Trial


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


def with_next_runs(
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
