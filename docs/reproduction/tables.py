"""Writes the tables of these pages from their CSV files: `python docs/reproduction/tables.py`.

A table stands between a comment that says where it comes from and `<!-- end -->`:

    <!-- table
    csv: tables/aerni_table.csv
    where: {dataset: cifar10}
    sort: worst_tpr
    columns: {Defense: "{defense}", TPR: "{worst_tpr:.3f}"}
    -->

`{worst_tpr:.3f}` is the column of that name or, if there is none, the mean with its interval, from `worst_tpr_mean`, `_low`
and `_high`. Labels of defenses and datasets are shown as reports show them, and what is missing as “–”. `sort` sorts
descending.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from analysis import naming

PAGES = tuple(sorted(Path(__file__).parent.glob("*/README.md")))
_TABLE = re.compile(r"(<!-- table\n(.*?)-->\n).*?(<!-- end -->)", flags=re.DOTALL)


@dataclass(frozen=True)
class _Value:
    """A value of a CSV file, or a mean with the ends of its interval."""

    mean: Any
    low: Any = None
    high: Any = None

    def __format__(self, spec: str) -> str:
        if isinstance(self.mean, str):
            return naming.display(self.mean)
        if pd.isna(self.mean):
            return "–"
        if pd.isna(self.low):
            return format(self.mean, spec)
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def _values(row: dict[str, Any]) -> dict[str, _Value]:
    stems = [name.removesuffix("_mean") for name in row if name.endswith("_mean")]
    means = {stem: _Value(*(row.get(f"{stem}_{part}") for part in ("mean", "low", "high"))) for stem in stems}
    return means | {name: _Value(value) for name, value in row.items()}


def table(folder: Path, description: dict[str, Any]) -> str:
    """The Markdown table that a comment describes, of a CSV file in the page's folder."""
    rows = pd.read_csv(folder / description["csv"])
    for column, value in description.get("where", {}).items():
        rows = rows[rows[column] == value]
    if sort := description.get("sort"):
        rows = rows.sort_values(sort if sort in rows else f"{sort}_mean", ascending=False, kind="stable")
    columns = description["columns"]
    lines = [columns.keys(), ["---"] * len(columns)]
    for row in rows.to_dict(orient="records"):
        lines.append([cell.format(**_values(row)) for cell in columns.values()])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def written(page: Path) -> str:
    """The text of a page with all its tables made anew."""

    def made(found: re.Match[str]) -> str:
        return found[1] + table(page.parent, YAML(typ="safe").load(found[2])) + found[3]

    return _TABLE.sub(made, page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page), encoding="utf-8")
