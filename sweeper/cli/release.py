"""`sweeper gate` and `sweeper card`: whether a model may be released, and the page that says why."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from sweeper.cli.console import err, out, print_damaged, print_json, user_errors
from sweeper.cli.options import Results
from sweeper.errors import UserError

if TYPE_CHECKING:
    from sweeper.release import Decision

_EXIT_CODES = {"pass": 0, "fail": 1, "not enough evidence": 2}
_STYLES = {"pass": "bold green", "fail": "bold red", "not enough evidence": "bold yellow"}

Defense = Annotated[
    str | None,
    typer.Option("--defense", metavar="NAME", help="The defense, by its label in the sweep.", show_default=False),
]


@user_errors
def gate(
    results: Results,
    defense: Defense = None,
    most: Annotated[
        list[str] | None,
        typer.Option(
            "--max",
            metavar="NAME=VALUE",
            help="auc, tpr@0.1%, tpr@1%, epsilon, epsilon_with_search: the upper end of its interval must be at most that. Repeatable.",
        ),
    ] = None,
    least: Annotated[
        list[str] | None,
        typer.Option(
            "--min",
            metavar="NAME=VALUE",
            help="test_accuracy: the lower end of its interval must be at least that. Repeatable.",
        ),
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option(
            help="Judge by all scores of this attack alone, such as lira. \\[default: the primary attack, and those that adapt to the "
            "defense]",
            show_default=False,
        ),
    ] = None,
    min_seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Fewer seeds are not enough evidence. \\[default: 8]", show_default=False),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Judge on this dataset alone. \\[default: on all]", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout, and nothing else.")] = False,
) -> None:
    """Decide whether a defense's numbers are good enough for a release. Reads only; trains nothing.

    A limit holds only where the worse end of the 95 % interval is within it, the attack's null stands, and there are seeds enough.
    RESULTS may also be the metrics that `sweeper audit --out` wrote about any model. Exit code 0: pass; 1: fail; 2: wrong input, or not
    enough evidence.
    """
    from sweeper import release

    limits = [release.parse_limit(text, is_least=False) for text in most or ()]
    limits += [release.parse_limit(text, is_least=True) for text in least or ()]
    decision = release.gate(
        results,
        limits,
        defense=defense,
        dataset=dataset,
        attack=attack,
        min_seeds=min_seeds,
        on_damaged=print_damaged,
    )
    subject = defense or results
    if as_json:
        print_json({"subject": subject, **_as_json(decision)})
    else:
        _print(subject, decision)
    raise typer.Exit(_EXIT_CODES[decision.verdict])


@user_errors
def card(
    results: Results,
    defense: Defense = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="The file: .html, .md or .json. \\[default: Markdown on stdout]", show_default=False),
    ] = None,
) -> None:
    """Write one page about a defense's privacy for whoever answers for a release: what was trained, attacked, proved, and not tried.

    Every number has its interval, and the row of the Parquet tables that it comes from.
    """
    if to is not None and to.suffix not in (".html", ".md", ".json"):
        raise UserError(f"--to {to}: the name must end in .html, .md or .json.")
    from sweeper import release

    made = release.card(results, defense, print_damaged)
    if to is None:
        out.print(made.as_markdown(), markup=False, highlight=False, soft_wrap=True)
        return
    if to.suffix == ".json":
        text = json.dumps(made.as_json(), indent=1, ensure_ascii=False) + "\n"
    else:
        text = made.as_html() if to.suffix == ".html" else made.as_markdown()
    to.write_text(text, encoding="utf-8")
    out.print(Text.assemble("Card: ", (str(to.absolute()), "bold")), soft_wrap=True)


def _print(subject: str, decision: Decision) -> None:
    out.print(
        Text.assemble((decision.verdict.upper(), _STYLES[decision.verdict]), f"  {subject}"),
        highlight=False,
        soft_wrap=True,
    )
    marks = {"pass": ("✓", "green"), "fail": ("✗", "red"), "not enough evidence": ("?", "yellow")}
    for check in decision.checks:
        out.print(
            Text.assemble("  ", marks[check.verdict], f" {check.place}: {check.reason}"),
            highlight=False,
            soft_wrap=True,
        )
    for each in decision.missing:
        out.print(Text.assemble("  ", ("?", "yellow"), f" {each}"), highlight=False, soft_wrap=True)
    for each in decision.notes:
        out.print(Text(f"  {each}", style="dim"), highlight=False, soft_wrap=True)
    if decision.verdict == "not enough evidence":
        err.print("More seeds, or the attacks that are missing, would decide.", style="dim", highlight=False)


def _as_json(decision: Decision) -> dict[str, Any]:
    return {
        "verdict": decision.verdict,
        "checks": [
            {
                "place": check.place,
                "limit": {
                    "name": check.limit.name,
                    "bound": "min" if check.limit.is_least else "max",
                    "value": check.limit.value,
                },
                "verdict": check.verdict,
                "reason": check.reason,
                **({} if check.fact is None else {"measured": asdict(check.fact)}),
            }
            for check in decision.checks
        ],
        "missing": list(decision.missing),
        "notes": list(decision.notes),
    }
