"""Commands on a results folder: `sweeper report`, `sweeper gather`, `sweeper status` and `sweeper logs`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sweeper.cli.console import (
    err,
    out,
    print_damaged,
    print_json,
    print_left_out,
    print_report,
    print_tables,
    user_errors,
)
from sweeper.cli.launch import TerminalReporter
from sweeper.cli.options import Results
from sweeper.errors import UserError


@user_errors
def report(
    results: Results,
    to: Annotated[Path | None, typer.Option("--to", help="Folder for the report. \\[default: RESULTS/report]")] = None,
    weight: Annotated[
        float | None, typer.Option(help="Call that defense the best whose accuracy − WEIGHT · (AUC − 0.5) is highest.")
    ] = None,
    within: Annotated[
        float, typer.Option(help="Without --weight: the lowest AUC within so many points of the best accuracy.")
    ] = 2.0,
    style: Annotated[Path | None, typer.Option(help="YAML file with your names, order, colors and markers.")] = None,
) -> None:
    """Write tables, figures and one self-contained report.html on results, finished or not. Changes nothing else.

    The report on results in an object store is written to results/NAME/report and copied back to the store.
    """
    from sweeper.report import Wishes, current_tables, local_folder, report_on
    from sweeper.results import layout
    from sweeper.results.store import Store

    store = Store(results, sets_aside=False)
    to = to or local_folder(store) / layout.REPORT
    with current_tables(store, to) as tables:
        print_damaged(tables.damaged)
        print_left_out(tables.left_out, store.location)
        page = report_on(
            tables.folder, to, store, TerminalReporter(), Wishes(weight=weight, within=within, style=style)
        )
    print_report(page, store.location)
    _fail_if_damaged(tables.damaged)


@user_errors
def gather(results: Results) -> None:
    """Gather results, finished or not, into one Parquet file per table. A launch does so when it ends.

    The tables of results in an object store are written there and to results/NAME.
    """
    from sweeper.report import local_folder
    from sweeper.results import gather as gathering
    from sweeper.results.store import Store

    store = Store(results)
    if not any(store.keys("trials")):  # tables that were passed on without parts would be replaced by empty ones
        raise UserError(f"{store.location} holds no parts to gather. Name the folder that `sweeper launch` wrote to.")
    gathered = gathering.gather(store, local_folder(store))
    print_damaged(gathered.damaged)
    print_left_out(gathered.left_out, store.location)
    print_tables(gathered.folder, store.location)
    _fail_if_damaged(gathered.damaged)


@user_errors
def status(
    results: Results,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout, and nothing else.")] = False,
) -> None:
    """Show a sweep's status from its results alone: counts, running trials, rate, time left, failures by cause."""
    from sweeper.results.status import read_status
    from sweeper.results.store import Store

    store = Store(results)
    found = read_status(store)
    if as_json:
        print_json(found.as_json())
        return
    from sweeper.cli.display import status_view

    out.print(status_view(found, store.location))


@user_errors
def logs(
    results: Results,
    target_id: Annotated[str, typer.Argument(metavar="ID", help="Target id, or its first characters.")],
) -> None:
    """Print a trial's output, all attempts in order: epochs, warnings, tracebacks of failures."""
    from sweeper.results import layout
    from sweeper.storage import Storage

    storage = Storage(results)
    found = [name for name in storage.entries(layout.LOGS) if name.startswith(target_id)]
    if len(found) != 1:
        raise UserError(
            f"{len(found)} of the trials with a log in {storage.location} have an id that begins with '{target_id}'. `sweeper plan` "
            "lists the ids; a trial has a log once it has started."
        )
    sys.stdout.write(storage.read(f"{layout.LOGS}/{found[0]}").decode(errors="replace"))


def _fail_if_damaged(damaged: Sequence[str]) -> None:
    if damaged:
        err.print("Launch the sweep again to recompute what the damaged files held.", highlight=False)
        raise typer.Exit(1)
