"""The `sweeper` command: one application with all subcommands."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sweeper import __version__
from sweeper.cli.audit import audit
from sweeper.cli.console import fail, out
from sweeper.cli.launch import launch
from sweeper.cli.machine import doctor, list_components
from sweeper.cli.plan import plan, trial
from sweeper.cli.release import card, gate
from sweeper.cli.results import gather, logs, report, status
from sweeper.cli.view import view
from sweeper.workers.allocator import restart_with_allocator_environment

app = typer.Typer(
    name="sweeper",
    help="Which defense gives the most privacy for the least accuracy and time?",
    epilog="Start with `sweeper launch`: the demo trains, attacks and reports, and needs no download.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the `sweeper` command."""
    if sys.argv[1:2] == ["trial"]:  # the only command that trains in this process
        restart_with_allocator_environment()
    app()


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if sys.flags.optimize > 1:
        fail(
            "Python runs with -OO (PYTHONOPTIMIZE=2), which drops the docstrings that Ray and sweeper need. Run it without -OO, "
            "or with -O (PYTHONOPTIMIZE=1)."
        )
    if version:
        out.print(__version__)
        raise typer.Exit()


# In the order of the help text
for _command, _name, _example in (
    (launch, "launch", "`sweeper launch lomurno2022 --data data --set training.epochs=5 --only 'dp_*/mnist'`"),
    (plan, "plan", "`sweeper plan lomurno2022 --json | jq '.[0]'`"),
    (trial, "trial", "`sweeper trial demo 7f3399` (`sweeper plan` lists the ids; a prefix is enough)"),
    (audit, "audit", "`sweeper audit outputs.parquet --attack loss --attack entropy --json`"),
    (
        gate,
        "gate",
        "`sweeper gate results/demo --defense dp_eps8 --max 'tpr@1%=0.02' --max auc=0.55 --min test_accuracy=0.8`",
    ),
    (card, "card", "`sweeper card results/demo --defense dp_eps8 --to card.html`"),
    (report, "report", "`sweeper report results/demo`"),
    (gather, "gather", "`sweeper gather results/demo`"),
    (view, "view", "`sweeper view results/demo results/demo_with_dropout`"),
    (status, "status", "`sweeper status s3://bucket/results/lomurno2022`"),
    (logs, "logs", "`sweeper logs results/demo 7f3399` (`sweeper plan` lists the ids; a prefix is enough)"),
    (list_components, "ls", "`sweeper ls`"),
    (doctor, "doctor", "`sweeper doctor --data ../datasets`"),
):
    app.command(_name, epilog=f"Example: {_example}")(_command)
