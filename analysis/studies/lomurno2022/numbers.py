"""The published numbers that ours are compared with.

Lomurno & Matteucci 2022, "On the utility and protection of optimization with differential privacy and
classic regularization techniques", Tables 1–4, as printed.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

CITATION = (
    "Lomurno & Matteucci (2022), “On the utility and protection of optimization with differential privacy "
    "and classic regularization techniques”"
)
SWEEP = "lomurno2022"
DATASETS = ("cifar10", "mnist", "fashion_mnist")
DEFENSES = ("baseline", "dp_eps2", "dp_eps4", "dp_eps8", "l2", "dropout", "l2_dropout")
BASELINE = "baseline"


@cache
def _numbers() -> dict[tuple[int, str, str], float]:
    text = files(__package__).joinpath("published.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return {(int(row["table"]), row["row"], row["column"]): float(row["value"]) for row in rows}


def number(table: int, row: str, column: str) -> float | None:
    """The paper's number in `table` (1–4) at `row` and `column`, or None."""
    return _numbers().get((table, row, column))


def time_ratio(dataset: str, defense: str) -> float | None:
    """Training time over the baseline's, from Table 2."""
    time, baseline = number(2, dataset, defense), number(2, dataset, BASELINE)
    return None if time is None or baseline is None else time / baseline
