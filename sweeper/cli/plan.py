"""`sweeper plan`, which runs nothing, and `sweeper trial`, which runs one trial without Ray."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.text import Text

from sweeper.cli.console import err, out, print_json, user_errors, warn, working
from sweeper.cli.options import DataDir, Only, OutDir, Overrides, SweepName
from sweeper.errors import UserError
from sweeper.messages import Reporter
from sweeper.prepare import LaunchOptions, resolve_sweep

if TYPE_CHECKING:
    from sweeper.cli.plan_cache import Plan, PlannedSearch, PlannedTrial
    from sweeper.sweep.trial import Trial


_GPU_FACTOR = 200
"""A GPU of 10 TFLOP/s over the rough CPU thread of 50 GFLOP/s."""


class CheckReporter(Reporter):
    """Prints warnings, and shows a spinner while a sweep is checked."""

    def warn(self, text: str) -> None:
        warn(text)

    def working(self, what: str) -> contextlib.AbstractContextManager[object]:
        return working(what)


@user_errors
def plan(
    sweep: SweepName = "demo",
    data: DataDir = Path("data"),
    out_dir: OutDir = None,
    overrides: Overrides = None,
    only: Only = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects on stdout, and nothing else.")] = False,
) -> None:
    """List the trials of a sweep: resolved settings, status, rough cost. Runs nothing."""
    from sweeper.cli.plan_cache import plan_key, read_plan, write_plan
    from sweeper.results.comparisons import states, with_inputs
    from sweeper.results.store import Store
    from sweeper.sweep import components
    from sweeper.sweep.comparisons import plan_groups

    options = LaunchOptions(data=data, out=out_dir, overrides=overrides or (), only=only or ())
    key = plan_key(sweep, data, overrides, only, as_json)
    plan = read_plan(key) if key else None
    if plan is None:
        plan = _resolve(sweep, options, find_missing=not as_json)
        is_fixed = not plan.searches  # a search's next runs depend on recorded results
        if (
            key and is_fixed and key == plan_key(sweep, data, overrides, only, as_json)
        ):  # nothing changed in the meantime
            write_plan(key, plan)
    else:
        for problem in plan.missing:
            _say_missing(problem)
        for warning in plan.warnings:
            warn(warning)
    store = Store(out_dir or f"results/{plan.name}")
    statuses = store.statuses_of({each.label.target_id: each.records for each in plan.targets})
    words = {target_id: status.word for target_id, status in statuses.items()}
    if as_json:
        search_of = {target_id: search.as_json() for search in plan.searches for target_id in search.trials}
        rows = [(each.row, each.row["target_id"]) for each in plan.trials]
        print_json([{**row, "status": words[key], "search": search_of.get(key)} for row, key in rows])
        return
    # As in a launch, comparisons are those of targets that are finished or chosen
    possible = {target_id for target_id, status in statuses.items() if status.target == "finished"}
    possible |= {each.row["target_id"] for each in plan.trials}
    planned = plan_groups(
        (each.label, [components.build("comparison", reference, "comparisons") for reference in each.comparisons])
        for each in plan.targets
        if each.label.target_id in possible
    )
    pending = {each.row["target_id"] for each in plan.trials if words[each.row["target_id"]] != "done"}
    groups = with_inputs(store, planned, pending)
    n_compared = sum(state == "done" for state in states(store, groups).values())
    out.print(f"[bold]{plan.name}[/bold]{': ' if plan.summary else ''}{escape(plan.summary)}", highlight=False)
    for name in ("paper", "cost", "expected"):
        if getattr(plan, name):
            out.print(f"[dim]{name}:[/dim] {escape(getattr(plan, name))}", highlight=False)
    print_plan(plan.trials, words, [group.name for group in groups], n_compared, plan.searches)


def _resolve(sweep: str, options: LaunchOptions, find_missing: bool) -> Plan:
    """Resolve a sweep, and print what is missing and the warnings as they are found."""
    from sweeper.cli.plan_cache import planned
    from sweeper.sweep.preflight import missing_datasets

    missing: list[str] = []
    warnings: list[str] = []

    class Collector(CheckReporter):
        def warn(self, text: str) -> None:
            super().warn(text)
            warnings.append(text)

    def look_for_data(trials: list[Trial]) -> None:
        for problem in missing_datasets(trials, options.data) if find_missing else []:
            _say_missing(problem)
            missing.append(problem)

    return planned(resolve_sweep(sweep, options, Collector(), look_for_data), missing, warnings)


def _say_missing(problem: str) -> None:
    err.print(Text.assemble(("Missing: ", "bold yellow"), problem), soft_wrap=True)


@user_errors
def trial(
    sweep: SweepName,
    target_id: Annotated[str, typer.Argument(metavar="ID", help="Target id, or its first characters.")],
    data: DataDir = Path("data"),
    out_dir: OutDir = None,
    overrides: Overrides = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Run one trial in this process, without Ray and with full tracebacks, for debugging."""
    options = LaunchOptions(data=data, out=out_dir, overrides=overrides or ())
    resolved = resolve_sweep(sweep, options, CheckReporter())
    trials, store = resolved.trials, resolved.store
    from sweeper.sweep.preflight import check_datasets

    found = [each for each in trials if each.target_id.startswith(target_id)]
    if len(found) != 1:
        raise UserError(
            f"{len(found)} trials of '{resolved.sweep.name}' have an id that begins with '{target_id}'. `sweeper plan {sweep}` "
            "lists them."
        )
    import torch

    from sweeper.trial.context import TrialContext
    from sweeper.trial.run import run_trial

    check_datasets(found, data, download=False)
    store.prepare()
    torch.set_num_threads(threads)
    out.print(f"{found[0].target_id} {found[0].title}", highlight=False)
    result = run_trial(
        found[0],
        TrialContext(
            data_dir=data,
            store=store,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            on_progress=lambda progress: out.print(f"{progress.fraction:4.0%} {progress.what}", highlight=False),
            raise_errors=True,
        ),
    )
    did = "trained" if result.trained else "was trained before"
    out.print(
        f"{result.status}: {did}, {result.attacks_run} attacks run; recorded in {store.location}", highlight=False
    )


