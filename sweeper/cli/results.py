"""Commands on a results folder: `sweeper report`, `sweeper status` and `sweeper logs`."""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import urlsplit

import typer

from sweeper.cli.console import err, out, print_damaged, print_json, print_left_out, print_report, user_errors, warn
from sweeper.cli.launch import TerminalReporter
from sweeper.cli.options import Results
from sweeper.errors import UserError


@user_errors
def report(
    results: Results,
    to: Annotated[Path | None, typer.Option("--to", help="Folder for the report. \\[default: RESULTS/report]")] = None,
) -> None:
    """Gather results, finished or not; write tables, figures and one self-contained report.html.

    Results in an object store are gathered to results/NAME, and the report is copied back to the store.
    """
    from sweeper.launch import copy_folder, report_on
    from sweeper.results.gather import gather
    from sweeper.results.store import Store

    store = Store(results)
    folder = store.storage.root if store.storage.is_local else copy_folder(_last_name(results))
    damaged: tuple[str, ...] = ()
    # If there are no parts, only the gathered tables were passed on; they suffice.
    if store.storage.is_local and (folder / "parts").is_dir() and not os.access(folder, os.W_OK):
        warn(f"{folder} cannot be written, so the report uses the tables as they were last gathered.")
    elif not store.storage.is_local or (folder / "parts").is_dir():
        gathered = gather(store, folder)
        damaged = gathered.damaged
        print_damaged(damaged)
        print_left_out(gathered.left_out, store.location)
    print_report(report_on(folder, to, store, TerminalReporter()), store.location)
    if damaged:
        err.print("Launch the sweep again to recompute what the damaged files held.", highlight=False)
        raise typer.Exit(1)


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


def _last_name(uri: str) -> str:
    """The name of the local copy of an object store's results."""
    return PurePosixPath(urlsplit(uri).path).name or urlsplit(uri).netloc.rpartition("@")[2]
