"""`sweeper launch`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from sweeper.cli.console import (
    err,
    out,
    print_damaged,
    print_left_out,
    print_report,
    tell,
    user_errors,
)
from sweeper.cli.options import DataDir, Only, OutDir, Overrides, SweepName, amounts_of, check_trackers, seconds
from sweeper.cli.plan import CheckReporter, print_plan
from sweeper.launch import LaunchResult
from sweeper.prepare import LaunchOptions, Prepared, forget_other_code, prepare

if TYPE_CHECKING:
    from sweeper.cluster.events import Event
    from sweeper.sweep.comparisons import ComparisonTask
    from sweeper.sweep.trial import Trial


@user_errors
def launch(
    sweep: SweepName = "demo",
    data: DataDir = Path("data"),
    out_dir: OutDir = None,
    overrides: Overrides = None,
    only: Only = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Join the running Ray cluster at HOST:PORT (or `auto`); this machine must be one of its nodes.",
            envvar="SWEEPER_RAY_ADDRESS",
        ),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Use only this machine, whatever other settings say (the default).")
    ] = False,
    gpus_per_trial: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N|auto|ARCH=N",
            help="GPUs per trial: 0.25 packs four on one, auto measures one trial and packs accordingly, resnet18=0.5 applies to "
            "one architecture. Repeatable. \\[default: 1 if there are any]",
            show_default=False,
        ),
    ] = None,
    cpus_per_trial: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N|ARCH=N",
            help="CPUs per trial. Repeatable. \\[default: 1, or a GPU's share]",
            show_default=False,
        ),
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Trials that run at once. \\[default: as many as fit]")
    ] = None,
    chunk_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Examples that private gradients process at once; fewer take less memory. \\[default: what fits]",
        ),
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often a failed trial is retried.")] = 1,
    worker_retries: Annotated[
        int, typer.Option(min=0, help="How often a trial is restarted if its worker or node is lost.")
    ] = 10,
    time_limit: Annotated[
        str, typer.Option(metavar="TIME|none", help="An attempt that takes longer is killed: 90s, 30m, 24h.")
    ] = "24h",
    checkpoint_every: Annotated[
        str, typer.Option(metavar="TIME|none", help="Interval between checkpoints, from which a long training resumes.")
    ] = "60s",
    tensorboard: Annotated[
        Path | None, typer.Option(help="Also write TensorBoard events into this folder. Needs tensorboardX.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="Also log to this MLflow tracking URI. Needs mlflow-skinny.")
    ] = None,
    notify: Annotated[
        str | None, typer.Option(metavar="URL", help="Post one JSON to this URL at each failure and at the end.")
    ] = None,
    view: Annotated[
        bool,
        typer.Option("--view", help="Also serve the page of `sweeper view` on these results, and print its address."),
    ] = False,
    download: Annotated[bool, typer.Option("--download", help="Fetch missing public datasets into --data.")] = False,
    redo_changed: Annotated[
        bool,
        typer.Option(
            "--redo-changed",
            help="Delete and recompute records whose components' code has changed since.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would run, and stop.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show Ray's output.")] = False,
) -> None:
    """Run a sweep: train, attack and record every target, then write the report.

    Recorded results are not computed again: the same command computes what is missing, and adding an attack to the file
    retrains no target. Exit code 0: all finished; 1: some failed or are left, or there is no report; 2: wrong input.
    """
    from sweeper import launch as launching
    from sweeper.workers.scheduling import Resources, Retries

    check_trackers(tensorboard, mlflow)
    options = LaunchOptions(
        data=data,
        out=out_dir,
        overrides=overrides or (),
        only=only or (),
        address=None if local or address == "local" else address,
        resources=Resources(
            cpus=amounts_of(cpus_per_trial, "--cpus-per-trial", lowest=0.1),
            gpus=amounts_of(gpus_per_trial, "--gpus-per-trial", lowest=0.0),
            max_concurrent=max_concurrent,
            chunk_size=chunk_size,
        ),
        retries=Retries(failures=retries, losses=worker_retries),
        time_limit_s=seconds(time_limit, "--time-limit"),
        checkpoint_every_s=seconds(checkpoint_every, "--checkpoint-every"),
        tensorboard=tensorboard,
        mlflow=mlflow,
        download=download,
        redo_changed=redo_changed,
        verbose=verbose,
        notify=notify,
    )
    reporter = TerminalReporter(verbose=verbose)
    prepared = prepare(sweep, options, reporter)
    prepared = forget_other_code(prepared, options, redo=redo_changed, dry_run=dry_run, reporter=reporter)
    n_trials, n_pending = len(prepared.trials), len(prepared.pending)
    n_comparisons = len(prepared.due.planned)
    compared = f", {n_comparisons} comparisons, {prepared.due.n_done} done" if n_comparisons else ""
    tell(
        f"[bold]{prepared.sweep.name}[/bold]: {n_trials} trials, {n_trials - n_pending} done, {n_pending} to run{compared}; "
        f"results in {escape(prepared.store.location)}",
        highlight=False,
        soft_wrap=True,
    )
    if prepared.sweep.expected:
        tell(f"Expected: {escape(prepared.sweep.expected)}", highlight=False, soft_wrap=True)
    if dry_run:
        from sweeper.cli.plan_cache import planned_searches, planned_trial

        words = {target_id: status.word for target_id, status in prepared.statuses.items()}
        names = [task.name for task in prepared.due.planned]
        trials = [planned_trial(each) for each in prepared.resolved.chosen]
        print_plan(trials, words, names, prepared.due.n_done, planned_searches(prepared.resolved))
        return
    with _viewed(prepared) if view else contextlib.nullcontext():
        _conclude(launching.launch(prepared, options, reporter))


@contextlib.contextmanager
def _viewed(prepared: Prepared) -> Iterator[None]:
    """Serve the page on the results for the duration of the block, in a process of its own."""
    prepared.store.prepare()
    prepared.resolved.record()  # the page needs to know the sweep
    results = prepared.store.storage.uri
    command = [sys.executable, "-m", "sweeper.cli", "view", results, "--end-with", str(os.getpid())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as server:
        assert server.stdout is not None
        tell(server.stdout.readline().rstrip(), highlight=False, soft_wrap=True, markup=False)
        try:
            yield
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()


def _conclude(result: LaunchResult) -> None:
    """Print how a launch ended; exit with 1 unless everything is done and reported."""
    if result.stopped is not None:
        err.print(Text.assemble(("Stopped: ", "bold red"), result.stopped), soft_wrap=True, highlight=False)
    for line in result.failed:
        err.print(Text.assemble(("failed ", "red"), line), soft_wrap=True)
    print_left_out(result.left_out, result.location)
    if result.report is not None:
        print_report(result.report, result.location)
    if result.problem is not None:
        what = "No report: " if result.tables is not None else ""
        err.print(Text.assemble((what, "bold red"), result.problem), soft_wrap=True, highlight=False)
    if result.tables is not None and result.n_done < result.n_trials:
        err.print(
            f"{result.n_done} of {result.n_trials} trials are finished, {result.n_failed} failed, {result.n_left} are left. The same "
            f"command {'continues from here' if result.n_left else 'retries the failed ones'}.",
            soft_wrap=True,
            highlight=False,
        )
    left = len(result.states) - result.n_compared
    if left:
        failing = sum(state == "failed" for state in result.states.values())
        err.print(
            f"{result.n_compared} of {len(result.states)} comparisons of finished targets are done, {failing} failed. The same "
            "command retries the others.",
            soft_wrap=True,
            highlight=False,
        )
    if not result.is_whole:
        raise typer.Exit(1)


class TerminalReporter(CheckReporter):
    """Shows a launch in the terminal: a live table, or one line per trial if the output is not a terminal."""

    def __init__(self, *, verbose: bool = False) -> None:
        self._verbose = verbose

    def tell(self, text: str) -> None:
        tell(text, highlight=False, markup=False)

    def damaged(self, problems: Sequence[str]) -> None:
        print_damaged(problems)

    @contextlib.contextmanager
    def running(self, units: Sequence[Trial | ComparisonTask], n_done: int) -> Iterator[Callable[[Event], None]]:
        from sweeper.cli.display import STOPPING, SweepDisplay

        display = SweepDisplay(units, n_done)
        shown = out.is_terminal and not self._verbose
        live = Live(display, console=out, refresh_per_second=4, transient=True) if shown else None

        def on_event(event: Event) -> None:
            line = display.update(event)
            if event.kind == "stopping" and live is None:
                os.write(2, f"{STOPPING}.\n".encode())  # unbuffered: the signal may have interrupted other output
            if line is not None and live is None:
                tell(f"{time.strftime('%H:%M:%S')} {line}", highlight=False, soft_wrap=True, markup=False)

        with live or contextlib.nullcontext():
            yield on_event
        elsewhere = f", {display.elsewhere} by others" if display.elsewhere else ""
        tell(f"{display.finished} finished, {display.failed} failed{elsewhere}", highlight=False)
