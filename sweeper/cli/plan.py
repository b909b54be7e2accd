"""`sweeper plan`, which runs nothing, and `sweeper trial`, which runs one trial without Ray."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.text import Text

from sweeper.cli.console import err, out, print_json, user_errors, warn, working
from sweeper.cli.options import DataDir, Only, OutDir, Overrides, SweepName
from sweeper.errors import UserError
from sweeper.launch import LaunchOptions, Prepared, look_up, resolve_sweep
from sweeper.messages import Reporter

if TYPE_CHECKING:
    from sweeper.sweep.trial import Trial


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
    from sweeper.results.store import Store
    from sweeper.sweep.preflight import missing_datasets

    def say_what_is_missing(trials: list[Trial]) -> None:
        for problem in [] if as_json else missing_datasets(trials, data):
            err.print(Text.assemble(("Missing: ", "bold yellow"), problem), soft_wrap=True)

    options = LaunchOptions(data=data, overrides=overrides or (), only=only or ())
    loaded, everything, resolved = resolve_sweep(sweep, options, CheckReporter(), say_what_is_missing)
    prepared = look_up(loaded, everything, resolved, Store(out_dir or f"results/{loaded.name}"))
    words = {key: status.word for key, status in prepared.statuses.items()}
    if as_json:
        print_json([each.as_json(words[each.trial.target_id]) for each in resolved])
        return
    out.print(f"[bold]{loaded.name}[/bold]{': ' if loaded.summary else ''}{escape(loaded.summary)}", highlight=False)
    for name in ("paper", "cost", "expected"):
        if getattr(loaded, name):
            out.print(f"[dim]{name}:[/dim] {escape(getattr(loaded, name))}", highlight=False)
    print_plan(prepared)


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
    loaded, _, resolved = resolve_sweep(sweep, LaunchOptions(data=data, overrides=overrides or ()), CheckReporter())
    trials = [each.trial for each in resolved]
    from sweeper.results.store import Store
    from sweeper.sweep.preflight import check_datasets

    found = [each for each in trials if each.target_id.startswith(target_id)]
    if len(found) != 1:
        raise UserError(
            f"{len(found)} trials of '{loaded.name}' have an id that begins with '{target_id}'. `sweeper plan {sweep}` lists them."
        )
    import torch

    from sweeper.trial.context import TrialContext
    from sweeper.trial.run import run_trial

    check_datasets(found, data, download=False)
    store = Store(out_dir or f"results/{loaded.name}")
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


def print_plan(prepared: Prepared) -> None:
    """Print a table of trials, and one line about the comparisons."""
    resolved, words = prepared.resolved, {key: status.word for key, status in prepared.statuses.items()}
    from sweeper.cli.display import LEAST_TITLE, Column, Rows, Title, duration
    from sweeper.sweep import components

    rows: list[list[str | Title]] = []
    for each in resolved:
        accounting = each.plan.accounting
        guarantee = "none"
        if accounting is not None and each.guarantee is not None:
            guarantee = (
                f"ε {each.guarantee.epsilon:.4g}, δ {accounting.delta:g}, noise {accounting.noise_multiplier:.3g}"
            )
        attacks = ", ".join(components.name_of("attack", attack) for attack in each.trial.attacks)
        members, steps, word = str(each.n_train), str(each.plan.steps), words[each.trial.target_id]
        rows.append([each.trial.target_id, Title(each.trial.title), members, steps, guarantee, attacks, word])
    columns = [Column(heading="id"), Column(heading="trial", least=LEAST_TITLE)]
    columns += [Column(heading=name, justify="right") for name in ("members", "steps")]
    columns += [Column(heading="guarantee"), Column(heading="attacks", least=18), Column(heading="status")]
    out.print(Rows(columns, rows))
    counts = Counter(task.name for task in prepared.due.planned)
    if counts:
        named = ", ".join(f"{count} {name}" for name, count in counts.items())
        out.print(
            f"{len(prepared.due.planned)} comparisons ({named}), {prepared.due.n_done} done; each runs when its targets are finished.",
            highlight=False,
        )
    left = [each.rough_cpu_seconds for each in resolved if words[each.trial.target_id] in ("to do", "failed")]
    out.print(
        f"{len(resolved)} trials, {sum(word == 'done' for word in words.values())} done. Rough cost of the trainings left on one "
        f"CPU thread: {duration(sum(left))}; attacks add to it, and a GPU takes a small fraction of it.",
        highlight=False,
    )
