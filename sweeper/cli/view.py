"""The command `sweeper view`: a local page on results."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from sweeper.cli.console import out, user_errors


@user_errors
def view(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULTS…", help="Results of one sweep or of several to compare: folders, s3://… or gs://…"
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port on this machine. 0: any that is free.")] = 0,
    end_with: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve a page on results, running or not: progress, curves, failures and the report so far. Ctrl-C ends it.

    It reads the store alone, so it works from any machine that can. Whoever knows the address sees the page, which is served on this
    machine only; `ssh -L` brings it to another.
    """
    from sweeper.view.server import serve

    serve(
        results,
        port,
        lambda address: out.print(Text.assemble("View: ", (address, "bold")), soft_wrap=True),
        end_with=end_with,
    )
