"""Arguments and options that several commands share, and parsers for their values."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from sweeper.errors import UserError, sentence

_OLDEST_MLFLOW = 3


def complete_sweep(incomplete: str) -> list[str]:
    from sweeper.sweep.packaged import packaged_sweeps

    names = [*packaged_sweeps(), *(str(path) for path in sorted(Path().glob("*.yaml")))]
    return [name for name in names if name.startswith(incomplete)]


def complete_attack(incomplete: str) -> list[str]:
    from sweeper.auditing.attack import ATTACK_NAMES

    return [name for name in ATTACK_NAMES if name.startswith(incomplete)]


SweepName = Annotated[
    str, typer.Argument(help="A packaged sweep's name, or the path of a YAML file.", autocompletion=complete_sweep)
]


DataDir = Annotated[
    Path,
    typer.Option("--data", envvar="SWEEPER_DATA", help="Folder that holds the datasets, laid out as torchvision does."),
]


OutDir = Annotated[
    str | None,
    typer.Option("--out", help="Results: a folder, s3://… or gs://… \\[default: results/NAME]", show_default=False),
]


Results = Annotated[str, typer.Argument(metavar="RESULTS", help="Results of a sweep: a folder, s3://… or gs://…")]


Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key of the sweep, dotted: training.epochs=3. Repeatable."
    ),
]


Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="[PART:]DEFENSE[/DATASET[/SPLIT]]",
        help="Run only the trials with these labels, or of a part of the sweep; * and ? match. Repeatable.",
    ),
]


def seconds(text: str, option: str) -> float | None:
    """Parse a duration such as 90, 90s, 30m or 24h into seconds; `none` gives None."""
    if text == "none":
        return None
    units = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    seconds = float(match[1]) * units[match[2]] if match else 0.0
    if seconds <= 0:
        raise UserError(f"{option}: got '{text}'; give a time such as 90s, 30m or 24h, or none.")
    return seconds


def amounts_of(given: Sequence[str] | None, option: str, lowest: float) -> dict[str | None, Any]:
    """Parse amounts per architecture label; the key None applies to all other labels."""
    amounts: dict[str | None, Any] = {}
    for text in given or ():
        label, equals, value = text.rpartition("=")
        key = label if equals else None
        if key in amounts:
            raise UserError(f"{option}: got '{text}', but this amount was given before; keep one.")
        if value == "auto" and option == "--gpus-per-trial":
            amounts[key] = "auto"
            continue
        try:
            amounts[key] = float(value)
        except ValueError:
            amounts[key] = math.nan
        if not lowest <= amounts[key] < math.inf:
            also = ", auto," if option == "--gpus-per-trial" else ""
            raise UserError(
                f"{option}: got '{text}'; give a number of at least {lowest:g}{also} or ARCHITECTURE=NUMBER."
            )
        if option == "--gpus-per-trial" and amounts[key] > 1 and amounts[key] % 1:
            raise UserError(f"{option}: got '{text}'; above 1, only whole GPUs are allowed.")
    return amounts


def check_trackers(tensorboard: Path | None, mlflow: str | None) -> None:
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    for asked, package, option, install in (
        (tensorboard, "tensorboardX", "--tensorboard", "tensorboardX"),
        (mlflow, "mlflow", "--mlflow", "mlflow-skinny"),
    ):
        if asked is not None and find_spec(package) is None:
            raise UserError(f"{option} needs the package {package}, which is not installed: pip install {install}.")
    if mlflow is not None:
        for name in ("mlflow", "mlflow-skinny"):
            with contextlib.suppress(PackageNotFoundError):
                if int(version(name).partition(".")[0]) < _OLDEST_MLFLOW:
                    raise UserError(
                        f"--mlflow: {name} {version(name)} is too old for the other libraries here: pip uninstall {name}, then pip "
                        "install mlflow-skinny, which is enough to log to a server."
                    )
    try:
        urlsplit(mlflow or "")
    except ValueError as error:
        raise UserError(f"--mlflow: the tracking URI cannot be parsed: {sentence(error)}") from None