def print_plan(
    trials: Sequence[PlannedTrial],
    words: Mapping[str, str],
    comparisons: Sequence[str],
    n_compared: int,
    searches: Sequence[PlannedSearch],
) -> None:
    """Print a table of trials, one of searches, and one line about the comparisons.

    `words` are the trials' statuses by target id, `comparisons` the name of each comparison; `n_compared` of them are done.
    """
    from rich.filesize import decimal

    from sweeper.cli.display import LEAST_TITLE, Column, Rows, Title, duration

    rows: list[list[str | Title]] = []
    left = 0.0
    for each in trials:
        row = each.row
        guarantee = "none"
        if row["epsilon"] is not None:
            guarantee = f"ε {row['epsilon']:.4g}, δ {row['delta']:g}, noise {row['noise_multiplier']:.3g}"
        members, steps, word = str(row["n_train"]), str(row["steps"]), words[row["target_id"]]
        left += each.rough_cpu_seconds if word in ("to do", "failed") else 0.0
        rows.append([row["target_id"], Title(each.title), members, steps, guarantee, ", ".join(row["attacks"]), word])
    columns = [Column(heading="id"), Column(heading="trial", least=LEAST_TITLE)]
    columns += [Column(heading=name, justify="right") for name in ("members", "steps")]
    columns += [Column(heading="guarantee"), Column(heading="attacks", least=18), Column(heading="status")]
    out.print(Rows(columns, rows))
    if searches:
        _print_searches(searches)
        left += sum(each.rough_cpu_seconds for each in searches)
    if comparisons:
        named = ", ".join(f"{count} {name}" for name, count in Counter(comparisons).items())
        out.print(
            f"{len(comparisons)} comparisons ({named}), {n_compared} done; each runs when its targets are finished.",
            highlight=False,
        )
    if answers := sum(each.row["answers_bytes"] for each in trials):
        out.print(f"Answers recorded for the attacks on cohorts: {decimal(answers)}.", highlight=False)
    n_done = sum(row[-1] == "done" for row in rows)
    to_come = sum(each.n_to_come + each.n_targets for each in searches)
    later = f", and {to_come} more when their settings are known" if to_come else ""
    out.print(
        f"{len(rows)} trials, {n_done} done{later}. Rough cost of the trainings left: {duration(left)} of one CPU thread, or "
        f"{_gpu_hours(left)} of a GPU that does 10 TFLOP/s, if the networks are large enough to fill it. Attacks add to it.",
        highlight=False,
    )


def _print_searches(searches: Sequence[PlannedSearch]) -> None:
    """Print the searches of the arms: what is drawn, how often, and the price in ε."""
    from sweeper.cli.display import LEAST_TITLE, Column, Rows, Title

    out.print("[bold]Searches[/bold], one per arm, each with the same number of runs", highlight=False)
    columns = [Column(heading="arm", least=LEAST_TITLE), Column(heading="drawn", least=18)]
    columns += [Column(heading=name, justify="right") for name in ("runs", "done", "ε of a run", "with its search")]
    columns += [Column(heading="and trained anew", justify="right")]

    def shown(epsilon: float | None) -> str:
        return "–" if epsilon is None else f"{epsilon:.4g}"

    out.print(
        Rows(
            columns,
            [
                [
                    Title(each.title),
                    ", ".join(each.fields),
                    str(each.n_runs),
                    str(each.n_done),
                    shown(each.epsilon_run),
                    shown(each.epsilon_with_search),
                    shown(each.epsilon_trained_anew),
                ]
                for each in searches
            ],
        )
    )
    for basis in dict.fromkeys(each.basis for each in searches if each.epsilon_run is not None):
        out.print(f"ε with its search: {basis}. It does not cover the validation examples.", highlight=False)


def _gpu_hours(cpu_seconds: float) -> str:
    """“0.3 hours”, or “1,250 hours”."""
    hours = cpu_seconds / _GPU_FACTOR / 3600
    return f"{hours:,.0f} hours" if hours >= 10 else f"{hours:.1g} hours"
